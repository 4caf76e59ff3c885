"""llama.cpp's server: ids, true bytes and any number of alternatives of the answer; nothing of the prompt.

Written from its source as of August 2026 (build 10488) and not run. Uses the chat route, since the server knows the
template of its GGUF file. Its log-probabilities are of the raw logits, whatever the sampling (``post_sampling_probs``
is never requested).
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from vlmprobe.engines.base import Options
from vlmprobe.engines.providers import openai_chat
from vlmprobe.engines.serving import BASIC, Abilities, Alternative, Answer, Decoding, Facts, Meaning, Node, Row, Server
from vlmprobe.engines.serving.base import ServedEngine
from vlmprobe.engines.serving.http.reply import real, token_id
from vlmprobe.engines.serving.refusals import warn_unread
from vlmprobe.engines.serving.value_kind import FLOOR
from vlmprobe.errors import EngineResponseError
from vlmprobe.inputs.chat_templates import require_variables
from vlmprobe.inputs.messages import Conversation

__all__ = ["LlamaCpp"]

PLAIN, FORCE = "a", 1000.0  # a text of one token, and what is added to its logit to draw it
WOULD = "vLLM does, or open the checkpoint with vlmprobe.load"


class LlamaCpp(ServedEngine):
    """``llama-server`` with a vision projector (``--mmproj``)."""

    title = "llama.cpp"
    abilities = Abilities(
        no_prompt=f"llama-server has no log-probabilities of prompts; {WOULD}",
        one_token=f"llama-server cannot score given text; {WOULD}",
        takes=BASIC | {"top_k", "min_p", "repetition_penalty", "stop_strings"},
        prompt=frozenset({"chat_template_kwargs"}),
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
            | {"template": _string(props.get("chat_template"))},
        )

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.meaning = self.meaning or Meaning("raw")
        if not self.server.more.get("sees", True):
            from dataclasses import replace

            self.abilities = replace(self.abilities, images=False)

    def check(self, conversations: Sequence[Conversation], options: Options) -> None:
        """Validate a request before it is sent; the server reports the template that reads ``chat_template_kwargs``."""
        super().check(conversations, options)
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
        top = options.alternatives
        request = await openai_chat.body(self.model, conversation, decoding, seed=options.seed, top=top)
        request |= {
            "top_k": decoding.top_k if decoding.do_sample else 0,
            "min_p": decoding.min_p if decoding.do_sample else 0.0,
            "repeat_penalty": decoding.repetition_penalty,
            "cache_prompt": True,
            **more,
        }
        if conversation.format.chat_template_kwargs:
            request["chat_template_kwargs"] = dict(conversation.format.chat_template_kwargs)
        reply = Node(await self.client.post(openai_chat.PATH, request), self.title)
        choice = openai_chat.only_choice(reply)
        entries = choice["logprobs"]["content"]
        listed = entries.items(most=decoding.max_new_tokens)
        texts = texts_of_bytes([_bytes(each, entries.where) for each in listed])
        rows = [
            self._row(entry, text, top, f"{entries.where}[{place}]")
            for place, (entry, text) in enumerate(zip(listed, texts, strict=True))
        ]
        return Answer(openai_chat.text_of(choice), openai_chat.finish_reason(choice), rows)

    def _row(self, entry: Any, text: str, top: int, where: str) -> Row:
        others = entry.get("top_logprobs")
        if not isinstance(others, list) or len(others) > top:
            raise EngineResponseError(f"{where} has no list of at most the {top} alternatives that were requested.")
        vocabulary = self.server.more.get("vocabulary")
        listed = sorted((self._alternative(each, vocabulary, where) for each in others), key=lambda each: -each.value)
        return Row(
            real(entry.get("logprob"), where),
            token_id(entry.get("id"), where, vocabulary),
            text,
            top=tuple(each for each in listed if each.value > FLOOR),
        )

    @staticmethod
    def _alternative(entry: Any, vocabulary: int | None, where: str) -> Alternative:
        if not isinstance(entry, dict):
            raise EngineResponseError(f"{where} holds an alternative that is not an object.")
        text = bytes(_bytes(entry, where)).decode("utf-8", "replace")
        return Alternative(real(entry.get("logprob"), where), token_id(entry.get("id"), where, vocabulary), text)


def _bytes(entry: Any, where: str) -> list[int]:
    found = entry.get("bytes") if isinstance(entry, dict) else None
    valid = isinstance(found, list) and all(isinstance(each, int) and 0 <= each < 256 for each in found)
    if not valid or found is None:
        raise EngineResponseError(f"{where} holds a token without its bytes.")
    return found


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def texts_of_bytes(tokens: Sequence[Sequence[int]]) -> list[str]:
    """The text of each token; a character that spans tokens is in the one that completes it.

    Invalid UTF-8 shows as replacement characters, in the token after which that is certain.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    last = len(tokens) - 1
    return [decoder.decode(bytes(each), final=place == last) for place, each in enumerate(tokens)]
