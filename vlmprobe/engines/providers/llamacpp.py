"""llama.cpp's server: ids, true bytes and any number of alternatives of the answer; nothing of the prompt.

Run against its own server code (``xllamacpp``). The server writes the prompt by the template of its GGUF file
(``/apply-template``) and answers over ``/completion``, whose ``tokens`` name every token: a token that ends inside a
character has no row. Where these are missing (behind a proxy), OpenAI's route is used. Its log-probabilities are of the
raw logits, whatever the sampling (``post_sampling_probs`` is never requested).
"""

from __future__ import annotations

import codecs
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from PIL import Image

from vlmprobe.engines.base import Options
from vlmprobe.engines.constraint import Constraint
from vlmprobe.engines.providers import openai_chat
from vlmprobe.engines.providers.llamacpp_candidates import stepwise
from vlmprobe.engines.providers.llamacpp_schema import require_held_to
from vlmprobe.engines.serving import (
    BASIC,
    Abilities,
    Alternative,
    Answer,
    Decoding,
    Facts,
    Meaning,
    Node,
    Row,
    Server,
    Usage,
)
from vlmprobe.engines.serving.answer import Scored
from vlmprobe.engines.serving.base import StreamedEngine
from vlmprobe.engines.serving.completeness import lost_row
from vlmprobe.engines.serving.http.reply import real, token_id
from vlmprobe.engines.serving.image_encoding import base64_of
from vlmprobe.engines.serving.refusals import warn_unread
from vlmprobe.engines.serving.rows import whole_row
from vlmprobe.engines.serving.value_kind import FLOOR
from vlmprobe.errors import CapabilityError, EngineError, EngineResponseError
from vlmprobe.inputs.chat_templates import require_variables
from vlmprobe.inputs.messages import Conversation, ImagePart

__all__ = ["LlamaCpp"]

PATH = "/completion"
MARKER = "<__media__>"  # where an image stands in a prompt, unless the server names another
CONTEXT = 2**16  # tokens that a penalty counts, where the context is not known
MANY = 1000  # tokens that are listed where several are looked for
PLAIN, FORCE = "a", 1000.0  # a text of one token, and what is added to its logit to draw it
NO_PROMPT = "this llama-server has no /apply-template, and cannot score given text without"
WOULD = "vLLM does, or open the checkpoint with vlmprobe.load"


