"""How cost scales with image tiles, prompt length, candidates, vocabulary and batch size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks import cases, peers
from benchmarks.model import words
from benchmarks.timing import alternate

__all__ = ["SWEEPS", "Sweep", "sweep"]

ROUNDS = 3


@dataclass(frozen=True)
class Sweep:
    """One swept quantity: its name and values, and the variants timed at each."""

    along: str
    values: tuple[int, ...]
    variants: Callable[[cases.Bench, int], cases.Variants]


def _tiles(bench: cases.Bench, count: int) -> cases.Variants:
    return _two(cases.answer(bench, bench.picture(count), new=8))


def _prompt(bench: cases.Bench, count: int) -> cases.Variants:
    return cases.prompt(bench, count)


def _candidates(bench: cases.Bench, count: int) -> cases.Variants:
    found = cases.candidates(bench, count, peer=count <= 16)
    return {name: call for name, call in found.items() if name != "prefill"}


def _vocabulary(bench: cases.Bench, count: int) -> cases.Variants:
    return _two(cases.answer(replace(bench, vocabulary=count), None, new=32))


def _batch(bench: cases.Bench, count: int) -> cases.Variants:
    asked = [words(24, seed) for seed in range(count)]
    options = {"max_new_tokens": 16, "do_sample": False}
    texts = [peers.chat(bench.processor, each, None) for each in asked]
    made = bench.processor(text=texts, return_tensors="pt", padding=True).to(bench.device)
    return {
        "model.generate": lambda: peers.bare_generate(bench.model, made, 16),
        "vlmprobe": lambda: list(bench.probe.generate_many(asked, batch_size=count, progress=False, **options)),
    }


def _two(variants: cases.Variants) -> cases.Variants:
    return {name: variants[name] for name in ("model.generate", "vlmprobe")}


SWEEPS = {
    "by_picture": Sweep("tiles of the picture", (1, 2, 4), _tiles),
    "by_prompt": Sweep("tokens of the prompt", (64, 256, 1024, 2048), _prompt),
    "by_candidates": Sweep("candidates of 3 tokens", (2, 16, 128, 1024), _candidates),
    "by_vocabulary": Sweep("tokens of the vocabulary", (2_000, 16_000, 128_000), _vocabulary),
    "by_batch": Sweep("requests in a batch", (1, 4, 16), _batch),
}


def sweep(bench: cases.Bench, name: str) -> dict[str, Any]:
    """Seconds of every variant at every value, after warm-up runs at the smallest value."""
    wanted = SWEEPS[name]
    for call in wanted.variants(bench, wanted.values[0]).values():
        call()
    return {"seconds": {str(value): alternate(wanted.variants(bench, value), ROUNDS) for value in wanted.values}}
