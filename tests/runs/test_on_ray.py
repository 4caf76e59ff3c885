"""Runs whose model is opened by actors on Ray: the same records, also when the driver is killed."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from run_engine import numbers, questions
from typer.testing import CliRunner

import vlmprobe
from vlmprobe.cli import app
from vlmprobe.demo import checkpoint, sample_images
from vlmprobe.errors import GenerationOptionError, MissingExtraError, RunError
from vlmprobe.runs import OnRay, on_ray

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
OPEN = partial(vlmprobe.load, "demo")
HOW = {"max_new_tokens": 4, "progress": False}
# As test_on_ray itself calls it, in a process that can be killed.
DRIVER = """
import sys
from functools import partial

import vlmprobe
from vlmprobe.runs import OnRay, on_ray

on_ray.cores = lambda: 3
vlmprobe.run(OnRay(partial(vlmprobe.load, "demo"), 2), sys.argv[1], out=sys.argv[2], max_new_tokens=4, progress=False)
"""


@pytest.fixture(scope="module")
def ray():
    """Ray with three CPUs, on loopback, for all tests of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr(on_ray, "cores", lambda: 3)
        found = on_ray._imported()
        on_ray._start(found)
        yield found
        found.shutdown()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """300 rows with images and candidates, one of them without a question, and one twice."""
    pictures = sample_images()
    folder = tmp_path_factory.mktemp("data")
    for path in pictures:
        (folder / path.name).write_bytes(path.read_bytes())
    rows = [
        {**row, "image": pictures[place % len(pictures)].name, "candidates": ["yes", "no"]}
        for place, row in enumerate(questions(300))
    ]
    rows[7]["question"] = ""
    rows[8] = {**rows[9], "id": "again"}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def local(data, tmp_path_factory):
    """The same rows asked in this process."""
    out = tmp_path_factory.mktemp("local")
    vlmprobe.run(OPEN(), data, out=out, **HOW)
    return numbers(out)


def require_same(found, wanted):
    assert found.keys() == wanted.keys()
    for key, mine in found.items():
        theirs = wanted[key]
        for name in ("status", "text", "token_id", "best", "id", "row"):
            assert mine[name] == theirs[name], (key, name)
        assert (mine["logprob"] is None) == (theirs["logprob"] is None)
        assert mine["token_logprob"] == (theirs["token_logprob"] and pytest.approx(theirs["token_logprob"], abs=1e-4))


@needs_ray
@pytest.mark.parametrize("cpus", [1, 2])
def test_actors_that_leave_no_cpu_free_are_refused_before_ray_starts(cpus, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "cores", lambda: cpus)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(on_ray._imported(), "init", lambda **_: pytest.fail("Ray was started"))
    with pytest.raises(GenerationOptionError, match=f"2 actors leave none of {cpus} CPUs free"):
        vlmprobe.run(OnRay(OPEN, 2), questions(3), out=tmp_path, **HOW)
    data = tmp_path / "rows.jsonl"
    data.write_text('{"question": "Hi"}\n')
    typed = CliRunner().invoke(app, ["run", "demo", str(data), "--out", str(tmp_path / "out"), "--ray", "2"])
    assert typed.exit_code == 2
    assert "CPUs free" in typed.output


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match="ray"):
        vlmprobe.run(OnRay(OPEN, 1), questions(3), out=tmp_path, **HOW)


