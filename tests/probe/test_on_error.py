"""``generate_many(on_error=...)`` on a model that is open here: one bad request loses no other."""

from __future__ import annotations

import numpy as np
import pytest
from common import picture

from vlmprobe import Request
from vlmprobe.errors import GenerationOptionError, ImageError, NonFiniteLogitsError
from vlmprobe.probe.generate_many import Failure

OPTIONS = {"max_new_tokens": 2, "do_sample": False, "prompt": False}


def asked(tmp_path):
    return [
        Request("What is this?", picture(1), id=0),
        Request("What is this?", tmp_path / "none.png", id=1),
        Request("", id=2),
        {"prompt": "What is this?", "image": picture(2), "id": 3},
    ]


@pytest.mark.parametrize("batch_size", ["auto", 1, 2])
def test_failures_stand_in_their_place(probe_of, tmp_path, batch_size):
    probe = probe_of("llava")
    found = list(probe.generate_many(asked(tmp_path), on_error="keep", batch_size=batch_size, **OPTIONS))
    assert [type(each).__name__ for each in found] == ["Result", "Failure", "Failure", "Result"]
    assert [each.meta["id"] for each in found] == [0, 1, 2, 3]
    assert isinstance(found[1].error, ImageError)
    assert "empty" in str(found[2].error)
    alone = probe.generate("What is this?", picture(2), **OPTIONS)
    assert np.abs(found[3].output.logprobs - alone.output.logprobs).max() < 1e-4


@pytest.mark.parametrize("batch_size", ["auto", 1])
def test_raise_gives_what_came_before(probe_of, tmp_path, batch_size):
    running = probe_of("llava").generate_many(asked(tmp_path), batch_size=batch_size, **OPTIONS)
    assert next(running).meta["id"] == 0
    with pytest.raises(ImageError):
        next(running)
    assert list(running) == []


def test_an_error_of_one_in_a_batch_is_its_own(probe_of, monkeypatch):
    probe = probe_of("llava")
    plain = probe.engine.generate

    def generate(conversations, options):
        if any(each.question == "bad" for each in conversations):
            raise NonFiniteLogitsError("not finite")
        return plain(conversations, options)

    monkeypatch.setattr(probe.engine, "generate", generate)
    monkeypatch.setattr(type(probe.engine), "remembering", lambda self, images, **_: self)
    found = list(probe.generate_many(["one", "bad", "two"], on_error="keep", batch_size=3, **OPTIONS))
    assert [isinstance(each, Failure) for each in found] == [False, True, False]
    with pytest.raises(NonFiniteLogitsError):
        list(probe.generate_many(["one", "bad", "two"], batch_size=3, **OPTIONS))


def test_other_words_are_refused(probe_of):
    with pytest.raises(GenerationOptionError, match="'raise' or 'keep'"):
        probe_of("llava").generate_many(["one"], on_error="ignore")
