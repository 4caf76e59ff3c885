"""An engine without a model: answers that follow from question and pixels, at once, in bursts, or with errors."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlmprobe.engines.base import Options
from vlmprobe.inputs.messages import Conversation
from vlmprobe.probe import Probe
from vlmprobe.results.result import Result, Scores
from vlmprobe.results.table import TokenTable, joined

WORDS = [" red", " green", " blue", " one", " two", " three", " left", " right", " yes", " no"]


@dataclass
class Oracle:
    """Answers a conversation with words that its content decides; counts what it was asked."""

    seconds: float = 0.0  # for a batch
    fails: Callable[[Conversation], Exception | None] = lambda conversation: None
    moved: float = 0.0  # added to every log-probability
    asked: list[str] = field(default_factory=list)
    scored: list[str] = field(default_factory=list)
    seeds: list[int | None] = field(default_factory=list)

    def check(self, conversations: Sequence[Conversation], options: Options) -> None:
        pass

    def batch_size(self, wanted: int, options: Options) -> int:
        return wanted

    def generate(self, conversations: Sequence[Conversation], options: Options) -> list[Result]:
        time.sleep(self.seconds)
        for each in conversations:
            if (error := self.fails(each)) is not None:
                raise error
        self.asked += [each.question for each in conversations]
        self.seeds += [options.seed] * len(conversations)
        return [self._result(each, options, len(conversations)) for each in conversations]

    def score(self, conversation: Conversation, candidates: Sequence[str], options: Options) -> Scores:
        self.scored.append(conversation.question)
        tables = [self._table(conversation, [each], options, f"score {each}") for each in candidates]
        return Scores(list(candidates), tables, [None] * len(candidates), {"timings": {"score_s": 0.001}})

    def _result(self, conversation: Conversation, options: Options, size: int) -> Result:
        draw = self._draw(conversation, f"answer {options.seed}")
        words = [WORDS[draw.integers(len(WORDS))] for _ in range(draw.integers(1, 6))]
        table = self._table(conversation, words, options, "tokens")
        meta = {
            "finish_reason": "stop",
            "batch_size": size,
            "timings": {"generate_s": 0.01 * size},
            "value_kind": "raw",
        }
        return Result("".join(words).strip(), table if options.prompt else None, table, np.arange(7), meta)

    def _table(self, conversation: Conversation, tokens: list[str], options: Options, what: str) -> TokenTable:
        draw = self._draw(conversation, what)
        count, wide = len(tokens), options.alternatives
        logprobs = -draw.random((count, wide), dtype=np.float32) + np.float32(self.moved)
        return TokenTable(
            ids=draw.integers(100, size=count),
            tokens=list(tokens),
            kinds=["text"] * count,
            positions=np.arange(7, 7 + count),
            offsets=joined(tokens),
            logprobs=logprobs[:, 0].copy(),
            entropy=draw.random(count, dtype=np.float32),
            ranks=np.zeros(count, np.int64),
            logsumexp=draw.random(count, dtype=np.float32),
            top_ids=draw.integers(100, size=(count, wide)),
            top_logprobs=logprobs,
            top_tokens=[["a"] * wide for _ in range(count)],
        )

    def _draw(self, conversation: Conversation, what: str) -> Any:
        text = repr([(m.role, m.text) for m in conversation.messages])
        images = "".join(part.digest for part in conversation.image_parts)
        held = hashlib.blake2b(f"{text} {images} {what}".encode(), digest_size=8).digest()
        return np.random.default_rng(int.from_bytes(held, "big"))


def oracle(**how: Any) -> tuple[Probe, Oracle]:
    """A probe of an :class:`Oracle`, and the engine."""
    engine = Oracle(**how)
    return Probe(engine, {"model": "oracle", "dtype": "float32", "engine": "test", "device": "cpu"}), engine


def questions(count: int, **more: Any) -> list[dict[str, Any]]:
    """Rows without images, all different."""
    return [{"id": f"r{place}", "question": f"What is {place}?", "answer": "two", **more} for place in range(count)]


def numbers(folder: Any) -> dict[str, Any]:
    """What a run holds, by key, without times."""
    from vlmprobe.runs.shards import read_records

    kept = ["key", "row", "id", "status", "text", "logprob", "token_id", "token_logprob", "top_logprobs", "best"]
    records = read_records(folder / "results")
    names = [name for name in kept if name in records.column_names]
    return {each["key"]: each for each in records.select(names).to_pylist()}
