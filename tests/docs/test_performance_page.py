"""docs/reference/performance.md says what benchmarks/results.json holds; and how its numbers are reached."""

import json
import math
import sys

import numpy as np
import pytest
from common import ROOT


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    yield
    for name in [each for each in sys.modules if each.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def held():
    return json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))


def test_the_page_is_what_the_results_say(held):
    from benchmarks.page import page

    assert (ROOT / "docs" / "reference" / "performance.md").read_text(encoding="utf-8") == page(held)


def test_a_measurement_names_this_distribution_not_that_of_another_project(monkeypatch):
    from benchmarks import __main__ as main

    installed = {"vlm-logit-probe": "ours", "vlmprobe": "theirs", "torch": "2", "transformers": "5", "minicons": "0.3"}
    monkeypatch.setattr(main, "version", installed.__getitem__)
    assert main.libraries()["vlmprobe"] == "ours"


def test_every_goal_of_the_large_model_has_a_row(held):
    from benchmarks.goals import common, goals

    rows = goals(held, "1b", "bfloat16")
    for part in ("64 new tokens after text", "2,000 tokens", "generated token", "16 candidates", "minicons"):
        assert any(part in row.what for row in rows), part
    for part in ("1,000 candidates", "8 questions", "32 requests"):
        assert any(part in row.what for row in rows), part
    assert len(common(held)) == 10


def test_every_goal_of_runs_has_a_row(held):
    from benchmarks.goals import common

    rows = [row.what for row in common(held)]
    for part in (
        "run over 1,000 rows",
        "with two candidates",
        "bytes of a run's folder",
        "100,000 rows",
        "1,000,000 fin",
    ):
        assert sum(part in row for row in rows) == 1, part


@pytest.mark.parametrize(
    ("name", "measured", "met"),
    [
        ("run_bytes", {"bytes": 599.6}, True),
        ("run_bytes", {"bytes": 601.0}, False),
        ("run_memory", {"peak": {"run": {"1000": 20e6, "100000": 219e6}}}, True),
        ("run_memory", {"peak": {"run": {"1000": 20e6, "100000": 221e6}}}, False),
        (
            "run_start",
            {"rows": 9, "pictures": 3, "seconds": {"start": {"wall": [9, 99, 99], "cpu": [9, 9.9, 11]}}},
            True,
        ),
        ("run_start", {"rows": 9, "pictures": 3, "seconds": {"start": {"wall": [9, 9, 9], "cpu": [9, 11, 11]}}}, False),
    ],
)
def test_goals_of_runs_are_judged(name, measured, met):
    from benchmarks.goals import common

    (row,) = common({"measured": {name: {**measured, "load": [1, 1], "threads": 2}}})
    assert row.met is met


def test_every_goal_of_questions_has_a_row(held):
    from benchmarks.goals import goals

    for size, parts in {
        "20m": ("over one prefill", "over glance-vlm", "64 pictures", "1,000 yes/no questions", "peak memory of 1,000"),
        "1b": ("`score_many`, time over one prefill", "`ask`, time over one prefill"),
        "embedded": ("64 pictures", "each on its picture", "4 on each of 16 pictures"),
    }.items():
        rows = goals(held, size, "float32")
        for part in parts:
            assert any(part in row.what and row.goal for row in rows), (size, part)


def seconds(**variants):
    return {name: {"wall": values, "cpu": [value / 2 for value in values]} for name, values in variants.items()}


def test_ratios_are_of_rounds():
    from benchmarks.timing import ratio

    times = seconds(bare=[1.0, 2.0, 4.0], ours=[1.1, 2.0, 8.0], slow=[20.0])
    assert ratio(times, "ours", "bare", "wall") == pytest.approx((1.1, 1.0, 2.0))
    assert ratio(times, "slow", "bare", "cpu") == pytest.approx((10.0, 5.0, 20.0)), "what ran once, over every round"


@pytest.mark.parametrize(("ours", "met"), [(1.04, True), (1.06, False)])
@pytest.mark.parametrize(("load", "clock"), [([0.5, 1.9], "wall"), ([0.5, 7.0], "cpu")])
def test_a_goal_is_judged_by_the_clock_that_others_did_not_turn(ours, met, load, clock):
    from benchmarks.goals import goals

    names = ("model.generate", "vlmprobe", "head on the prompt's rows")
    right = dict(zip(names, ([1.0] * 3, [ours] * 3, [0.01] * 3), strict=True))
    wrong = dict(zip(names, ([1.0] * 3, [2.1 - ours] * 3, [0.01] * 3), strict=True))
    other = {"wall": "cpu", "cpu": "wall"}[clock]
    times = {name: {clock: right[name], other: wrong[name]} for name in names}
    (row,) = goals({"measured": {"generate/1b/float32": {"seconds": times, "load": load}}}, "1b", "float32")
    assert row.met is met


