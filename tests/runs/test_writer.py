"""When finished records are written: a fake clock, and an engine whose answers come in bursts."""

from __future__ import annotations

import threading
import time

import pytest
from run_engine import numbers, oracle, questions

import vlmprobe
from vlmprobe.errors import RunError
from vlmprobe.runs import writer
from vlmprobe.runs.writer import Writer


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def wait(self, changed: threading.Condition, seconds: float | None) -> None:
        changed.wait(0.002)


def until(true, seconds=5.0) -> bool:
    """Whether something becomes true."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.002)
    return true()


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def written(clock):
    """The batches that a writer has written, and the writer."""
    batches: list[list] = []
    made = Writer(batches.append, clock)
    yield batches, made
    made.close()


def record(place, text="x"):
    return {"row": place, "text": text}


def test_a_record_waits_thirty_seconds_at_most_whatever_comes_after_it(written, clock):
    batches, made = written
    made.add(record(0))
    clock.time += 20
    made.add(record(1))
    clock.time += 9.9
    time.sleep(0.05)
    assert batches == []
    clock.time += 0.2
    assert until(lambda: batches)
    assert [each["row"] for each in batches[0]] == [0, 1]
    made.add(record(2))
    clock.time += 29
    time.sleep(0.05)
    assert len(batches) == 1
    clock.time += 2
    assert until(lambda: len(batches) == 2)


def test_a_thousand_rows_or_many_bytes_are_written_at_once(written):
    batches, made = written
    for place in range(999):
        made.add(record(place))
    time.sleep(0.05)
    assert not batches
    made.add(record(999))
    assert until(lambda: batches)
    assert len(batches[0]) == 1000
    made.add(record(0, "x" * writer.BYTES))
    assert until(lambda: len(batches) == 2)


def test_the_rest_is_written_at_the_end(clock):
    batches: list[list] = []
    made = Writer(batches.append, clock)
    made.add(record(0))
    made.close()
    assert [len(batch) for batch in batches] == [1]


def test_nothing_is_written_without_records(clock):
    batches: list[list] = []
    made = Writer(batches.append, clock)
    clock.time += 1000
    made.close()
    assert not batches


def test_an_error_of_writing_is_raised_where_the_next_record_comes(clock):
    def full(records):
        raise OSError(28, "No space left on device")

    made = Writer(full, clock)
    made.add(record(0))
    clock.time += 31
    assert until(lambda: made._error is not None)
    with pytest.raises(RunError, match="No space left"):
        made.add(record(1))
    with pytest.raises(RunError, match="No space left"):
        made.close()


def test_what_comes_faster_than_it_is_written_waits(clock):
    gate = threading.Event()
    batches: list[list] = []

    def slow(records):
        gate.wait(5)
        batches.append(records)

    made = Writer(slow, clock)
    big = "x" * (writer.BYTES // 2)

    def add():
        for place in range(12):
            made.add(record(place, big))

    thread = threading.Thread(target=add)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    assert made._bytes <= 2.6 * writer.BYTES
    gate.set()
    thread.join(5)
    made.close()
    assert sum(map(len, batches)) == 12


def test_bursts(tmp_path, clock):
    """Answers come 64 at a time; those of a burst are there 30 s later, though no other row arrives meanwhile."""
    probe, engine = oracle()
    answer = engine.generate
    bursts = []

    def generate(conversations, options):
        if len(engine.asked) and len(engine.asked) % 64 == 0:
            clock.time += 31  # the next window takes long
            bursts.append(len(engine.asked))
            results = tmp_path / "results"
            assert until(lambda: len(list(results.glob("*.parquet"))) == len(bursts))
            assert len(numbers(tmp_path)) == len(engine.asked)
        return answer(conversations, options)

    engine.generate = generate
    vlmprobe.run(probe, questions(300), out=tmp_path, clock=clock, progress=False)
    assert bursts == [64, 128, 192, 256]
    assert len(numbers(tmp_path)) == 300