def test_a_server_needs_no_actors(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "Hi"}\n')
    arguments = ["run", "http://127.0.0.1:9", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out")]
    typed = CliRunner().invoke(app, [*arguments, "--ray", "2"])
    assert typed.exit_code == 2
    assert "a server needs no actors" in typed.output


def fake_ray(monkeypatch, gpus: float) -> list[float]:
    """Ray as far as a pool is asked for; GPUs of each actor."""
    asked: list[float] = []
    ray = SimpleNamespace(is_initialized=lambda: True, cluster_resources=lambda: {"CPU": 8, "GPU": gpus})
    monkeypatch.setattr(on_ray, "_imported", lambda: ray)
    monkeypatch.setattr(on_ray, "cores", lambda: 8)
    monkeypatch.setattr(on_ray, "_mapped", lambda ray, probe, blocks, how, each: asked.append(each) or iter(()))
    return asked


@pytest.mark.parametrize(
    ("parallel", "known", "each"), [(1, 0, 0), (1, 1, 0), (1, 2, 1), (2, 0, 0), (2, 4, 2), (4, 8, 4)]
)
def test_each_actor_gets_the_gpus_that_its_model_is_spread_over(monkeypatch, parallel, known, each):
    asked = fake_ray(monkeypatch, known)
    assert not list(OnRay(OPEN, 2, parallel=parallel).results([], ()))
    assert asked == [each]
    assert not list(OnRay(OPEN, 2, gpus=0.5, parallel=parallel).results([], ()))
    assert asked == [each, 0.5]


def test_actors_that_need_more_gpus_than_there_are(monkeypatch):
    fake_ray(monkeypatch, 3)
    with pytest.raises(GenerationOptionError, match=r"over 2 GPUs each need 4, and Ray knows of 3"):
        list(OnRay(OPEN, 2, parallel=2).results([], ()))
    for wrong in (0, True, 1.5, "2"):
        with pytest.raises(GenerationOptionError, match="integer number of GPUs"):
            OnRay(OPEN, 1, parallel=wrong).require_cores()


def test_the_engine_and_its_options_reach_the_actors(tmp_path, monkeypatch):
    fake_ray(monkeypatch, 0)
    given = []
    monkeypatch.setattr("vlmprobe.runs.run", lambda probe, *_, **__: given.append(probe))
    data = tmp_path / "rows.jsonl"
    data.write_text('{"question": "Hi"}\n')
    line = ["run", str(checkpoint()), str(data), "--out", str(tmp_path / "out"), "--dtype", "float32"]
    spread = ["--engine", "vllm", "--engine-option", "tensor_parallel_size=2", "--engine-option", "max_model_len=512"]
    CliRunner().invoke(app, [*line, "--ray", "2", *spread])
    (found,) = given
    assert (found.actors, found.parallel) == (2, 2)
    assert found.open.func is vlmprobe.load
    told = {"engine": "vllm", "tensor_parallel_size": 2, "max_model_len": 512, "dtype": "float32"}
    assert found.open.keywords.items() >= told.items()
    CliRunner().invoke(app, [*line, "--ray", "2", *spread, "--engine-option", "pipeline_parallel_size=3"])
    assert given.pop().parallel == 6
    wrong = CliRunner().invoke(app, [*line, "--ray", "2", "--engine", "vllm", "--engine-option", "tp=two"])
    assert wrong.exit_code == 2
    assert "integer number of GPUs, not 'two'" in wrong.output
    CliRunner().invoke(app, [*line, "--ray", "2"])
    assert given[1].parallel == 1
    assert "engine" not in given[1].open.keywords


def test_an_actor_whose_engine_is_not_installed_ends_the_run_with_what_to_do(monkeypatch):
    """An actor, in this process: what it says is what the driver raises."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    actor = on_ray.Actor(OnRay(partial(vlmprobe.load, checkpoint(), engine="vllm"), 1), (None, *[None] * 6))
    (done,) = actor({"block": []})["done"]
    assert "vLLM is not installed here" in pickle.loads(done).error


@needs_ray
class TestActors:
    def test_they_give_what_one_process_gives(self, ray, data, local, tmp_path):
        summary = vlmprobe.run(OnRay(OPEN, 2), data, out=tmp_path, **HOW)
        assert (summary.rows, summary.asked, summary.failed) == (300, 299, 1)
        require_same(numbers(tmp_path), local)
        written = {path.name.partition("-")[0] for path in (tmp_path / "results").iterdir()}
        assert written <= {"actor0", "actor1"}  # on a busy machine one may be done before the other is ready
        assert not list(tmp_path.rglob("*.part"))
        table = vlmprobe.open_run(tmp_path).table()
        assert table["id"].to_pylist()[7:10] == ["r7", "again", "r9"]
        assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}
        asked = {**HOW, "out": tmp_path}
        assert vlmprobe.run(OPEN(), data, **asked).asked == 0  # one process goes on where actors ended
        assert vlmprobe.run(OnRay(OPEN, 1), data, **asked).asked == 0
        with pytest.raises(RunError, match="max_new_tokens is 4 there, and 5 now"):
            vlmprobe.run(OnRay(OPEN, 1), data, **{**asked, "max_new_tokens": 5})

    def test_samples_have_the_seeds_of_their_rows(self, ray, data, tmp_path):
        how = {**HOW, "samples": 2, "limit": 5}
        vlmprobe.run(OPEN(), data, out=tmp_path / "local", **how)
        vlmprobe.run(OnRay(OPEN, 1), data, out=tmp_path / "ray", **how)
        require_same(numbers(tmp_path / "ray"), numbers(tmp_path / "local"))

    def test_what_an_actor_cannot_open_is_told(self, ray, tmp_path):
        with pytest.raises(RunError, match="no-such-folder"):
            vlmprobe.run(OnRay(partial(vlmprobe.load, "./no-such-folder"), 1), questions(3), out=tmp_path, **HOW)

    def test_verify_is_of_one_process(self, tmp_path):
        with pytest.raises(GenerationOptionError, match="verify"):
            vlmprobe.run(OnRay(OPEN, 1), questions(3), out=tmp_path, verify=2, **HOW)


@needs_ray
@pytest.mark.long
def test_a_driver_that_is_killed_goes_on(data, local, tmp_path):
    def started():
        given = [sys.executable, "-c", DRIVER, str(data), str(tmp_path)]
        return subprocess.Popen(given, start_new_session=True, stdout=subprocess.DEVNULL)

    driver = started()
    end = time.monotonic() + 120
    while not list((tmp_path / "results").glob("*.parquet")) and driver.poll() is None:
        assert time.monotonic() < end, "nothing was written"
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    kept = len(numbers(tmp_path))
    assert 0 < kept < len(local)
    assert started().wait(240) == 0
    require_same(numbers(tmp_path), local)