def test_a_variant_is_alternated_with_the_others():
    from benchmarks.timing import alternate

    order = []
    times = alternate({name: lambda name=name: order.append(name) for name in "abc"}, 3, once=("c",))
    assert "".join(order) == "abcabab"
    assert [len(times[name]["wall"]) for name in "abc"] == [3, 3, 1]


def test_peak_memory_sees_what_was_let_go_of_again():
    from benchmarks.memory import STATUS, peak

    if not STATUS.exists():
        pytest.skip("reads /proc")

    def holds(count):
        return lambda: np.ones(count, dtype=np.uint8).sum()

    assert peak(holds(64 * 2**20)) == pytest.approx(64 * 2**20, rel=0.1)
    assert peak(holds(2**10)) < 2**20


def test_arithmetic_of_the_large_model():
    from benchmarks.counts import counts

    cost = counts("1b")
    assert cost.image == 256
    assert cost.row == 2 * 896 * 151_655
    layer = 896 * 896 * 2 + 896 * 128 * 2 + 3 * 896 * 4864
    assert cost.position == 2 * 24 * layer
    assert math.isclose(cost.tower, 2 * 1025 * 304e6 + 24 * 4 * 1025**2 * 1024, rel_tol=0.03)


def test_the_slope_of_memory_is_per_token():
    from benchmarks.goals import goals

    peak = {"model.generate": {"32": 100, "544": 100 + 512 * 7}, "vlmprobe": {"32": 5000, "544": 5000 + 512 * 507}}
    peak["generate(output_logits=True)"] = {"32": 0, "160": 128 * 600_007}
    (row,) = goals({"measured": {"memory_answer/1b/float32": {"peak": peak, "load": [1, 1]}}}, "1b", "float32")
    assert row.met
    assert row.measured == "0.50 KB (output_logits and log_softmax: 600 KB)"


def test_a_peer_that_is_not_installed_is_told_and_judges_nothing():
    from benchmarks.goals import goals

    times = seconds(**{"one prefill, own tokens batched": [1.0], "score_many": [1.2]})
    eight = {"seconds": times, "load": [1, 1], "threads": 1, "absent": {"glance": "glance-vlm is not installed"}}
    batched, peer = goals({"measured": {"asked_8/20m/float32": eight}}, "20m", "float32")
    assert batched.met
    assert (peer.goal, peer.measured) == ("", "glance-vlm is not installed")


@pytest.mark.parametrize(
    ("name", "over", "ours", "most"),
    [
        ("asked_8", "one prefill, own tokens batched", "score_many", 1.3),
        ("asked_64", "prompts batched", "score_many", 1.15),
        ("asked_1000", "own tokens batched", "score_many", 1.3),
    ],
)
def test_goals_of_questions_are_judged(name, over, ours, most):
    from benchmarks.goals import goals

    for factor, met in ((0.99, True), (1.01, False)):
        times = seconds(**{over: [2.0], ours: [2.0 * most * factor]})
        measured = {name: {"seconds": times, "load": [1, 1], "threads": 1}}
        (row,) = goals({"measured": {f"{name}/20m/float32": measured[name]}}, "20m", "float32")
        assert row.met is met


def test_a_task_of_one_thread_is_judged_by_its_cpu_time():
    from benchmarks.goals import clock

    assert clock({"load": [0, 1], "threads": 2}) == "wall"
    assert clock({"load": [0, 1], "threads": 1}) == "cpu"


def test_the_cache_of_a_beginning_gives_the_rows_of_whole_prompts(monkeypatch, tmp_path):
    """The forwards that score_many is compared with: one prefill and batches on it, and whole prompts in batches."""
    from benchmarks import model

    monkeypatch.setattr(model, "CACHE", tmp_path)
    from benchmarks import asked, beginning
    from benchmarks.cases import Bench

    bench = Bench("tiny", "float32")
    image, questions = bench.picture(), asked.questions(bench, 5)
    texts = asked.rendered(bench, questions)
    begun = beginning.begin(bench.model, bench.processor, texts, image)
    shared = list(beginning.last_rows(bench.model, begun, 2))
    whole = list(beginning.full_batches(bench.model, bench.processor, texts, [image] * 5, 3))
    for one, other in zip(shared, whole, strict=True):
        assert np.abs(one.numpy() - other.numpy()).max() < 1e-4
    assert all(begun.own), "something of every prompt is left to run"
