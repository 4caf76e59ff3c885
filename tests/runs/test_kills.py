"""A run that is killed, at random moments and at the worst ones, and goes on: nothing lost, nothing twice."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from run_engine import numbers, oracle, questions

import vlmprobe
from vlmprobe.runs import files, shards, writer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
ROWS = questions(600)
KILLED = 77
UNLINK = Path.unlink


def forked(work) -> int:
    """Run in a child, and wait for its exit status: negative for a signal."""
    child = started(work)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def started(work) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except SystemExit as error:
            status = error.code
        finally:
            os._exit(status)
    return child


def run(folder, seconds=0.0, rows=ROWS, **how):
    vlmprobe.run(oracle(seconds=seconds)[0], rows, out=folder, progress=False, **how)


def require_whole(folder: Path, whole: dict, before=()) -> None:
    """The union is that of an undisturbed run, and nothing unfinished lies about."""
    assert numbers(folder) == whole
    assert not list(folder.rglob("*.part"))
    assert len(vlmprobe.open_run(folder).table()) == len(whole)
    assert set(before) <= set(whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return numbers(folder)


@pytest.fixture
def often(monkeypatch):
    """Shards are written all the time, and merged soon."""
    monkeypatch.setattr(writer, "SECONDS", 0.02)
    monkeypatch.setattr(shards, "MANY", 4)
    monkeypatch.setattr(shards.Shards.merge, "__defaults__", (4,))


def test_kills_at_random_moments(tmp_path, whole, often):
    draw = random.Random(5)
    held: set[str] = set()
    kills = 0
    for _ in range(60):
        child = started(lambda: run(tmp_path, seconds=0.006, batch_size=8))
        time.sleep(draw.uniform(0.02, 0.25))
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        kills += status == -signal.SIGKILL
        now = shards.states(tmp_path / "results")
        assert held <= set(now)  # what was there stays there
        held = set(now)
        if status == 0:
            break
    assert kills > 3
    run(tmp_path)
    require_whole(tmp_path, whole, held)
    counted = oracle()
    vlmprobe.run(counted[0], ROWS, out=tmp_path)
    assert not counted[1].asked


class Dies:
    """Replaces a function and ends the process at its nth call: before it, in the middle of it, or after it."""

    def __init__(self, function, when: str, nth: int) -> None:
        self.function, self.when, self.nth, self.calls = function, when, nth, 0

    def __call__(self, *args, **more):
        if self.function is UNLINK and args[0].name.startswith("."):  # no shard that was merged
            return self.function(*args, **more)
        self.calls += 1
        mine = self.calls == self.nth
        if mine and self.when == "before":
            os._exit(KILLED)
        if mine and self.when == "in":  # half a file
            Path(args[-1]).write_bytes(b"PAR1 half a file")
            os._exit(KILLED)
        found = self.function(*args, **more)
        if mine and self.when == "after":
            os._exit(KILLED)
        return found


POINTS = [
    *((shards.Shards, "_write", when, nth) for when in ("before", "after") for nth in (1, 4)),
    *((files.os, "replace", when, nth) for when in ("before", "after") for nth in (1, 2, 5)),
    *((files.os, "fsync", "before", nth) for nth in (1, 2, 3)),
    *((shards, "_chosen", when, 1) for when in ("before", "after")),  # of a merge
    *((shards.Path, "unlink", when, nth) for when in ("before", "after") for nth in (1, 3, 5)),
    *((shards, "sync_folder", when, 1) for when in ("before", "after")),
]


@pytest.mark.parametrize(("owner", "name", "when", "nth"), POINTS, ids=lambda each: getattr(each, "__name__", each))
def test_a_kill_at_a_bad_moment(owner, name, when, nth, tmp_path, whole, often):
    def work():
        dies = Dies(getattr(owner, name), when, nth)
        setattr(owner, name, (lambda *args, **more: dies(*args, **more)))
        run(tmp_path, seconds=0.006, batch_size=8)

    assert forked(work) == KILLED
    run(tmp_path)
    require_whole(tmp_path, whole)


def test_a_kill_in_the_middle_of_a_file(tmp_path, whole, often):
    def work():
        write = shards.Shards._write

        def half(self, path, tables, meta):
            write(self, path, tables, meta)
            if self._last >= 3:
                path.write_bytes(path.read_bytes()[:1000])
                os._exit(KILLED)

        shards.Shards._write = half
        run(tmp_path, seconds=0.006, batch_size=8)

    assert forked(work) == KILLED
    assert list(tmp_path.rglob("*.part"))
    assert len(vlmprobe.open_run(tmp_path).table())  # readers do not see it
    run(tmp_path)
    require_whole(tmp_path, whole)


def test_the_lock_goes_with_the_process(tmp_path):
    child = started(lambda: run(tmp_path, seconds=0.05, batch_size=4))
    while not (tmp_path / "run.json").exists():
        time.sleep(0.01)
    with pytest.raises(vlmprobe.VlmprobeError, match="another process is writing part 0/1"):
        run(tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    run(tmp_path)


def test_sigterm_writes_what_is_finished(tmp_path):
    child = started(lambda: run(tmp_path, seconds=0.05, batch_size=4))
    while not (tmp_path / "rows").exists():
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert 4 <= len(numbers(tmp_path)) < 600


def test_two_processes_and_kills(tmp_path, whole, often):
    for _ in range(3):
        children = [started(lambda p=p: run(tmp_path, seconds=0.004, batch_size=8, part=p)) for p in ("0/2", "1/2")]
        time.sleep(0.15)
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert [forked(lambda p=p: run(tmp_path, part=p)) for p in ("0/2", "1/2")] == [0, 0]
    require_whole(tmp_path, whole)


@pytest.mark.long
def test_ten_thousand_rows_of_the_embedded_model_and_twenty_kills(tmp_path):
    from vlmprobe.demo import sample_images

    paths = sample_images()
    rows = [{"id": n, "question": f"Is there a {n}?", "image": paths[n % len(paths)]} for n in range(10_000)]
    probe = vlmprobe.load("demo")
    how = {"max_new_tokens": 2, "progress": False}
    vlmprobe.run(probe, rows, out=tmp_path / "whole", **how)
    draw = random.Random(7)
    kills = 0
    while kills < 20:
        child = started(lambda: vlmprobe.run(probe, rows, out=tmp_path / "killed", **how))
        time.sleep(draw.uniform(1, 12))
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL)
        kills += 1
        if status == 0:
            break
    vlmprobe.run(probe, rows, out=tmp_path / "killed", **how)
    one, other = (numbers(tmp_path / name) for name in ("whole", "killed"))
    assert list(one) == list(other)
    for key, row in one.items():
        assert row["text"] == other[key]["text"]
        assert row["token_logprob"] == pytest.approx(other[key]["token_logprob"], abs=1e-5)
    assert not list(tmp_path.rglob("*.part"))
