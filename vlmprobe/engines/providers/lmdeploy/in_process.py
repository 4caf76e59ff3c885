"""LMDeploy's TurboMind in this process: ``vlmprobe.load(MODEL, engine="lmdeploy")``.

Written from the source of 0.16.0 and not run, since it needs CUDA. It returns the raw logits of what it generates, from
which every column is computed. It does not return the ids of its prompts, so there is no prompt side, and its answers
stop before the end token.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vlmprobe.engines.base import Options
from vlmprobe.engines.serving import BASIC, Abilities, Answer, Decoding, Meaning, Row, Tokens
from vlmprobe.engines.serving.answer import Scored
from vlmprobe.engines.serving.first_token import rows_in_full, sought
from vlmprobe.engines.serving.refusals import refuse
from vlmprobe.engines.serving.results import result_of, scores_of
from vlmprobe.errors import (
    CapabilityError,
    EngineError,
    EngineResponseError,
    GenerationOptionError,
    NonFiniteLogitsError,
)
from vlmprobe.inputs.messages import Conversation, ImagePart, TextPart
from vlmprobe.results.result import Result, Scores

__all__ = ["LMDeployEngine"]

TITLE = "LMDeploy in this process"
LOCAL = "open the checkpoint with vlmprobe.load and no engine"
INSTALL = "pip install lmdeploy (Linux and CUDA), in an environment where vlmprobe is installed too"
RESERVED = ("trust_remote_code", "backend_config", "chat_template_config")


class LMDeployEngine:
    """A ``lmdeploy.pipeline`` on TurboMind. Calls from several threads are serialised."""

    abilities = Abilities(
        no_prompt=f"LMDeploy does not return the ids of its prompts; {LOCAL}",
        one_token=f"LMDeploy does not return the ids of its prompts; {LOCAL}",
        no_logits="",
        takes=BASIC | {"top_k", "min_p", "repetition_penalty", "min_new_tokens", "stop_strings"},
    )

    def __init__(self, pipe: Any, tokens: Tokens) -> None:
        self.pipe = pipe
        self.tokens = tokens
        self.meaning = Meaning("raw", logits=True)
        self._turn = threading.Lock()

    @classmethod
    def open(cls, model: str, *, processor: Any = None, **options: Any) -> LMDeployEngine:
        """Start TurboMind on a checkpoint.

        Args:
            model: a folder or hub id.
            processor: as in ``vlmprobe.connect``; LMDeploy's own tokenizer where None.
            **options: of ``lmdeploy.TurbomindEngineConfig``: ``dtype``, ``tp``, ``session_len``, ...

        Raises:
            CapabilityError: if LMDeploy is not installed.
            GenerationOptionError: for an option that TurboMind does not have, or that a probe sets itself.
        """
        for name in RESERVED:
            if options.get(name):
                raise GenerationOptionError(f"{name} cannot be passed: a probe sets it")
        try:
            import lmdeploy
        except ImportError as error:
            raise CapabilityError(
                f"LMDeploy is not installed here: {INSTALL}; or start its server and use vlmprobe.connect."
            ) from error
        try:
            config = lmdeploy.TurbomindEngineConfig(**options)
        except TypeError as error:
            raise GenerationOptionError(f"TurboMind does not take this: {error}") from error
        pipe = lmdeploy.pipeline(model, backend_config=config, trust_remote_code=False)
        known = pipe.async_engine.tokenizer.model.model if processor is None else processor
        return cls(pipe, Tokens.of(known))

    # -- the protocol of engines -------------------------------------------------------------------

    def check(self, conversations: Sequence[Conversation], options: Options) -> None:
        """Validate a request before anything runs."""
        refuse(TITLE, self.abilities, conversations, options)
        self._decoding(options)

    def batch_size(self, wanted: int, options: Options) -> int:
        """LMDeploy schedules requests itself, and they do not affect each other."""
        return wanted

    def generate(self, conversations: Sequence[Conversation], options: Options) -> list[Result]:
        """Answer the conversations together."""
        decoding = self._decoding(options)
        started = time.perf_counter()
        replies = self._replies(conversations, decoding, options.seed)
        meta = {"batch_size": len(conversations), "timings": {"generate_s": time.perf_counter() - started}}
        return [
            self._result(reply, conversation, decoding, options, meta)
            for reply, conversation in zip(replies, conversations, strict=True)
        ]

    def score(self, conversation: Conversation, candidates: Sequence[str], options: Options) -> Scores:
        """Score each candidate of one token by the logits of the first position of the answer.

        One of several tokens has no log-probability, but is at most as likely as its first token.
        """
        started = time.perf_counter()
        reply = self._replies([conversation], Decoding(max_new_tokens=1), options.seed)[0]
        rows = self._rows(reply)
        if not rows:
            raise EngineResponseError(f"{TITLE} gives no row for an answer that ends at once.")
        found = [rows_in_full(each, rows[0]) for each in sought(self.tokens, conversation, candidates)]
        scores = scores_of(
            [Scored(each, -1) for each in found],
            conversation,
            candidates,
            options,
            title=TITLE,
            meaning=self.meaning,
            tokens=self.tokens,
            meta={"timings": {"score_s": time.perf_counter() - started}},
        )
        if "logits" in options.keep:
            return scores
        return replace(scores, tables=[replace(table, logits=None) for table in scores.tables])

    # -- LMDeploy's side ---------------------------------------------------------------------------

    def _replies(self, conversations: Sequence[Conversation], decoding: Decoding, seed: int | None) -> Sequence[Any]:
        from lmdeploy import GenerationConfig

        config = GenerationConfig(**_fields(decoding, seed), output_logits="generation")
        with self._turn:
            replies: Sequence[Any] = self.pipe([_messages(each) for each in conversations], gen_config=config)
        if len(replies) != len(conversations):
            raise EngineResponseError(f"{TITLE} returned {len(replies)} answers to {len(conversations)} requests.")
        return replies

    def _decoding(self, options: Options) -> Decoding:
        return Decoding.read(options.generation, self.abilities.takes, TITLE)

    @staticmethod
    def _rows(reply: Any) -> list[Row]:
        """The generated tokens, each with its full row of logits."""
        if reply.finish_reason not in ("stop", "length"):
            raise EngineError(f"{TITLE} failed on a request: {getattr(reply, 'error_message', None) or 'see its log'}.")
        ids = [int(each) for each in reply.token_ids or ()]
        if ids and reply.logits is None:
            raise CapabilityError(
                "LMDeploy ran this model on its PyTorch engine, which returns no logits: TurboMind does not support "
                f"the model. {LOCAL[0].upper()}{LOCAL[1:]}, or with engine='vllm'."
            )
        logits = reply.logits.float().cpu().numpy() if ids else np.zeros((0, 1), np.float32)
        if len(logits) != len(ids):
            raise EngineResponseError(f"{TITLE} returned {len(logits)} rows of logits for {len(ids)} tokens.")
        wrong = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(wrong):
            raise NonFiniteLogitsError(f"{TITLE}: the logits of generated token {wrong[0]} are NaN or infinite.")
        return [Row(float(row[each]), each, full=row) for each, row in zip(ids, logits, strict=True)]

    def _result(
        self, reply: Any, conversation: Conversation, decoding: Decoding, options: Options, meta: dict[str, Any]
    ) -> Result:
        rows = self._rows(reply)
        result = result_of(
            Answer(reply.text, reply.finish_reason, rows),
            conversation,
            decoding,
            options,
            title=TITLE,
            abilities=self.abilities,
            meaning=self.meaning,
            tokens=self.tokens,
            meta=meta,
        )
        if "logits" in options.keep:
            return result
        return replace(result, output=replace(result.output, logits=None))


def _fields(decoding: Decoding, seed: int | None) -> dict[str, Any]:
    drawn = decoding.do_sample
    return {
        "max_new_tokens": decoding.max_new_tokens,
        "do_sample": True,  # without it LMDeploy drops the penalties; top_k=1 makes it greedy
        "temperature": decoding.temperature if drawn else 1.0,
        "top_p": decoding.top_p if drawn else 1.0,
        "top_k": decoding.top_k if drawn else 1,
        "min_p": decoding.min_p if drawn else 0.0,
        "repetition_penalty": decoding.repetition_penalty,
        "min_new_tokens": decoding.min_new_tokens or None,
        "stop_words": list(decoding.stop_strings) or None,
        "random_seed": seed,
    }


def _messages(conversation: Conversation) -> list[dict[str, Any]]:
    return [
        {"role": message.role, "content": [_part(part) for part in message.parts]} for message in conversation.messages
    ]


def _part(part: TextPart | ImagePart) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    return {"type": "image_data", "image_data": {"data": part.image}}
