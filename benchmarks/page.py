"""Write docs/reference/performance.md from the JSON file, and draw its plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.goals import CORES_WANTED, Row, clock, common, goals
from benchmarks.timing import ratio

__all__ = ["page", "write"]

DOCS = Path(__file__).parents[1] / "docs"
MODELS = {
    ("1b", "bfloat16"): "1B parameters, bfloat16",
    ("1b", "float32"): "1B parameters, float32",
    ("20m", "float32"): "Qwen3-VL of 20M parameters, float32",
    ("embedded", "float32"): "the embedded model, float32",
    ("tiny", "float32"): "tiny, float32",
}
TABLES = {  # case: its title, and the baseline variant
    "generate": ("64 new tokens after 40 tokens of text", "model.generate"),
    "generate_picture": ("64 new tokens after a picture and 40 tokens of text", "model.generate"),
    "prompt": ("the columns of 2,000 tokens of text", "prefill"),
    "columns": ("the columns of 2,711 tokens and 151,656 words, small decoder", "prefill"),
    "reduction": ("the columns of 54 rows of 151,656 logits", "one call for each column"),
    "candidates_16": ("16 candidates of 3 tokens after a picture", "prefill"),
    "candidates_1000": ("1,000 candidates of 3 tokens after a picture", "prefill"),
    "questions_8": ("8 questions on one picture", "8 calls"),
    "requests_32": ("32 requests of 6 to 37 tokens, 16 new tokens each", "one by one"),
    "asked_8": ("8 yes/no questions on one picture", "one prefill, own tokens batched"),
    "asked_64": ("64 yes/no questions on 64 pictures", "prompts batched"),
    "asked_1000": ("1,000 yes/no questions on one picture", "own tokens batched"),
    "asked_100": ("100 yes/no questions on one picture", "own tokens batched"),
    "answers_16": ("16 questions on one picture, 8 tokens each", "batch of transformers"),
    "yes_no_64": ("64 yes/no questions on 64 pictures", "one at a time"),
    "yes_no_16": ("64 yes/no questions, 4 on each of 16 pictures", "one at a time"),
    "batches_64": ("64 different pictures, the embedded model", "batches of transformers"),
    "batches_64_files": ("files of 64 different pictures, the embedded model", "batches of transformers"),
    "run_256": ("256 rows about files of pictures, the embedded model, 8 new tokens", "generate_many"),
    "run_candidates_256": ("the same rows, with two candidates each", "run"),
}
INTRODUCTION = """\
# Performance

What numbers cost on top of the model. Written by `python -m benchmarks --page` from
[benchmarks/results.json](../../benchmarks/results.json); every figure on this page is from there.

The model has the sizes of InternVL2-1B (Qwen2-0.5B as language model, a vocabulary of 151,655 tokens, a vision tower
of 300M parameters) and random weights: cost does not depend on what the weights are. A picture is a tile of 448 x 448.
Tasks of many questions also run on a small Qwen3-VL with random weights, which glance-vlm reads (its picture of
512 x 384 pixels takes 192 positions), and on the embedded model of 1M parameters, of which Python is the larger part.

## Reproduce

```bash
make bench                                                       # all of it
python -m benchmarks --size 1b --dtype bfloat16 --only generate  # a part, put into the same file
```

