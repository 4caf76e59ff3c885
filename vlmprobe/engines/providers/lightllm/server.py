"""LightLLM: chosen tokens of the answer with their ids; prompt log-probabilities and candidates, with limits.

Written from the sources of August 2026 (87881ae7, "new") and July 2025 (fc72ffab, "old") and not run. It returns no
alternatives of the answer. Images appear in its prompts as ids of its own, from 100,000,000 on, which are masked. For a
prompt with images the new server can only return the most likely tokens of each position, since it looks up the
prompt's own token by those ids: where that is not among the top 128, only a bound is known. The old server returns
nothing for such a prompt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vlmprobe.engines.base import Options
from vlmprobe.engines.providers.lightllm.prompt import MOST, image_runs, prompt_rows
from vlmprobe.engines.providers.prompt_text import written_prompt
from vlmprobe.engines.serving import BASIC, Abilities, Answer, Decoding, Facts, Meaning, Node, Row, Server, Usage
from vlmprobe.engines.serving.answer import EVERY_PROMPT, Scored
from vlmprobe.engines.serving.base import TEXT, ServedEngine
from vlmprobe.engines.serving.http.reply import real, token_id
from vlmprobe.engines.serving.image_encoding import base64_of
from vlmprobe.engines.token_tables import boundary
from vlmprobe.errors import CapabilityError, EngineResponseError
from vlmprobe.inputs.messages import Conversation, Message, TextPart
from vlmprobe.results.result import Scores

__all__ = ["LightLLM"]

PATH = "/generate"
WOULD = "vLLM gives them"
OLD_IMAGES = "This version of LightLLM returns no log-probabilities for a prompt with images"
UPDATE = "update it and start it with --enable_prompt_logprobs, or use vLLM"
NEW_FLAG, OLD_FLAG = "--enable_prompt_logprobs", "--return_all_prompt_logprobs"


class LightLLM(ServedEngine):
    """A LightLLM server. Its numbers include temperature and penalties, but not top-k and top-p."""

    title = "LightLLM"
    abilities = Abilities(
        alternatives=0,
        no_alternatives=f"it returns the chosen token only; {WOULD}: start one for the model",
        takes=BASIC | {"top_k", "repetition_penalty", "min_new_tokens", "stop_strings"},
        prompt=EVERY_PROMPT,
    )

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.meaning = self.meaning or Meaning("tempered", clamped=False)
        self.new: bool = bool(self.server.more.get("new"))
        self._knows = self.new
        if self.new and not self.server.more.get("prompts"):
            self._without_prompts(NEW_FLAG)

    @classmethod
    async def recognise(cls, facts: Facts) -> Server | None:
        """Recognise the new server by its arguments, the old one by its model's name and by what it lacks."""
        named = await facts.get("/get_model_name")
        if not isinstance(named, dict) or not isinstance(named.get("model_name"), str):
            return None
        info = await facts.get("/get_server_info")
        info = info if isinstance(info, dict) else {}
        entries = await facts.models()
        names = tuple(str(each["id"]) for each in entries if "id" in each) or (named["model_name"],)
        context = entries[0].get("max_model_len") if entries else None
        root = info.get("model_dir")
        return Server(
            models=names,
            context=context if isinstance(context, int) else None,
            root=root if isinstance(root, str) else None,
            more={"new": "enable_prompt_logprobs" in info, "prompts": info.get("enable_prompt_logprobs") is True},
        )

    async def find_out(self) -> None:
        """Determine whether an old server returns prompt log-probabilities, which only a reply shows."""
        if self._knows:
            return
        question = Conversation((Message("user", (TextPart(TEXT),)),))
        reply = await self._ask(question, Decoding(max_new_tokens=1), Options(prompt=False), "")
        if reply.get("prompt_logprobs") is None:
            self._without_prompts(OLD_FLAG)
        self._knows = True

    def check(self, conversations: Sequence[Conversation], options: Options) -> None:
        """Validate a request before it is sent."""
        self.tokens.need("A prompt for LightLLM's /generate")
        wanted = options.prompt and "prompt" in options.demanded
        if wanted and not self._knows:
            self.run(_nothing())
        super().check(conversations, options)
        if wanted and not self.new and any(conversation.images for conversation in conversations):
            raise CapabilityError(f"{OLD_IMAGES}: {UPDATE}.")

    def score(self, conversation: Conversation, candidates: Sequence[str], options: Options) -> Scores:
        """Score each candidate as the answer to the conversation."""
        self.check([conversation], options)
        return super().score(conversation, candidates, options)

    async def answer(self, conversation: Conversation, decoding: Decoding, options: Options) -> Answer:
        """Send one request."""
        told = options.prompt and not self.abilities.no_prompt and (self.new or not conversation.images)
        reply = await self._ask(conversation, decoding, replace(options, prompt=told), "")
        tokens = reply["tokens"]
        listed = tokens.items(most=decoding.max_new_tokens)
        rows = [_row(entry, f"{tokens.where}[{place}]") for place, entry in enumerate(listed)]
        reason = reply["finish_reason"].string()
        if reason in ("abort", "error"):
            raise EngineResponseError(f"{self.title} aborted the request ({reason}); see its log.")
        parts = reply["generated_text"].items(most=1)
        text = Node(parts[0] if parts else None, f"{reply.where}.generated_text").string()
        absent = {"prompt": OLD_IMAGES} if options.prompt and conversation.images and not self.new else {}
        meta = {"absent": absent} if absent else {}
        usage = Usage(completion=reply.count("count_output_tokens"))
        if not told:
            return Answer(text, reason, rows, meta=meta, usage=usage)
        ids, spans, before = self._prompt(reply, conversation)
        return Answer(text, reason, rows, ids, before, spans, meta=meta, usage=usage)

    async def candidates(
        self, conversation: Conversation, candidates: Sequence[str], options: Options
    ) -> tuple[list[Scored], dict[str, Any]]:
        """Score each candidate as the end of a prompt."""
        asked = replace(options, prompt=True)
        one_token = Decoding(max_new_tokens=1)
        alone, *joint = await asyncio.gather(
            *(self._ask(conversation, one_token, asked, text) for text in ("", *candidates))
        )
        prompt = self._prompt(alone, conversation)[0]
        detokenizer = self.tokens.detokenizer
        assert detokenizer is not None  # check() has ensured it
        scored = []
        for candidate, reply in zip(candidates, joint, strict=True):
            ids, _, rows = self._prompt(reply, conversation)
            shortest = min(len(prompt), len(ids))
            differs = np.flatnonzero(prompt[:shortest] != ids[:shortest])
            start = int(differs[0]) if len(differs) else shortest
            lost = detokenizer.decode(prompt[start:].tolist())
            if detokenizer.decode(ids[start:].tolist()) != lost + candidate:
                raise EngineResponseError(
                    f"{self.title}: the prompt with the candidate {candidate!r} does not end in it."
                )
            merged = boundary(len(prompt) - start, lost, start)
            scored.append(Scored(rows[start:], start, merged, tuple(map(int, ids[:start]))))
        return scored, {"prefix": "recomputed"}

    async def _ask(self, conversation: Conversation, decoding: Decoding, options: Options, more: str) -> Node:
        adapter = self.tokens.need("A prompt for LightLLM's /generate")
        text, begun = await written_prompt(adapter, conversation, self.title)
        parameters = _sampling(decoding, options.seed)
        parameters |= {"return_details": True, "add_special_tokens": not begun, "disable_prompt_cache": True}
        if options.prompt and self.new:
            parameters["prompt_logprobs"] = MOST if conversation.images else 0
        images = [{"type": "base64", "data": await base64_of(part)} for part in conversation.image_parts]
        request: dict[str, Any] = {"inputs": text + more, "parameters": parameters}
        if images:
            request["multimodal_params"] = {"images": images}
        return Node(await self.client.post(PATH, request), self.title)

    def _prompt(self, reply: Node, conversation: Conversation) -> tuple[np.ndarray, Any, list[Row]]:
        """Ids with the model's own placeholder at image positions, the images' spans, and rows."""
        ids = reply["prompt_token_ids"].ids()
        spans = image_runs(ids, len(conversation.images), self.title)
        rows = prompt_rows(reply, ids, spans, listed=bool(conversation.images))
        if spans:
            known = self.tokens.image_ids
            if not known:
                raise CapabilityError("The image placeholder id of this model is not known: pass image_ids=.")
            ids = ids.copy()
            for span in spans:
                ids[span.start : span.stop] = min(known)
            rows = [replace(row, id=int(each)) for row, each in zip(rows, ids, strict=True)]
        return ids, spans, rows

    def _without_prompts(self, flag: str) -> None:
        why = f"it was started without {flag}"
        self.abilities = replace(self.abilities, no_prompt=why, no_score=why)


async def _nothing() -> None:
    return None


def _sampling(decoding: Decoding, seed: int | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "do_sample": decoding.do_sample,
        "max_new_tokens": decoding.max_new_tokens,
        "min_new_tokens": max(1, decoding.min_new_tokens),
        "repetition_penalty": decoding.repetition_penalty,
    }
    if decoding.do_sample:
        found |= {"temperature": decoding.temperature, "top_p": decoding.top_p}
        found["top_k"] = decoding.top_k if decoding.top_k > 0 else -1
    if decoding.stop_strings:
        found["stop_sequences"] = list(decoding.stop_strings)
    if seed is not None:
        found["seed"] = seed
    return found


def _row(entry: Any, where: str) -> Row:
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise EngineResponseError(f"{where} is not a token with id, text and log-probability.")
    return Row(real(entry.get("logprob"), where), token_id(entry.get("id"), where), entry["text"])
