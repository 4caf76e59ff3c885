"""Images that threads read: in order, bounded in bytes, errors where the image is asked for, and no thread left."""

from __future__ import annotations

import io
import threading
import time

import numpy as np
import pytest
from common import picture

from vlmprobe.errors import ImageError
from vlmprobe.inputs import ahead
from vlmprobe.inputs.ahead import Decoder, is_decoded_by_threads, load_now, using
from vlmprobe.inputs.images import load_encoded

SIZE = 3 * 48 * 40


def png(seed=1):
    file = io.BytesIO()
    picture(seed).save(file, "PNG")
    return file.getvalue()


def held_of(source):
    """Bytes that are held for an image: its pixels, and its file, which is sent to servers."""
    image, encoded = load_encoded(source)
    return 3 * image.width * image.height + len(encoded or b"")


def threads():
    return [each for each in threading.enumerate() if each.name == "vlmprobe images"]


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def test_an_image_is_the_same_as_without_threads():
    sources = [png(seed) for seed in range(5)]
    decoder = Decoder(10**9)
    jobs = decoder.add(sources)
    for source, job in zip(sources, jobs, strict=True):
        with using(decoder, [job]):
            image, encoded = load_now(source)
        wanted, file = load_encoded(source)
        assert image.tobytes() == wanted.tobytes()
        assert encoded == file == source
    assert decoder.held == 0
    assert until(lambda: not threads())


def test_an_image_is_decoded_by_a_thread_and_once(monkeypatch):
    seen = []
    monkeypatch.setattr(
        ahead, "load_encoded", lambda source: seen.append(threading.current_thread().name) or load_encoded(source)
    )
    source = png()
    decoder = Decoder(10**9)
    jobs = decoder.add([source])
    assert jobs[0].done.wait(10)
    with using(decoder, jobs):
        load_now(source)
    assert seen == ["vlmprobe images"]
    with using(decoder, []):
        load_now(source)
    assert seen[1:] == [threading.current_thread().name], "without a job it is read as ever"


def test_the_same_source_twice_in_one_request():
    source = png()
    decoder = Decoder(10**9)
    with using(decoder, decoder.add([source, source])):
        first, second = load_now(source)[0], load_now(source)[0]
    assert first is not second
    assert first.tobytes() == second.tobytes()


def test_an_error_is_raised_where_the_image_is_asked_for(tmp_path):
    gone = str(tmp_path / "none.png")
    decoder = Decoder(10**9)
    with using(decoder, decoder.add([gone])), pytest.raises(ImageError, match=r"none\.png"):
        load_now(gone)


def test_what_waits_is_bounded_in_bytes():
    sources = [png(seed) for seed in range(12)]
    one = max(map(held_of, sources))
    decoder = Decoder(limit=2 * one, threads=2)
    jobs = decoder.add(sources)
    assert until(lambda: not threads())
    done = sum(job.done.is_set() for job in jobs)
    assert 2 <= done <= 4, "two fit, and each thread may have one more in its hands"
    assert decoder.held <= 4 * one
    for source, job in zip(sources, jobs, strict=True):
        with using(decoder, [job]):
            assert load_now(source)[0].size == (48, 40)
        assert decoder.held <= 4 * one
    assert decoder.held == 0
    assert until(lambda: not threads())


def test_one_that_no_thread_has_begun_is_read_by_who_asks(monkeypatch):
    monkeypatch.setattr(Decoder, "_start", lambda self: None)
    source = png()
    decoder = Decoder(10**9)
    with using(decoder, decoder.add([source])):
        assert load_now(source)[0].size == (48, 40)
    assert not threads()


def test_what_was_not_taken_is_let_go():
    decoder = Decoder(10**9)
    jobs = decoder.add([png(1), png(2)])
    with using(decoder, jobs):
        pass
    assert decoder.held == 0
    later = decoder.add([png(3)])
    assert later[0].done.wait(10)
    decoder.close()
    assert decoder.held == 0
    assert until(lambda: not threads())


def test_closing_stops_what_waits(monkeypatch):
    go = threading.Event()
    read = []
    monkeypatch.setattr(
        ahead, "load_encoded", lambda source: read.append(source) or (go.wait(10) and load_encoded(source))
    )
    decoder = Decoder(10**9, threads=1)
    decoder.add([png(seed) for seed in range(4)])
    assert until(lambda: len(read) == 1)
    decoder.close()
    go.set()
    assert until(lambda: not threads())
    assert len(read) == 1
    assert decoder.held == 0


def test_only_files_are_read_by_threads(tmp_path):
    for source in ("a.png", tmp_path / "a.png", "https://x/y.png", png(), {"bytes": png()}, {"path": "a.png"}):
        assert is_decoded_by_threads(source)
    array = np.zeros((2, 2, 3), dtype=np.uint8)
    for source in (picture(), array, io.BytesIO(png()), bytearray(png()), {"bytes": array}, None, 3):
        assert not is_decoded_by_threads(source)
