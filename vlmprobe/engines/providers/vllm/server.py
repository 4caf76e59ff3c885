"""vLLM behind its OpenAI-compatible server: ids, alternatives, prompt log-probabilities, candidates, rerankers.

Written from the source of vLLM 0.32 and run against it. What its numbers mean is set for the whole server
(``--logprobs-mode``) and reported in no reply, so short requests determine it, and the maximum number of alternatives
(``--max-logprobs``).
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np

from vlmprobe.engines.base import Engine, Options
from vlmprobe.engines.providers import openai_chat
from vlmprobe.engines.providers.vllm.candidates import score_candidates, takes_ids
from vlmprobe.engines.providers.vllm.prompt import (
    CONSTRAINTS,
    as_message,
    prompt_fields,
    structured_outputs,
    token_of,
    vllm_prompt,
    vllm_row,
)
from vlmprobe.engines.providers.vllm.rank import rank_documents
from vlmprobe.engines.serving import BASIC, Abilities, Answer, Decoding, Facts, Meaning, Node, Row, Server
from vlmprobe.engines.serving.answer import EVERY_PROMPT, Scored
from vlmprobe.engines.serving.base import StreamedEngine
from vlmprobe.engines.serving.findings import Finding
from vlmprobe.engines.serving.http import background_loop
from vlmprobe.engines.serving.refusals import warn_unread
from vlmprobe.errors import CapabilityError, EngineError, EngineResponseError
from vlmprobe.inputs.messages import Conversation

__all__ = ["VLLM", "decoding_fields"]

UNLIMITED = 10**6  # more alternatives than any vocabulary has ids
LARGE = 1000  # alternatives: nobody sets such a limit
DEFAULT_MOST = 20  # of --max-logprobs
TOO_MANY = re.compile(r"(?:max(?:imum)? allowed|at most|vocab(?:ulary)?[ _]size)\D{0,20}(\d+)")
NO_PROMPT_IDS = "the stream came without the ids of the prompt: a proxy before vLLM drops them, and generate has them"
RAW_LOGITS = "start the server with --logprobs-mode raw_logits --max-logprobs -1"


class VLLM(StreamedEngine):
    """A vLLM server of a generative model, or of a reranker (``--runner pooling``), which can only rank."""

    title = "vLLM"
    abilities = Abilities(
        alternatives=DEFAULT_MOST,
        no_alternatives="start the server with a greater --max-logprobs",
        no_logits=RAW_LOGITS,
        takes=BASIC | {"top_k", "min_p", "repetition_penalty", "min_new_tokens", "stop_strings", "eos_token_id"},
        prompt=EVERY_PROMPT,
        constraints=CONSTRAINTS,
    )
    tokens_in: bool | None = None  # whether the server accepts ids (--enable-scale-out); None until tried
    full: bool = False  # whether it returns whole rows

    @classmethod
    async def recognise(cls, facts: Facts) -> Server | None:
        """A server whose models are owned by vLLM."""
        entries = [each for each in await facts.models() if each.get("owned_by") == "vllm" and "id" in each]
        if not entries:
            return None
        told = await facts.get("/version")
        version = told.get("version") if isinstance(told, dict) else None
        context, root = entries[0].get("max_model_len"), entries[0].get("root")
        return Server(
            version=version if isinstance(version, str) else None,
            models=tuple(str(each["id"]) for each in entries),
            context=context if isinstance(context, int) else None,
            root=root if isinstance(root, str) else None,
        )

    @classmethod
    def in_process(cls, model: str, **options: Any) -> Engine:
        """``vllm.LLM`` in this process."""
        from vlmprobe.engines.providers.vllm.in_process import VLLMEngine

        return VLLMEngine.open(model, **options)

    async def find_out(self) -> None:
        """Determine how many alternatives the server returns, and what its numbers mean."""
        given = self.meaning
        most = await self._most()
        self.full = most is None
        self.abilities = replace(self.abilities, alternatives=most, no_logits="" if self.full else RAW_LOGITS)
        found = await self.probed_meaning()
        self.meaning = found if given is None else Meaning(given.kind, found.logits)
        if self.full and not self.meaning.logits:
            self.abilities = replace(self.abilities, no_logits=RAW_LOGITS)

    def check(self, conversations: Sequence[Conversation], options: Options) -> None:
        """Validate a request before it is sent; what depends on the server's flags is determined first."""
        if "logits" in options.keep or ("alternatives" in options.demanded and options.alternatives > DEFAULT_MOST):
            self.know()
        super().check(conversations, options)
        if self.tokens.adapter is None:
            warn_unread(self.title, conversations, "pass processor= to vlmprobe.connect to have it checked")

    async def answer(self, conversation: Conversation, decoding: Decoding, options: Options) -> Answer:
        """Send one request over the chat route."""
        request, whole = await self._request(conversation, decoding, options)
        top, every = self.asked(options)
        if options.prompt:
            request["prompt_logprobs"] = -1 if every else min(options.alternatives, top)
        reply = Node(await self.client.post(openai_chat.PATH, request), self.title)
        choice = openai_chat.only_choice(reply)
        output = _rows(
            choice, openai_chat.listed(choice, tokens=decoding.max_new_tokens, top=_most(top, whole)), whole=whole
        )
        prompt_ids = reply["prompt_token_ids"].ids()
        prompt = None
        if options.prompt:
            texts = not request["return_tokens_as_token_ids"]
            prompt = vllm_prompt(reply, prompt_ids, self.tokens.image_ids, None if every else top, texts=texts)
        return openai_chat.answer_of(reply, choice, output, prompt_ids=prompt_ids, prompt=prompt, meta=self.told())

    async def pieces(
        self, conversation: Conversation, decoding: Decoding, options: Options
    ) -> AsyncGenerator[Answer, None]:
        """The same, streamed; vLLM streams no log-probabilities of the prompt."""
        request, whole = await self._request(conversation, decoding, options)
        most = _most(self.asked(options)[0], whole)
        async with aclosing(
            openai_chat.pieces(self.client, request, self.title, tokens=decoding.max_new_tokens, top=most)
        ) as pieces:
            first = True
            async for reply, choice, said in pieces:
                usage = openai_chat.usage_of(reply)
                if choice is None:
                    yield Answer("", "", [], usage=usage)
                    continue
                prompt = reply.get("prompt_token_ids")
                rows = _rows(choice, said, whole=whole) if said or _token_ids(choice) else []
                ids = None if prompt is None else prompt.ids()
                told = {"absent": {"input_ids": NO_PROMPT_IDS}} if first and ids is None else {}
                first = False
                yield Answer(
                    openai_chat.text_of(choice),
                    openai_chat.finish_reason(choice),
                    rows,
                    ids,
                    meta={**self.told(), **told},
                    usage=usage,
                    reasoning=openai_chat.reasoning_of(choice),
                )

    async def _request(
        self, conversation: Conversation, decoding: Decoding, options: Options
    ) -> tuple[dict[str, Any], bool]:
        """The request's body, and whether whole rows come back."""
        conversation = as_message(conversation, self.tokens)
        top, every = self.asked(options)
        # A logit alone gives no probability: from a server that returns logits, whole rows are read.
        whole = every or (self.full and self.meaning is not None and self.meaning.logits)
        by_id = self.tokens.detokenizer is not None or whole
        request = await openai_chat.body(
            self.model, conversation, decoding, seed=options.seed, top=-1 if whole else top
        )
        request |= decoding_fields(decoding) | {"return_token_ids": True, "return_tokens_as_token_ids": by_id}
        if options.constraint is not None:
            request["structured_outputs"] = structured_outputs(options.constraint)
        return request | prompt_fields(conversation, self.tokens), whole

    async def candidates(
        self, conversation: Conversation, candidates: Sequence[str], options: Options
    ) -> tuple[list[Scored], dict[str, Any]]:
        """The rows of each candidate: see ``candidates.py``."""
        if self.meaning is not None and self.meaning.logits and "logits" not in options.keep:
            raise CapabilityError(
                "This vLLM server returns logits, and a log-probability needs the whole row of them: score with "
                'keep="logits", or start the server with --logprobs-mode raw_logprobs.'
            )
        spoken = as_message(conversation, self.tokens)
        scored, told = await score_candidates(self, spoken, candidates, options)
        return scored, {**self.told(), **told}

    def rank(self, query: Any, documents: Sequence[Any], **options: Any) -> np.ndarray:
        """float64 [D]: relevance of each document to a query, from a reranker server; see ``rank.py``."""
        asked = [Conversation.build(each) for each in (query, *documents)]
        return np.array(background_loop.run(rank_documents(self.client, self.model, asked[0], asked[1:], **options)))

    async def without_chat(self, error: EngineError) -> list[Finding]:
        """A reranker cannot generate, but can rank."""
        pair = Conversation.build("a cat"), [Conversation.build("a cat"), Conversation.build("a dog")]
        try:
            await rank_documents(self.client, self.model, *pair)
        except (EngineError, CapabilityError):
            return await super().without_chat(error)
        return [Finding("ranking", "yes", "a reranker: probe.rank(query, documents); it does not generate")]

    async def further_findings(self) -> list[Finding]:
        """Whether ids are accepted, and which flags would enable more."""
        takes = await takes_ids(self)
        what, remedy = "exact across any boundary", "" if takes else "--enable-scale-out"
        if not takes and self.server.version is None:
            what, remedy = f"{what}; the proxy before vLLM has no route for them: connect to vLLM itself", ""
        found = [Finding("candidates by ids", "yes" if takes else "no", what, remedy)]
        meaning = self.meaning or Meaning()
        if meaning.kind in ("tempered", "filtered"):
            found.append(Finding("raw numbers", "no", f"the mode is {meaning.mode}", "--logprobs-mode raw_logprobs"))
        elif meaning.logits and not self.full:
            found.append(Finding("log-probabilities", "no", "logits without the whole vocabulary", "--max-logprobs -1"))
        lacking = self.abilities.no_logits
        found.append(Finding('full rows (keep="logits")', "no" if lacking else "yes", lacking))
        return found

    # -- what the flags of the server allow --------------------------------------------------------

    def know(self) -> None:
        """Determine now what would otherwise be determined with the first request."""

        async def nothing() -> None:
            return None

        self.run(nothing())

    def asked(self, options: Options) -> tuple[int, bool]:
        """How many alternatives to request, and whether that is the whole vocabulary."""
        if "logits" in options.keep:
            return -1, True
        most = self.abilities.alternatives
        # The drawn token is among them, so one more is requested if the server allows it.
        wanted = options.alternatives + 1
        return (wanted if most is None else min(wanted, most)), False

    def told(self) -> dict[str, Any]:
        """What ``meta`` records of the server's flags."""
        return {"logprobs_mode": self.meaning.mode} if self.meaning is not None else {}

    async def _most(self) -> int | None:
        """The maximum number of alternatives; None if the whole vocabulary is available."""
        refused = await self._refused(UNLIMITED)
        if refused is None:
            return None
        found = TOO_MANY.search(refused)
        most = int(found[1]) if found else DEFAULT_MOST
        # Without a limit the server reports its vocabulary's size; a small number could also be a limit.
        whole = most >= LARGE or await self._refused(-1) is None
        return None if whole else most

    async def _refused(self, top: int) -> str | None:
        """The server's error for so many alternatives, or None if it returns them."""
        request = {
            "model": self.model,
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 1,
            "logprobs": True,
            "top_logprobs": top,
        }
        try:
            await self.client.post(openai_chat.PATH, request)
        except EngineError as error:
            if error.status != 400:
                raise
            return str(error)
        return None