class LlamaCpp(StreamedEngine):
    """``llama-server`` with a vision projector (``--mmproj``)."""

    title = "llama.cpp"
    abilities = Abilities(
        no_prompt=f"llama-server has no log-probabilities of prompts; {WOULD}",
        takes=BASIC | {"top_k", "min_p", "repetition_penalty", "stop_strings"},
        prompt=frozenset({"chat_template_kwargs"}),
        constraints=frozenset({"schema", "grammar"}),
        constrained="raw",
    )

    @classmethod
    async def recognise(cls, facts: Facts) -> Server | None:
        """A server whose ``/v1/models`` says that llama.cpp owns them."""
        entries = [each for each in await facts.models() if each.get("owned_by") == "llamacpp" and "id" in each]
        if not entries:
            return None
        told = await facts.get("/props")
        props = told if isinstance(told, dict) else {}
        settings = props.get("default_generation_settings")
        context = settings.get("n_ctx") if isinstance(settings, dict) else None
        modalities = props.get("modalities")
        sees = modalities.get("vision") if isinstance(modalities, dict) else None
        facts_of_first = entries[0].get("meta")
        vocabulary = facts_of_first.get("n_vocab") if isinstance(facts_of_first, dict) else None
        return Server(
            version=_string(props.get("build_info")),
            models=tuple(str(each["id"]) for each in entries),
            context=context if isinstance(context, int) else None,
            root=_string(props.get("model_path")),
            more={"sees": sees is not False, "vocabulary": vocabulary if isinstance(vocabulary, int) else None}
            | {"template": _string(props.get("chat_template")), "marker": _string(props.get("media_marker"))},
        )

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.meaning = self.meaning or Meaning("raw")
        self._native = True  # whether the server has the route that names every token, until it shows otherwise
        if not self.server.more.get("sees", True):
            self.abilities = replace(self.abilities, images=False)

    def check(self, conversations: Sequence[Conversation], options: Options) -> None:
        """Validate a request before it is sent; the server reports the template that reads ``chat_template_kwargs``."""
        super().check(conversations, options)
        if options.constraint is not None and options.constraint.kind == "schema":
            require_held_to(options.constraint.value)
        template = self.server.more.get("template")
        for conversation in conversations:
            if conversation.format.chat_template_kwargs and template:
                require_variables(template, conversation.format.chat_template_kwargs)
        if not template:
            warn_unread(self.title, conversations, "update it, so that it reports its template")

    async def answer(self, conversation: Conversation, decoding: Decoding, options: Options) -> Answer:
        """Send one request."""
        return await self._ask(conversation, decoding, options, {})

    async def first_answer(self, conversation: Conversation, options: Options) -> Answer:
        """One token, which is forced: numbers stay raw, and a piece of a character or an end would have no row."""
        return await self._ask(conversation, Decoding(max_new_tokens=1), options, {"logit_bias": [[PLAIN, FORCE]]})

    async def _ask(
        self, conversation: Conversation, decoding: Decoding, options: Options, more: dict[str, Any]
    ) -> Answer:
        request = await self._request(conversation, decoding, options)
        if request is None:
            return await self._chat(conversation, decoding, options, more)
        reply = Node(await self.client.post(PATH, request | more), self.title)
        top = options.alternatives
        decoder = openai_chat.texts_decoder()
        rows = self._rows(reply, top, decoding.max_new_tokens, decoder, whole=True)
        tokens = reply["tokens"]
        tokens.items(most=decoding.max_new_tokens)
        return _answer(reply, aligned(tokens.ids(self.server.more.get("vocabulary")).tolist(), rows))

    async def pieces(
        self, conversation: Conversation, decoding: Decoding, options: Options
    ) -> AsyncGenerator[Answer, None]:
        """The same, streamed; the counts in the events say where a token was lost, but not which."""
        request = await self._request(conversation, decoding, options)
        if request is None:
            raise CapabilityError(f"This llama.cpp server streams only where it has /apply-template and {PATH}.")
        decoder, count = openai_chat.texts_decoder(), 0
        async with aclosing(self.client.events(PATH, request | {"stream": True})) as events:
            async for event in events:
                reply = Node(event, self.title)
                if reply.get("error") is not None:
                    raise EngineError(f"{self.title}: {str(reply['error'].value)[:300]}")
                rows = self._rows(reply, options.alternatives, decoding.max_new_tokens, decoder, whole=False)
                counted = reply.get("tokens_predicted")
                if counted is not None:
                    lost = counted.integer(most=decoding.max_new_tokens) - count - len(rows)
                    rows = [*(lost_row() for _ in range(lost)), *rows]
                count += len(rows)
                yield _answer(reply, rows)
                if event.get("stop") is True:  # the route has no other mark of the end
                    return

    async def candidates(
        self, conversation: Conversation, candidates: Sequence[str], options: Options
    ) -> tuple[list[Scored], dict[str, Any]]:
        """Token by token where the server takes its own prompt, else of one token, among those that it lists."""
        prompt = await self._prompt(conversation) if self._native else None
        if prompt is None:
            return await super().candidates(conversation, candidates, options)
        return await stepwise(self, prompt, self.server.more.get("marker") or MARKER, candidates, options)

    async def after(self, prompt: Any, tokens: Sequence[int], options: Options) -> tuple[list[Row], Usage]:
        """The rows of tokens, each directly after a prompt, and the counts of the request."""
        most = options.alternatives
        if len(tokens) == 1:
            row, usage = await self._forced(prompt, tokens[0], most)
            return [row], usage
        # One request lists the likeliest, of which most candidates are; the others are forced.
        usage, rows = await self._force(prompt, PLAIN, max(MANY, most))
        found = [_listed(rows[0], each, most) if rows else None for each in tokens]
        pairs = zip(tokens, found, strict=True)
        return [row or (await self._forced(prompt, each, most))[0] for each, row in pairs], usage

    async def _forced(self, prompt: Any, token: int, most: int) -> tuple[Row, Usage]:
        usage, rows = await self._force(prompt, token, most)
        if rows and rows[0].id != token:
            raise EngineResponseError(
                f"{self.title} drew the token {rows[0].id} where {token} was forced: logit_bias does not reach it."
            )
        if rows:
            return rows[0], usage
        # A piece of a character has no row: another token is drawn, beside which the whole vocabulary is listed.
        vocabulary = self.server.more.get("vocabulary")
        if vocabulary is None:
            raise CapabilityError(f"{self.title} does not say how large its vocabulary is: candidates need that.")
        usage, rows = await self._force(prompt, PLAIN, vocabulary)
        row = _listed(rows[0], token, most) if rows else None
        if row is None:
            raise EngineResponseError(f"{self.title} does not list the token {token} among its whole vocabulary.")
        return row, usage

    async def _force(self, prompt: Any, token: int | str, top: int) -> tuple[Usage, list[Row]]:
        request = self._body(prompt, Decoding(max_new_tokens=1), top) | {"logit_bias": [[token, FORCE]]}
        reply = Node(await self.client.post(PATH, request), self.title)
        rows = self._rows(reply, top, 1, openai_chat.texts_decoder(), whole=True)
        return _answer(reply, rows).usage, rows

    async def _request(self, conversation: Conversation, decoding: Decoding, options: Options) -> dict[str, Any] | None:
        """The request for the route that names every token; None where the server has no such route."""
        prompt = await self._prompt(conversation) if self._native else None
        if prompt is None:
            return None
        request = self._body(prompt, decoding, options.alternatives) | _obeying(options.constraint)
        return request if options.seed is None else request | {"seed": options.seed}

    def _body(self, prompt: Any, decoding: Decoding, top: int) -> dict[str, Any]:
        request: dict[str, Any] = self._sampling(decoding) | {
            "model": self.model,
            "prompt": prompt,
            "n_predict": decoding.max_new_tokens,
            "temperature": decoding.temperature if decoding.do_sample else 0.0,
            "top_p": decoding.top_p if decoding.do_sample else 1.0,
            "n_probs": max(top, 1),  # 0 would send no numbers at all
            "return_tokens": True,
            "stream": False,
        }
        return request | ({"stop": list(decoding.stop_strings)} if decoding.stop_strings else {})

    async def _prompt(self, conversation: Conversation) -> Any:
        """The prompt as the server's own template writes it; None where it cannot be had."""
        messages = await openai_chat.messages(_small(conversation))
        request: dict[str, Any] = {"model": self.model, "messages": messages}
        if conversation.format.chat_template_kwargs:
            request["chat_template_kwargs"] = dict(conversation.format.chat_template_kwargs)
        try:
            reply = await self.client.post("/apply-template", request)
        except EngineError as error:
            if error.status not in (404, 405, 501):
                raise
            reply = None
        written = reply.get("prompt") if isinstance(reply, dict) else None
        if not isinstance(written, str):
            self._native = False
            self.abilities = replace(self.abilities, one_token=f"{NO_PROMPT}; {WOULD}")
            return None
        if not conversation.images:
            return written
        marker = self.server.more.get("marker") or MARKER
        if written.count(marker) != len(conversation.images):
            raise EngineResponseError(
                f"{self.title}: the template writes {written.count(marker)} images for {len(conversation.images)}."
            )
        files = [await base64_of(part) for part in conversation.image_parts]
        return {"prompt_string": written, "multimodal_data": files}

    def _sampling(self, decoding: Decoding) -> dict[str, Any]:
        """What both routes call alike; each is sent, so that no default of the server applies."""
        return {
            "top_k": decoding.top_k if decoding.do_sample else 0,
            "min_p": decoding.min_p if decoding.do_sample else 0.0,
            "repeat_penalty": decoding.repetition_penalty,
            # As in transformers, the penalty counts the whole prompt and answer; the default is the last 64 tokens.
            **({"repeat_last_n": self.server.context or CONTEXT} if decoding.repetition_penalty != 1 else {}),
            "cache_prompt": True,
        }

    async def _chat(
        self, conversation: Conversation, decoding: Decoding, options: Options, more: dict[str, Any]
    ) -> Answer:
        """Over OpenAI's route, which names no token that has no row."""
        if options.constraint is not None and options.constraint.kind == "schema":
            # There the server lets the model write a fence around the JSON, and leaves it out of the text.
            raise CapabilityError(f"This llama.cpp server takes a schema only where it has /apply-template and {PATH}.")
        top = options.alternatives
        request = await openai_chat.body(self.model, conversation, decoding, seed=options.seed, top=top)
        request |= self._sampling(decoding) | _obeying(options.constraint) | more
        if conversation.format.chat_template_kwargs:
            request["chat_template_kwargs"] = dict(conversation.format.chat_template_kwargs)
        reply = Node(await self.client.post(openai_chat.PATH, request), self.title)
        choice = openai_chat.only_choice(reply)
        entries = choice["logprobs"]["content"]
        listed = entries.items(most=decoding.max_new_tokens)
        rows: list[Row] = []
        read = self._read(listed, top, entries.where, openai_chat.texts_decoder(), whole=True)
        for entry, row in zip(listed, read, strict=True):
            rows += [lost_row()] if openai_chat.begun_before(bytes(entry["bytes"]), row.value, row.top) else []
            rows.append(row)
        return openai_chat.answer_of(reply, choice, rows)

    def _rows(self, reply: Node, top: int, most: int, decoder: codecs.IncrementalDecoder, *, whole: bool) -> list[Row]:
        entries = reply.get("completion_probabilities")
        if entries is None:
            return []
        return self._read(entries.items(most=most), max(top, 1), entries.where, decoder, whole=whole)

    def _read(
        self, entries: Sequence[Any], top: int, where: str, decoder: codecs.IncrementalDecoder, *, whole: bool
    ) -> list[Row]:
        """The rows of a list of tokens; ``whole`` if the answer ends with them."""
        rows = []
        for place, entry in enumerate(entries):
            rows.append(self._row(entry, decoder, top, f"{where}[{place}]"))
        if whole and rows and (left := decoder.decode(b"", final=True)):
            rows[-1] = replace(rows[-1], text=f"{rows[-1].text}{left}")
        return rows

    def _row(self, entry: Any, decoder: codecs.IncrementalDecoder, top: int, where: str) -> Row:
        others = entry.get("top_logprobs") if isinstance(entry, dict) else None
        if not isinstance(others, list) or len(others) > top:
            raise EngineResponseError(f"{where} has no list of at most the {top} alternatives that were requested.")
        vocabulary = self.server.more.get("vocabulary")
        listed = sorted((self._alternative(each, vocabulary, where) for each in others), key=lambda each: -each.value)
        token, value = token_id(entry.get("id"), where, vocabulary), real(entry.get("logprob"), where)
        raw = bytes(_bytes(entry, where))
        own = next((each.raw for each in listed if each.id == token and each.raw is not None), raw)
        # Its bytes are those of the text that it completes, or none if that is held back: its own are elsewhere.
        text = decoder.decode(raw if raw.endswith(own) else own)
        full = whole_row(listed, vocabulary)  # where all came, their entropy is known
        return Row(value, token, text, top=tuple(each for each in listed if each.value > FLOOR), full=full)

    @staticmethod
    def _alternative(entry: Any, vocabulary: int | None, where: str) -> Alternative:
        if not isinstance(entry, dict):
            raise EngineResponseError(f"{where} holds an alternative that is not an object.")
        raw = bytes(_bytes(entry, where))
        value, token = real(entry.get("logprob"), where), token_id(entry.get("id"), where, vocabulary)
        return Alternative(value, token, raw.decode("utf-8", "replace"), raw)