Every measurement runs in a process of its own. Variants of one task take turns (A B C, A B C, ...), each round is
compared with itself, and a ratio is the median of the rounds with the least and the greatest beside it. Bare variants
get model inputs that are ready; vlmprobe starts from the question and the picture, and in the tasks of yes/no questions
and of answers on 64 pictures so do all. Peak memory is the highest point of
the process (of the device, on an accelerator) during one call above what it held before, in a fresh process for every
variant. The peers' numbers are compared with vlmprobe's in the same run. glance-vlm is
[installed beside](other-ways.md#reproduce); without it its cases say that it is absent.
"""


def page(held: Mapping[str, Any]) -> str:
    """The page's text."""
    return "\n".join([INTRODUCTION, *_machine(held), *_goals(held), *_variants(held), *_agreement(held), GROWTH])


def write(held: Mapping[str, Any]) -> None:
    """Write the page and draw its plots."""
    from benchmarks.plots import draw

    (DOCS / "reference" / "performance.md").write_text(page(held), encoding="utf-8")
    draw(held, DOCS / "img")


def _machine(held: Mapping[str, Any]) -> Iterator[str]:
    loads = [each for measured in held["measured"].values() for each in measured["load"]]
    by: dict[str, list[str]] = {}
    for name, each in held["measured"].items():
        machine = each.get("machine") or held["machine"]  # of those that name none
        libraries = ", ".join(f"{library} {number}" for library, number in each["versions"].items())
        told = f"on {machine['cores']} cores of {machine['processor']} ({machine['device']}) with {libraries}"
        by.setdefault(told, []).append(name)
    *some, most = sorted(by, key=lambda told: len(by[told]))
    parts = [f"{_names(by[told], held)} {told}" for told in some]
    yield f"Measured: {'; '.join([*parts, f'the others {most}' if parts else most])}."
    yield (
        f"Load of the machine during the measurements: {min(loads):.1f} to {max(loads):.1f} processes. Where it was "
        f"above {CORES_WANTED:g}, others had a share of the cores, and CPU time judges a goal in place of wall time; "
        "both are given. CPU time counts both threads of a part that runs in two, so it understates what runs in one."
    )
    threads: dict[str, set[int]] = {}
    for name, each in held["measured"].items():
        threads.setdefault(name.split("/")[0], set()).add(each["threads"])
    if single := sorted(f"`{name}`" for name, counts in threads.items() if counts == {1}):
        yield f"With one thread, where CPU time judges in any case: {', '.join(single)}."
    yield ""


def _names(keys: Sequence[str], held: Mapping[str, Any]) -> str:
    """Measurements by the name of their task, or in full where others of that task are not among them."""
    tasks = {key.split("/")[0] for key in keys}
    whole = {task for task in tasks if all(each in keys for each in held["measured"] if each.split("/")[0] == task)}
    named = {task if (task := key.split("/")[0]) in whole else key for key in keys}
    return ", ".join(f"`{each}`" for each in sorted(named))


def _goals(held: Mapping[str, Any]) -> Iterator[str]:
    yield "## Goals\n"
    parts = [
        ("", common(held)),
        *((title, goals(held, *model)) for model, title in MODELS.items() if model[0] != "tiny"),
    ]
    for title, rows in parts:
        if rows:
            yield f"### {title}\n" if title else ""
            yield "| what | goal | measured | | floor |\n|---|---|---|---|---|"
            yield from map(_cells, rows)
            yield ""


def _cells(row: Row) -> str:
    verdict = ("met" if row.met else "**not met**") if row.goal else ""
    return f"| {row.what} | {row.goal} | {row.measured} | {verdict} | {row.floor} |"


def _variants(held: Mapping[str, Any]) -> Iterator[str]:
    yield "## Side by side\n"
    yield "Seconds are medians of the rounds, by the clock that judges; ratios are over a task's first variant.\n"
    for model, title in MODELS.items():
        lines = []
        for name, (what, first) in TABLES.items():
            measured = held["measured"].get("/".join((name, *model)))
            if measured is None:
                continue
            by = clock(measured)
            at = f"{measured['when']}, {max(measured['load']):.1f}"
            for variant, seconds in measured["seconds"].items():
                middle, least, greatest = ratio(measured["seconds"], variant, first, by)
                over = f"{middle:.3g} ({least:.3g} to {greatest:.3g})"
                lines.append(f"| {what} | {variant} | {median(seconds[by]):.3g} | {over} | {by} | {at} |")
                what = at = ""
        if lines:
            yield f"### {title}\n"
            yield "| task | variant | seconds | ratio | clock | when (UTC), load |\n|---|---|---|---|---|---|"
            yield from lines
            yield ""


def _agreement(held: Mapping[str, Any]) -> Iterator[str]:
    found = {model: held["measured"].get("/".join(("agreement", *model))) for model in MODELS}
    there = {model: measured["nats"] for model, measured in found.items() if measured}
    if not there:
        return
    yield "## The same numbers\n"
    yield "On true architectures, beside an independent forward: [Against the other ways](other-ways.md).\n"
    scored = {model: nats for model, nats in there.items() if model[0] != "20m"}
    if scored:
        yield "Greatest difference to vlmprobe in nats; a candidate's is that of its sum over three tokens.\n"
        yield from _nats(scored)
        yield (
            "\nIn bfloat16 a batch and a single prompt round differently; minicons also normalises in bfloat16, "
            "vlmprobe in float32.\n"
        )
    if asked := {model: nats for model, nats in there.items() if model not in scored}:
        yield "Greatest difference to vlmprobe in nats of the log-odds of yes, of 8 questions on one picture.\n"
        yield from _nats(asked)
        yield ""


def _nats(there: Mapping[tuple[str, str], Mapping[str, float]]) -> Iterator[str]:
    peers = list(next(iter(there.values())))
    yield f"| | {' | '.join(peers)} |\n|{'---|' * (len(peers) + 1)}"
    for model, nats in there.items():
        yield f"| {MODELS[model]} | {' | '.join(f'{nats[peer]:.1g}' for peer in peers)} |"


GROWTH = """\
## How cost grows

<picture>
  <source media="(prefers-color-scheme: dark)" srcset="../img/growth-dark.png">
  <img src="../img/growth.png" alt="CPU seconds against tiles of the picture, tokens of the prompt, candidates, vocabulary and requests in a batch, for vlmprobe and for the same work without it">
</picture>

CPU seconds, medians of three rounds, both axes logarithmic, on a model of 69M parameters (a language model of 8 layers
of width 512, a vocabulary of 32,000 tokens, a vision tower of 6 layers of width 256).
"""  # noqa: E501