def decoding_fields(decoding: Decoding) -> dict[str, Any]:
    """vLLM's own fields of a request; each is sent, or the checkpoint's generation config would apply."""
    return {
        "top_k": decoding.top_k if decoding.do_sample and decoding.top_k else -1,
        "min_p": decoding.min_p if decoding.do_sample else 0.0,
        "repetition_penalty": decoding.repetition_penalty,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "min_tokens": decoding.min_new_tokens,
        "stop_token_ids": list(decoding.eos_token_id),
        # A stop string belongs to the answer, as in transformers.
        **({"include_stop_str_in_output": True} if decoding.stop_strings else {}),
    }


def _most(top: int, whole: bool) -> int | None:
    """How many alternatives may come back: the drawn token precedes the requested ones."""
    return None if whole else top + 1


def _token_ids(choice: Node) -> Node | None:
    """The ids of an answer; LiteLLM moves fields that are not OpenAI's into an object of its own."""
    moved = choice.get("provider_specific_fields")
    return choice.get("token_ids") or (None if moved is None else moved.get("token_ids"))


def _rows(choice: Node, said: Sequence[openai_chat.Said], *, whole: bool) -> list[Row]:
    found = _token_ids(choice)
    if found is None:  # a token's name tells its id where names of that kind were asked for
        return [vllm_row(each, token_of(each.token), whole=whole) for each in said]
    ids = found.ids()
    if len(ids) != len(said):
        raise EngineResponseError(f"{choice.where} has {len(ids)} token_ids and {len(said)} log-probabilities.")
    return [vllm_row(each, int(token), whole=whole) for each, token in zip(said, ids, strict=True)]
