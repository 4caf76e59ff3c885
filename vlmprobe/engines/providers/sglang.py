"""SGLang's own ``/generate``: ids, alternatives without limit, prompt log-probabilities, candidates and streams.

Written from the source of 0.5.23, and compared with it on a CPU, without its GPU kernels. At image positions SGLang
reports id 0 and the log-probability of the last token of the vocabulary: those positions are found here by encoding the
prompt with the model's own processor, and masked. Id 0 elsewhere may stand for another id too: such a row then has no
number.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np

from vlmprobe.adapter import Continuation, EncodedPrompt
from vlmprobe.engines.base import Options
from vlmprobe.engines.constraint import Constraint
from vlmprobe.engines.providers.prompt_text import begun_by_server, encoded_prompt, written_prompt
from vlmprobe.engines.serving import BASIC, Abilities, Alternative, Answer, Decoding, Facts, Node, Row, Server, Usage
from vlmprobe.engines.serving.answer import EVERY_PROMPT, Scored
from vlmprobe.engines.serving.base import StreamedEngine
from vlmprobe.engines.serving.http.reply import real, token_id
from vlmprobe.engines.serving.image_encoding import data_url
from vlmprobe.engines.serving.rows import whole_row
from vlmprobe.engines.serving.value_kind import FLOOR
from vlmprobe.errors import CapabilityError, EngineResponseError, VlmprobeWarning, outside
from vlmprobe.inputs.messages import Conversation
from vlmprobe.results.result import Scores

__all__ = ["SGLang"]

PATH = "/generate"
MOST_PENALTY = 2.0  # of repetition
BY_CHOICE = "chosen ids"  # how candidates of one token were scored, in meta
ALL = -1  # SGLang's value for no top-k
INCREMENTAL = "incremental_streaming_output"  # a flag, as the server names it
SEEDED = "enable_deterministic_inference"
NO_SEED = (
    "SGLang draws by the seed of a request only with --enable-deterministic-inference: the answer cannot be repeated"
)
EVENTS = 256  # of a stream, about: each repeats the answer so far, so that one for each token would grow by the square


class SGLang(StreamedEngine):
    """An SGLang server. Its numbers include temperature and penalties, but not top-k and top-p.

    With ``SGLANG_RETURN_ORIGINAL_LOGPROB=1`` they are raw; no reply says so, so short requests determine it.
    """

    title = "SGLang"
    abilities = Abilities(
        takes=BASIC | {"top_k", "min_p", "repetition_penalty", "min_new_tokens", "stop_strings", "eos_token_id"},
        prompt=EVERY_PROMPT,
        constraints=frozenset({"schema", "grammar"}),
    )

    @classmethod
    async def recognise(cls, facts: Facts) -> Server | None:
        """A server that answers ``/model_info`` as SGLang does."""
        info = await facts.get("/model_info") or await facts.get("/get_model_info")
        if not isinstance(info, dict) or not isinstance(info.get("model_path"), str) or "is_generation" not in info:
            return None
        told = await facts.get("/server_info") or await facts.get("/get_server_info")
        version = told.get("version") if isinstance(told, dict) else None
        entries = await facts.models()
        names = tuple(str(each["id"]) for each in entries if "id" in each) or (info["model_path"],)
        context = entries[0].get("max_model_len") if entries else None
        return Server(
            version=version if isinstance(version, str) else None,
            models=names,
            context=context if isinstance(context, int) else None,
            root=info["model_path"],
            more={flag: isinstance(told, dict) and told.get(flag) is True for flag in (INCREMENTAL, SEEDED)},
        )

    def check(self, conversations: Sequence[Conversation], options: Options) -> None:
        """Validate a request before it is sent."""
        self.tokens.need("A prompt for SGLang's /generate")
        super().check(conversations, options)
        penalty = self.decoding(options).repetition_penalty
        if penalty != 1 and not 0 < penalty <= MOST_PENALTY:
            raise CapabilityError(f"SGLang takes a repetition_penalty of at most {MOST_PENALTY}, not {penalty}.")
        if penalty != 1:
            warnings.warn(
                "SGLang's repetition_penalty counts the tokens of the answer only, and that of transformers those of "
                "the prompt too: other tokens may be drawn than by a model opened with vlmprobe.load.",
                VlmprobeWarning,
                stacklevel=outside(),
            )

    def score(self, conversation: Conversation, candidates: Sequence[str], options: Options) -> Scores:
        """Score each candidate as the answer to the conversation."""
        self.check([conversation], options)
        return super().score(conversation, candidates, options)

    async def answer(self, conversation: Conversation, decoding: Decoding, options: Options) -> Answer:
        """Send one request."""
        request = await self._generation(conversation, decoding, options)
        prompt = None
        if options.prompt:
            prompt = await encoded_prompt(self.tokens.need("A prompt for SGLang's /generate"), conversation)
            request["logprob_start_len"] = 0
        reply = Node(await self.client.post(PATH, request), self.title)
        meta = reply["meta_info"]
        reason, ids = _finish_reason(meta, self.title), _ids(reply, decoding)
        before = None if prompt is None else self._prompt_rows(meta, prompt, options.alternatives)
        return Answer(
            reply["text"].string(),
            reason,
            self._rows(meta, "output", ids, options.alternatives),
            None if prompt is None else prompt.ids,
            before,
            None if prompt is None else prompt.spans,
            meta=self._told(decoding, options),
            usage=_usage(meta),
        )

    async def pieces(
        self, conversation: Conversation, decoding: Decoding, options: Options
    ) -> AsyncGenerator[Answer, None]:
        """The same, streamed, without the prompt side."""
        request = await self._generation(conversation, decoding, options) | {"stream": True}
        if not self.server.more.get(INCREMENTAL):
            request["sampling_params"]["stream_interval"] = 1 + decoding.max_new_tokens // EVENTS
        count, said = 0, ""
        async with aclosing(self.client.events(PATH, request)) as events:
            async for event in events:
                reply = Node(event, self.title)
                meta = reply["meta_info"]
                reason = _finish_reason(meta, self.title) if meta.get("finish_reason") else ""
                ids, text = _ids(reply, decoding), reply["text"].string()
                # An event holds the answer so far, or what is new where the server streams incrementally.
                if meta["completion_tokens"].integer() == len(ids):
                    if not text.startswith(said) or len(ids) < count:
                        raise EngineResponseError(f"{self.title}: an event takes back what those before it said.")
                    rows = self._rows(meta, "output", ids, options.alternatives, count)
                    text, said = text[len(said) :], text
                else:
                    rows, said = self._rows(meta, "output", ids, options.alternatives), said + text
                count += len(rows)
                yield Answer(text, reason, rows, meta=self._told(decoding, options), usage=_usage(meta))

    async def candidates(
        self, conversation: Conversation, candidates: Sequence[str], options: Options
    ) -> tuple[list[Scored], dict[str, Any]]:
        """Candidates of one token in one request; each longer one as the end of a prompt of its own."""
        adapter = self.tokens.need("A prompt for SGLang's /generate")
        prompt = await encoded_prompt(adapter, conversation)
        text = begun_by_server(adapter, (await written_prompt(adapter, conversation, self.title))[0])
        after = [adapter.continuation(prompt, each) for each in candidates]
        first = [int(each.ids[0]) for each in after if len(each.ids) == 1 and each.shared == len(prompt.ids)]
        chosen = await self._chosen(conversation, text, prompt, first, options.alternatives) if len(first) > 1 else {}

        async def one(candidate: str, found: Continuation) -> Scored:
            whole = np.concatenate([prompt.ids[: found.shared], found.ids])
            before = tuple(map(int, whole[: found.shared]))
            if chosen and len(found.ids) == 1 and found.shared == len(prompt.ids):
                return Scored([chosen[int(found.ids[0])]], found.shared, None, before)
            request = await self._request(conversation, {"max_new_tokens": 0, "temperature": 0.0}, options.alternatives)
            request |= {"text": text + candidate, "logprob_start_len": 0}
            reply = Node(await self.client.post(PATH, request), self.title)
            joint = EncodedPrompt(whole, prompt.spans, "")
            rows = self._prompt_rows(reply["meta_info"], joint, options.alternatives)
            lost = len(prompt.ids) - found.shared
            told = f"the last {lost} prompt token(s) merge with the candidate: scored from position {found.shared}"
            return Scored(rows[found.shared :], found.shared, told if lost else None, before)

        scored = await asyncio.gather(*(one(*each) for each in zip(candidates, after, strict=True)))
        return list(scored), {"prefix": "recomputed", **({"candidates": BY_CHOICE} if chosen else {})}

    async def _chosen(
        self, conversation: Conversation, text: str, prompt: EncodedPrompt, ids: list[int], top: int
    ) -> dict[int, Row]:
        """The rows of tokens directly after a prompt; none from a server that does not know ``token_ids_logprob``."""
        sampling = _sampling(Decoding(max_new_tokens=1), None)
        request = await self._request(conversation, sampling, top)
        request |= {"text": text, "logprob_start_len": 0, "token_ids_logprob": list(dict.fromkeys(ids))}
        meta = Node(await self.client.post(PATH, request), self.title)["meta_info"]
        self._prompt_rows(meta, prompt, top)  # raises if the server's prompt is another
        found = meta.get("output_token_ids_logprobs")
        if found is None:
            return {}
        listed = found[0]
        pairs = [_pair(each, listed.where) for each in listed.items(most=len(ids))]
        values = {token: value for value, token in pairs}
        tops = meta["output_top_logprobs"][0].items() if top else None
        if lost := [each for each in ids if values.get(each) is None]:
            raise EngineResponseError(f"{listed.where} does not hold the log-probabilities of the ids {lost[:8]}.")
        return {each: self._row([values[each], each], tops, each, top, listed.where) for each in ids}

    def _told(self, decoding: Decoding, options: Options) -> dict[str, Any]:
        unseeded = options.seed is not None and decoding.do_sample and not self.server.more.get(SEEDED)
        return {"absent": {"seed": NO_SEED}} if unseeded else {}

    async def _generation(self, conversation: Conversation, decoding: Decoding, options: Options) -> dict[str, Any]:
        """The request for an answer."""
        adapter = self.tokens.need("A prompt for SGLang's /generate")
        text = begun_by_server(adapter, (await written_prompt(adapter, conversation, self.title))[0])
        sampling = _sampling(decoding, options.seed, options.constraint)
        return await self._request(conversation, sampling, options.alternatives) | {"text": text}

    async def _request(self, conversation: Conversation, sampling: dict[str, Any], top: int) -> dict[str, Any]:
        images = [await data_url(each) for each in conversation.image_parts]
        return {
            "sampling_params": sampling,
            "return_logprob": True,
            "top_logprobs_num": min(top, self.tokens.listable or top),  # more than there are would end the server
            "stream": False,
            **({"image_data": images} if images else {}),
        }

    def _rows(self, meta: Node, side: str, ids: np.ndarray, top: int, after: int = 0) -> list[Row]:
        """Rows of ``output`` or ``input`` tokens, whose own ids are ``ids`` [T], from row ``after`` on."""
        entries = meta[f"{side}_token_logprobs"]
        listed = entries.items()
        tops = meta[f"{side}_top_logprobs"].items() if top else [None] * len(ids)
        if not len(listed) == len(tops) == len(ids):
            raise EngineResponseError(
                f"{entries.where} has {len(listed)} rows and {len(tops)} of alternatives for {len(ids)} tokens."
            )
        return [
            self._row(listed[place], tops[place], int(ids[place]), top, f"{entries.where}[{place}]")
            for place in range(after, len(ids))
        ]

    def _prompt_rows(self, meta: Node, prompt: EncodedPrompt, top: int) -> list[Row]:
        """Rows of a prompt; image positions hold nothing."""
        rows = self._rows(meta, "input", prompt.ids, top)
        masked = {place for span in prompt.spans for place in range(span.start, span.stop)}
        named = [entry[1] if isinstance(entry, list) else None for entry in meta["input_token_logprobs"].items()]
        for place, (found, due) in enumerate(zip(named, prompt.ids.tolist(), strict=True)):
            if place not in masked and found not in (due, 0):
                raise EngineResponseError(
                    f"{meta.where}: position {place} of the prompt is token {found}, but {due} in the prompt that "
                    "processor= makes. Is it the processor of the served model, with the same limits for images?"
                )
        return [
            row if place and place not in masked and found == row.id else Row(id=row.id)
            for place, (row, found) in enumerate(zip(rows, named, strict=True))
        ]

    def _row(self, entry: Any, others: Any, due: int, top: int, where: str) -> Row:
        value, _ = _pair(entry, where)
        listed = []
        for each in others or []:
            number, found = _pair(each, where)
            if number is not None and found is not None:
                listed.append(Alternative(number, found))
        if len(listed) > top:
            raise EngineResponseError(f"{where} has {len(listed)} alternatives where {top} were requested.")
        known = sorted((each for each in listed if each.value > FLOOR), key=lambda each: -each.value)
        return Row(value, due, top=tuple(known), full=whole_row(listed, self.tokens.vocabulary))


def _sampling(decoding: Decoding, seed: int | None, constraint: Constraint | None = None) -> dict[str, Any]:
    sampled = decoding.do_sample
    found: dict[str, Any] = {
        "max_new_tokens": decoding.max_new_tokens,
        "temperature": decoding.temperature if sampled else 0.0,
        "top_p": decoding.top_p if sampled else 1.0,
        "top_k": decoding.top_k if sampled and decoding.top_k > 0 else ALL,
        "min_p": decoding.min_p if sampled else 0.0,
        "repetition_penalty": decoding.repetition_penalty,
        "min_new_tokens": decoding.min_new_tokens,
    }
    if decoding.stop_strings:
        found |= {"stop": list(decoding.stop_strings), "no_stop_trim": True}  # it belongs to the answer
    if decoding.eos_token_id:
        found["stop_token_ids"] = list(decoding.eos_token_id)
    if seed is not None:
        found["sampling_seed"] = seed
    if constraint is not None:
        found["json_schema" if constraint.kind == "schema" else "ebnf"] = constraint.text
    return found


def _ids(reply: Node, decoding: Decoding) -> np.ndarray:
    """int64 [T]: ids of an answer, or of a part of it."""
    ids = reply["output_ids"].ids()
    if len(ids) > (most := decoding.max_new_tokens):
        raise EngineResponseError(f"{reply.where} has {len(ids)} output_ids where at most {most} were requested.")
    return ids


def _finish_reason(meta: Node, title: str) -> str:
    reason = meta["finish_reason"]["type"].string()
    if reason == "abort":
        raise EngineResponseError(f"{title} aborted the request: {meta['finish_reason'].value.get('message')}")
    return reason


def _usage(meta: Node) -> Usage:
    return Usage(meta.count("prompt_tokens"), meta.count("completion_tokens"))


def _pair(entry: Any, where: str) -> tuple[float | None, int | None]:
    if not isinstance(entry, list) or len(entry) < 2:
        raise EngineResponseError(f"{where} is not a list of a log-probability and an id.")
    value = None if entry[0] is None else real(entry[0], where)
    return value, token_id(entry[1], where)
