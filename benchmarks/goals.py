"""The performance goals, each evaluated against the measurements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.counts import counts
from benchmarks.model import SIZES
from benchmarks.timing import ratio

__all__ = ["Row", "clock", "common", "goals", "ratios", "table"]

CORES_WANTED = 2.0  # up to this load, wall time is attributed to the task
TEXT = 62  # positions of a question of 40 tokens plus the template around it and around an image
MEGABYTE = 1e6


@dataclass(frozen=True)
class Row:
    """One goal."""

    what: str
    goal: str
    measured: str
    met: bool
    floor: str  # lower bound on the cost, and why


def clock(measured: Mapping[str, Any]) -> str:
    """The clock that decides: CPU time if others competed for the cores or there was one thread, else wall time."""
    alone = max(measured["load"]) <= CORES_WANTED and measured.get("threads") != 1
    return "wall" if alone else "cpu"


def ratios(measured: Mapping[str, Any], variant: str, over: str) -> tuple[float, str]:
    """The deciding ratio, and both ratios as text: median (min to max)."""
    seconds = measured["seconds"]
    told = []
    for name in ("wall", "cpu"):
        middle, least, greatest = ratio(seconds, variant, over, name)
        told.append(f"{middle:.3g} {'wall' if name == 'wall' else 'CPU'} ({least:.3g} to {greatest:.3g})")
    return ratio(seconds, variant, over, clock(measured))[0], ", ".join(told)


def goals(held: Mapping[str, Any], size: str, dtype: str) -> list[Row]:
    """Every goal with measurements."""
    found = held["measured"]
    at = {key.split("/")[0]: each for key, each in found.items() if key.endswith(f"/{size}/{dtype}")}
    counted = [*_candidates(at, size), *_together(at, size)] if size in SIZES else []
    return [*_generate(at), *_memory(at, size), *counted, *_questions_on_one(at), *_many(at)]


def common(held: Mapping[str, Any]) -> list[Row]:
    """The goals that do not depend on the size of the model."""
    found = held["measured"]
    begun = _startup(found["startup"]) if "startup" in found else ()
    columns = found.get("memory_columns/tiny/float32")
    return [*begun, *([_columns(columns["peak"])] if columns else []), *_batches(found), *_runs(found)]


def _batches(found: Mapping[str, Any]) -> Iterator[Row]:
    for name, what in (("batches_64", "different pictures"), ("batches_64_files", "files of different pictures")):
        if (measured := found.get(f"{name}/tiny/float32")) is not None:
            value, told = ratios(measured, "generate_many", "batches of transformers")
            yield Row(
                f"64 {what} to the embedded model, `generate_many`, time over the same batches of bare transformers",
                "<= 1.3", told, value <= 1.3,
                "1: the processor and the model; a digest of each image, and the numbers of each token, come on top",
            )  # fmt: skip


def _runs(found: Mapping[str, Any]) -> Iterator[Row]:
    if (measured := found.get("run_1000/tiny/float32")) is not None:
        yield _over(
            measured, "run", "generate_many", 1.05,
            "a run over 1,000 rows about files of pictures, the embedded model, time over `generate_many`",
            "1: the same call; keys, records and their file come on top",
        )  # fmt: skip
    if (measured := found.get("run_candidates_256/tiny/float32")) is not None:
        yield _over(
            measured, "run with candidates", "run", 1.3,
            "a run over 256 such rows with two candidates each, time over that without",
            "1: the prefill is that of the answer; the candidates' own tokens come on top",
        )  # fmt: skip
    if (measured := found.get("run_bytes")) is not None:
        taken = measured["bytes"]
        yield Row(
            "bytes of a run's folder for a row of five tokens with ten alternatives", "<= 600", f"{taken:.0f}",
            taken <= 600, "480 before compression of 55 ids and 65 numbers alone, which are hard to compress",
        )  # fmt: skip
    if (measured := found.get("run_memory")) is not None:
        peaks = {int(count): value / MEGABYTE for count, value in measured["peak"]["run"].items()}
        fewer, most = min(peaks), max(peaks)
        yield Row(
            f"peak memory of a run over {most:,} rows, above that over {fewer:,}", "<= 200 MB",
            f"{peaks[most] - peaks[fewer]:.0f} MB", peaks[most] - peaks[fewer] <= 200,
            "a key for each row; records are written and let go of",
        )  # fmt: skip
    if (measured := found.get("run_start")) is not None:
        from statistics import median

        told = {each: median(seconds) for each, seconds in measured["seconds"]["start"].items()}
        yield Row(
            f"start of a run over {measured['rows']:,} finished rows about {measured['pictures']:,} files of pictures",
            "< 10 s of CPU", f"{told['cpu']:.1f} s CPU, {told['wall']:.1f} s wall", told["cpu"] < 10,
            "a look at each file, a hash of each row's text, and a look-up of its key",
        )  # fmt: skip


def _columns(peak: Mapping[str, Mapping[str, int]]) -> Row:
    extra = (peak["vlmprobe"]["2711"] - peak["prefill"]["2711"]) / MEGABYTE
    return Row(
        "extra peak memory of the columns of 2,711 tokens and 151,656 words after a small decoder",
        "<= 100 MB",
        f"{extra:.0f} MB",
        extra <= 100,
        "a chunk of 32 MB, and what is made of a block of it",
    )


def _generate(at: Mapping[str, Any]) -> Iterator[Row]:
    for name, what in (("generate", "text"), ("generate_picture", "a picture and text")):
        if name in at:
            value, told = ratios(at[name], "vlmprobe", "model.generate")
            head = ratios(at[name], "head on the prompt's rows", "model.generate")[0]
            floor = f"{1 + head:.3f}: the head on the rows of the prompt, without which they have no numbers"
            yield Row(
                f"64 new tokens after {what}, default columns on both sides, time over bare `model.generate`",
                "<= 1.05", told, value <= 1.05, floor,
            )  # fmt: skip


def _memory(at: Mapping[str, Any], size: str) -> Iterator[Row]:
    if "memory_prompt" in at:
        peaks = {name: next(iter(sizes.values())) for name, sizes in at["memory_prompt"]["peak"].items()}
        extra = {name: (value - peaks["prefill"]) / MEGABYTE for name, value in peaks.items()}
        yield Row(
            "extra peak memory of the columns of 2,000 tokens of text, over a bare prefill",
            "<= 100 MB",
            f"{extra['vlmprobe']:.0f} MB (forward + log_softmax: {extra['forward + log_softmax']:,.0f} MB)",
            extra["vlmprobe"] <= 100,
            "one chunk of rows at a time: at most 32 MB in float32, and what is made of a block of it",
        )
    if "memory_answer" in at:
        slope = {name: _slope(sizes) for name, sizes in at["memory_answer"]["peak"].items()}
        extra = {name: value - slope["model.generate"] for name, value in slope.items()}
        full = extra["generate(output_logits=True)"] / 1000
        yield Row(
            "extra peak memory of a generated token with default columns",
            "<= 1 KB",
            f"{extra['vlmprobe'] / 1000:.2f} KB (output_logits and log_softmax: {full:,.0f} KB)",
            extra["vlmprobe"] <= 1000,
            "0.17 KB of numbers, and a string for its text; the texts of its alternatives are made when they are read",
        )


def _candidates(at: Mapping[str, Any], size: str) -> Iterator[Row]:
    cost = counts(size)
    prefill = cost.prefill(TEXT, 1)
    if "candidates_16" in at:
        value, told = ratios(at["candidates_16"], "vlmprobe", "prefill")
        least = 1 + 16 * (2 * (cost.position + cost.row)) / prefill
        yield Row(
            "16 candidates of 3 tokens, time over one bare prefill with a picture",
            "<= 1.5", told, value <= 1.5,
            f"{least:.2f} by arithmetic: two positions and two more rows of the head for each",
        )  # fmt: skip
        for peer, goal in (("minicons", 8.0), ("full forward each", None)):
            if peer in at["candidates_16"]["seconds"]:
                value, told = ratios(at["candidates_16"], peer, "vlmprobe")
                yield Row(
                    f"the same 16 candidates, times as fast as {peer}",
                    f">= {goal:g}" if goal else "", told, goal is None or value >= goal,
                    "they run picture, prompt and the head on every row for each candidate",
                )  # fmt: skip
    if "candidates_1000" in at:
        value, told = ratios(at["candidates_1000"], "vlmprobe", "prefill")
        least = 1 + 1000 * (2 * (cost.position + cost.row)) / prefill
        yield Row(
            "1,000 candidates of 3 tokens, time over one bare prefill with a picture",
            "<= 20", told, value <= 20,
            f"{least:.1f} by arithmetic where no two begin alike; beginnings that they share run once",
        )  # fmt: skip
    if "memory_candidates" in at:
        peaks = at["memory_candidates"]["peak"]
        ours = {int(count): value / MEGABYTE for count, value in peaks["vlmprobe"].items()}
        bare = peaks["prefill"]["16"] / MEGABYTE
        peer = f"; by minicons: {peaks['minicons']['16'] / MEGABYTE - bare:,.0f} MB" if "minicons" in peaks else ""
        yield Row(
            "peak memory of 1,000 candidates over that of a bare prefill",
            "bounded",
            f"{ours[1000] - bare:,.0f} MB (16 candidates: {ours[16] - bare:,.0f} MB{peer})",
            ours[1000] - bare <= 2 * 512,
            "512 MB of repeated cache in one batch, and the states of the rows that are wanted",
        )


def _together(at: Mapping[str, Any], size: str) -> Iterator[Row]:
    cost = counts(size)
    if "questions_8" in at:
        for variant in ("session", "generate_many"):
            value, told = ratios(at["questions_8"], variant, "8 calls")
            runs = at["questions_8"]["tower"][variant]
            whole = 8 * cost.prefill(30, 1)
            least = (cost.tower + 8 * cost.prefill(30 + cost.image)) / whole
            yield Row(
                f"8 questions on one picture, `{variant}`, time over 8 calls",
                "<= 0.5, tower once", f"{told}; the tower ran {'once' if runs == 1 else f'{runs} times'}",
                value <= 0.5 and runs == 1,
                f"{least:.2f} by arithmetic: the tower once, and the language model on every prompt",
            )  # fmt: skip
    if "requests_32" in at:
        value, told = ratios(at["requests_32"], "one by one", "generate_many")
        yield Row(
            "32 requests batched, throughput over one by one",
            ">= 2", told, value >= 2,
            "a step of a batch reads the weights once for all; prompts gain nothing, for they fill the cores anyway",
        )  # fmt: skip


def _questions_on_one(at: Mapping[str, Any]) -> Iterator[Row]:
    eight = at.get("asked_8", {"seconds": {}})
    for variant in (name for name in ("score_many", "ask") if name in eight["seconds"]):
        what = f"8 yes/no questions on one picture, `{variant}`, time over"
        yield _over(
            eight, variant, "one prefill, own tokens batched", 1.3,
            f"{what} one prefill and a batched forward over the questions' own tokens", "1: the same forwards",
        )  # fmt: skip
        if "glance" in eight["seconds"]:
            yield _over(eight, variant, "glance", 1.1, f"{what} glance-vlm with its prefix cache", "about 1: as there")
        elif "glance" in eight.get("absent", {}):
            yield Row(f"{what} glance-vlm", "", eight["absent"]["glance"], False, "")
        if "minicons" in eight["seconds"]:
            told = ratios(eight, "minicons", variant)[1]
            yield Row(
                f"the same, `{variant}`, times as fast as minicons", "", told, True,
                "it runs picture, prompt and the head on every row for each question",
            )  # fmt: skip
    for name, count in (("asked_1000", "1,000"), ("asked_100", "100")):
        if name in at:
            yield _over(
                at[name], "score_many", "own tokens batched", 1.3,
                f"{count} yes/no questions on one picture, all of it over their own tokens on a cache that is there",
                f"1: the same forwards; the picture is 1/{count} of a question",
            )  # fmt: skip
    if "answers_16" in at:
        told = ratios(at["answers_16"], "batch of transformers", "generate_many")[1]
        yield Row(
            "16 questions on one picture, answered with 8 tokens, times as fast as one batch of bare transformers",
            "", told, True, "the beginning of the prompts, the picture in it, runs once",
        )  # fmt: skip
    if "memory_asked" in at:
        peaks = {int(count): value / MEGABYTE for count, value in at["memory_asked"]["peak"]["score_many"].items()}
        fewer, most = min(peaks), max(peaks)
        yield Row(
            f"peak memory of {most:,} yes/no questions on one picture, over that of {fewer:,}",
            "<= 1.1", f"{peaks[most] / peaks[fewer]:.3f} ({peaks[most]:,.0f} MB, {peaks[fewer]:,.0f} MB)",
            peaks[most] <= 1.1 * peaks[fewer],
            "1: a batch is asked at a time, and its results are handed over",
        )  # fmt: skip


def _many(at: Mapping[str, Any]) -> Iterator[Row]:
    if "asked_64" in at:
        yield _over(
            at["asked_64"], "score_many", "prompts batched", 1.15,
            "64 yes/no questions on 64 pictures, `score_many`, time over the same prompts in batches of the same size",
            "1: the same forwards",
        )  # fmt: skip
    for name, what in (("yes_no_64", "each on its picture"), ("yes_no_16", "4 on each of 16 pictures")):
        if name in at:
            value, told = ratios(at[name], "one at a time in a session", "yes_no_many")
            yield Row(
                f"64 yes/no questions, {what}, `yes_no_many`, times as fast as one at a time in a session",
                ">= 6", told, value >= 6, "what a batch of 16 saves the model, and one call for all saves Python",
            )  # fmt: skip
            told = ratios(at[name], "one at a time", "yes_no_many")[1]
            yield Row(
                "the same, times as fast as one at a time", "", told, True,
                "without a session, which compares the model between two calls",
            )  # fmt: skip


def _over(measured: Mapping[str, Any], variant: str, over: str, most: float, what: str, floor: str) -> Row:
    """A row whose goal is a ratio of at most ``most``."""
    value, told = ratios(measured, variant, over)
    return Row(what, f"<= {most:g}", told, value <= most, floor)


def _startup(measured: Mapping[str, Any]) -> Iterator[Row]:
    from statistics import median

    for name in ("import vlmprobe", "vlmprobe --help"):
        told = {each: median(measured["seconds"][name][each]) for each in ("wall", "cpu")}
        python = median(measured["seconds"]["python"][clock(measured)])
        yield Row(
            f"`{name}` in a fresh process",
            "< 0.3 s",
            f"{told['wall']:.2f} s wall, {told['cpu']:.2f} s CPU",
            told[clock(measured)] < 0.3,
            f"{python:.2f} s: Python itself",
        )


def _slope(sizes: Mapping[str, int]) -> float:
    (short, least), (long, most) = sorted((int(size), value) for size, value in sizes.items())
    return (most - least) / (long - short)


def table(held: Mapping[str, Any]) -> str:
    """All goals as plain text. They apply to a model of realistic size; a tiny one shows the Python overhead."""
    models = sorted({tuple(key.split("/")[1:]) for key in held["measured"] if key.count("/") == 2})
    parts = [("", common(held)), *((f"{size}, {dtype}", goals(held, size, dtype)) for size, dtype in models)]
    lines = []
    for title, rows in parts:
        for row in rows:
            judged = f"; goal {row.goal}: {'met' if row.met else 'NOT MET'}" if row.goal and "tiny" not in title else ""
            lines.append(f"{title:14}  {row.what}\n{'':16}{row.measured}{judged}")
    return "\n".join(lines)