def aligned(ids: Sequence[int], rows: Sequence[Row]) -> list[Row]:
    """The rows of all tokens that were generated: those that the server sent, and one without numbers for each other.

    From the end, because tokens are lost before the one that completes their character.
    """
    found: list[Row] = []
    left = list(rows)
    for each in reversed(ids):
        found.append(left.pop() if left and left[-1].id == each else lost_row(each))
    if left:
        raise EngineResponseError(
            f"llama.cpp sent a row of token {left[-1].id}, which is not among its tokens in order."
        )
    return found[::-1]


def _listed(drawn: Row, token: int, most: int) -> Row | None:
    """The row of a token among those that are listed beside the one that was drawn; None if it is not."""
    place = next((place for place, each in enumerate(drawn.top) if each.id == token), None)
    if place is None:
        return None
    own = drawn.top[place]
    return Row(own.value, token, own.text, place, drawn.top[:most], drawn.full)


def _obeying(constraint: Constraint | None) -> dict[str, Any]:
    """The field that makes an answer obey a constraint; none without one."""
    if constraint is None:
        return {}
    return {"json_schema" if constraint.kind == "schema" else "grammar": constraint.value}


def _answer(reply: Node, rows: Sequence[Row]) -> Answer:
    """An answer or a piece of one. A stop string belongs to the answer, as in transformers."""
    stop = reply.get("stopping_word")
    ended = reply.get("stop_type")
    reason = "" if ended is None else "length" if ended.string() == "limit" else "stop"
    text = reply["content"].string() + ("" if stop is None else stop.string())
    return Answer(text, reason, rows, usage=Usage(reply.count("tokens_evaluated"), reply.count("tokens_predicted")))


def _small(conversation: Conversation) -> Conversation:
    """The conversation with images of one pixel: where they stand, whatever they show."""
    pixel = ImagePart(Image.new("RGB", (1, 1)))
    messages = tuple(
        replace(message, parts=tuple(pixel if isinstance(part, ImagePart) else part for part in message.parts))
        for message in conversation.messages
    )
    return replace(conversation, messages=messages)


def _bytes(entry: Any, where: str) -> list[int]:
    found = entry.get("bytes") if isinstance(entry, dict) else None
    valid = isinstance(found, list) and all(isinstance(each, int) and 0 <= each < 256 for each in found)
    if not valid or found is None:
        raise EngineResponseError(f"{where} holds a token without its bytes.")
    return found


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None
