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
from vlmprobe.engines.serving.refusals import refuse
from vlmprobe.engines.serving.results import result_of
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
        no_score=f"LMDeploy does not return the ids of its prompts; {LOCAL}",
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
        from lmdeploy import GenerationConfig

        decoding = self._decoding(options)
        config = GenerationConfig(**_fields(decoding, options.seed), output_logits="generation")
        started = time.perf_counter()
        with self._turn:
            replies = self.pipe([_messages(each) for each in conversations], gen_config=config)
        if len(replies) != len(conversations):
            raise EngineResponseError(f"{TITLE} returned {len(replies)} answers to {len(conversations)} requests.")
        meta = {"batch_size": len(conversations), "timings": {"generate_s": time.perf_counter() - started}}
        return [
            self._result(reply, conversation, decoding, options, meta)
            for reply, conversation in zip(replies, conversations, strict=True)
        ]

    def score(self, conversation: Conversation, candidates: Sequence[str], options: Options) -> Scores:
        """Not supported: the ids of a prompt are not known."""
        raise CapabilityError(f"{TITLE} cannot score candidates: {self.abilities.no_score}.")

    # -- LMDeploy's side ---------------------------------------------------------------------------

    def _decoding(self, options: Options) -> Decoding:
        return Decoding.read(options.generation, self.abilities.takes, TITLE)

    def _result(
        self, reply: Any, conversation: Conversation, decoding: Decoding, options: Options, meta: dict[str, Any]
    ) -> Result:
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
        rows = [Row(float(row[each]), each, full=row) for each, row in zip(ids, logits, strict=True)]
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
