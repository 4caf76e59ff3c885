"""LMDeploy's ``api_server``: ids, chosen and most likely tokens of the answer; nothing of the prompt.

Written from the source of 0.16.0 and not run. Its two backends return different numbers. PyTorch, with
``--logprobs-mode``, returns raw ones. TurboMind returns them after temperature and filters, renormalised, so that those
of a greedy answer are always 0: there a greedy answer is refused, and only unfiltered sampling at temperature 1 has raw
numbers. No reply says which backend answered; three short requests determine it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vlmprobe.engines.base import Engine, Options
from vlmprobe.engines.providers import openai_chat
from vlmprobe.engines.serving import BASIC, Abilities, Alternative, Answer, Decoding, Facts, Meaning, Node, Row, Server
from vlmprobe.engines.serving.answer import Scored
from vlmprobe.engines.serving.base import TEXT, ServedEngine
from vlmprobe.engines.serving.value_kind import FLOOR, judge
from vlmprobe.errors import CapabilityError, EngineError, EngineResponseError
from vlmprobe.inputs.messages import Conversation, Message, TextPart

__all__ = ["LMDeploy"]

MOST = 1024
PROBED = 8  # alternatives of the probe requests
IN_PROCESS = "vlmprobe.load(MODEL, engine='lmdeploy') reads the raw logits of TurboMind"


class LMDeploy(ServedEngine):
    """An LMDeploy server. Its answers end before the end token, whose probability it does not send."""

    title = "LMDeploy"
    abilities = Abilities(
        alternatives=MOST,
        no_alternatives="LMDeploy keeps no more",
        no_prompt=f"its server returns nothing for prompts; {IN_PROCESS}, vLLM serves prompts",
        one_token="its server scores only text without images; vLLM scores candidates, and so does vlmprobe.load",
        no_logits=f"its server sends none; {IN_PROCESS}",
        takes=BASIC | {"top_k", "min_p", "repetition_penalty", "min_new_tokens", "stop_strings"},
    )
    filters: bool = False  # whether its numbers are those after the filters (TurboMind)

    @classmethod
    async def recognise(cls, facts: Facts) -> Server | None:
        """A server whose models are owned by LMDeploy."""
        entries = [each for each in await facts.models() if each.get("owned_by") == "lmdeploy" and "id" in each]
        return Server(models=tuple(str(each["id"]) for each in entries)) if entries else None

    @classmethod
    def in_process(cls, model: str, **options: Any) -> Engine:
        """``lmdeploy.pipeline`` in this process."""
        from vlmprobe.engines.providers.lmdeploy.in_process import LMDeployEngine

        return LMDeployEngine.open(model, **options)

    async def find_out(self) -> None:
        """Determine which of LMDeploy's backends answers, by whether a top-k of 2 shows in the numbers."""
        question = Conversation((Message("user", (TextPart(TEXT),)),))
        plain, hot, cut = (Decoding(1, True, temperature, top_k=k) for temperature, k in ((1.0, 0), (2.0, 0), (1.0, 2)))
        try:
            answers = await asyncio.gather(*(self._ask(question, each, 0, PROBED) for each in (plain, hot, cut)))
        except EngineError as error:
            if error.status == 400 and "logprobs" in str(error):
                raise CapabilityError(
                    "This LMDeploy server sends no log-probabilities: start it with --backend pytorch --logprobs-mode "
                    f"raw_logprobs; or {IN_PROCESS}."
                ) from error
            raise
        rows = [answer.output[0] if answer.output else Row() for answer in answers]
        values = [sorted((each.value for each in row.top), reverse=True) for row in rows]
        self.filters = len(values[2]) <= 2 < len(values[0])
        if self.meaning is None:
            found = judge(*values)
            self.meaning = Meaning("filtered") if self.filters else replace(found, kind="raw")

    async def first_answer(self, conversation: Conversation, options: Options) -> Answer:
        """Drawn at temperature 1 where the numbers are those after the filters."""
        return await self.answer(conversation, Decoding(max_new_tokens=1, do_sample=self.filters), options)

    async def candidates(
        self, conversation: Conversation, candidates: Sequence[str], options: Options
    ) -> tuple[list[Scored], dict[str, Any]]:
        """From the most likely tokens, which LMDeploy writes as pieces: without a tokenizer only ASCII can be read."""
        if not all(each.isascii() for each in candidates):
            self.tokens.need("To find candidates beyond ASCII among LMDeploy's tokens")
        return await super().candidates(conversation, candidates, options)

    async def answer(self, conversation: Conversation, decoding: Decoding, options: Options) -> Answer:
        """Send one request.

        Raises:
            CapabilityError: for a greedy answer from TurboMind.
        """
        if self.filters and not decoding.do_sample:
            raise CapabilityError(
                "LMDeploy's TurboMind returns probabilities only after its filters, and those of a greedy answer are "
                f"all 1: {IN_PROCESS}; or start the server with --backend pytorch --logprobs-mode raw_logprobs; or "
                "sample (do_sample=True)."
            )
        return await self._ask(conversation, decoding, options.seed, min(options.alternatives, MOST - 1))

    async def _ask(self, conversation: Conversation, decoding: Decoding, seed: int | None, top: int) -> Answer:
        request = await openai_chat.body(self.model, conversation, decoding, seed=seed, top=top + 1)
        sampled = decoding.do_sample
        request |= {
            "temperature": decoding.temperature if sampled else 1.0,
            "top_k": decoding.top_k if sampled else 1,  # LMDeploy always samples: top_k=1 makes it greedy
            "min_p": decoding.min_p if sampled else 0.0,
            "repetition_penalty": decoding.repetition_penalty,
            "min_new_tokens": decoding.min_new_tokens,
            "return_token_ids": True,
        }
        reply = Node(await self.client.post(openai_chat.PATH, request), self.title)
        choice = openai_chat.only_choice(reply)
        said = openai_chat.listed(choice, tokens=decoding.max_new_tokens, top=top + 1)
        ids = choice["output_ids"].ids()
        if len(ids) != len(said):
            raise EngineResponseError(f"{choice.where} has {len(ids)} output_ids and {len(said)} log-probabilities.")
        rows = [self._row(each, int(one), top) for each, one in zip(said, ids, strict=True)]
        return openai_chat.answer_of(reply, choice, rows)

    def _row(self, said: openai_chat.Said, own: int, top: int) -> Row:
        """Insert the chosen token among the alternatives, if none more likely can be missing."""
        others = [Alternative(value, *self._named(piece)) for piece, value in said.top if value > FLOOR]
        others.sort(key=lambda each: -each.value)
        chosen = Alternative(said.value, own, self._text(own, said.token))
        if said.value > FLOOR and (not others or said.value >= others[-1].value or len(others) < top):
            others = sorted([*others, chosen], key=lambda each: -each.value)
        return Row(said.value, own, chosen.text, top=tuple(others[: top + 1]))

    def _named(self, piece: str) -> tuple[int | None, str | None]:
        """Id and text of an alternative, which LMDeploy writes as the tokenizer's own piece (such as Ġcat)."""
        adapter = self.tokens.adapter
        if adapter is None:
            return None, piece
        found = adapter.tokenizer.convert_tokens_to_ids(piece)
        return (found, None) if isinstance(found, int) else (None, piece)

    def _text(self, own: int, piece: str) -> str | None:
        return None if self.tokens.detokenizer is not None else piece
