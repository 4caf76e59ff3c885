"""One measurement in a separate process: ``python -m benchmarks.worker '{"kind": "time", ...}'`` prints JSON."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks import asked, cases, runs
from benchmarks.growth import sweep
from benchmarks.memory import peak
from benchmarks.timing import alternate, load

TASKS: dict[str, Callable[[cases.Bench, int], cases.Variants]] = {
    "prompt": lambda bench, tokens: cases.prompt(bench, tokens),
    "columns": lambda bench, tokens: cases.columns(bench, tokens),
    "generate": lambda bench, tokens: cases.answer(bench, None, new=tokens, prompt=False),
    "candidates": lambda bench, count: cases.candidates(bench, count, peer=True),
    "asked": lambda bench, count: asked.many_on_one(bench, count),
}


def time_case(bench: cases.Bench, name: str, rounds: int | None, skip: Sequence[str]) -> dict[str, Any]:
    """Seconds of every variant of a case, after warm-up runs."""
    case = cases.CASES[name]
    given = {variant: call for variant, call in case.variants(bench).items() if variant not in skip}
    absent = {variant: why for variant, why in given.items() if isinstance(why, str)}
    variants = {variant: call for variant, call in given.items() if not isinstance(call, str)}
    next(iter(variants.values()))()
    bench.probe.generate("Hi", max_new_tokens=2, do_sample=False)
    bench.probe.score("Hi", ["yes", "no it is"])
    tower: dict[str, int] = {}

    def counted(variant: str, call: Callable[[], Any]) -> None:
        before = len(bench.runs)
        call()
        tower[variant] = len(bench.runs) - before

    calls = {variant: partial(counted, variant, call) for variant, call in variants.items()}
    return {"seconds": alternate(calls, rounds or case.rounds, case.once), "tower": tower, "absent": absent}


def memory_of(bench: cases.Bench, name: str, variant: str, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Peak bytes of one variant for every size, after a small warm-up run."""
    TASKS[name](bench, 4)[variant]()
    calls = [TASKS[name](bench, size)[variant] for size in sizes]
    return {"peak": {size: peak(call, bench.device) for size, call in zip(sizes, calls, strict=True)}}


def main(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The measurement, with the load average before and after."""
    import torch
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(wanted["threads"])
    bench = cases.Bench(wanted["size"], wanted["dtype"], wanted["device"])
    before = load()
    if wanted["kind"] == "time":
        found = time_case(bench, wanted["name"], wanted.get("rounds"), wanted.get("skip", ()))
    elif wanted["kind"] == "memory":
        found = memory_of(bench, wanted["name"], wanted["variant"], tuple(wanted["sizes"]))
    elif wanted["kind"] == "runs":
        found = runs.MEASURED[wanted["name"]]()
    elif wanted["kind"] == "sweep":
        found = sweep(bench, wanted["name"])
    else:
        found = {"nats": dict(cases.agreement(bench))}
    return {**found, "load": [before, load()]}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
