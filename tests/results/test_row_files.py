"""Full rows on disk: those that stay in memory, mapped and read-only, in a file that any safetensors reader reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from common import QUESTION, picture
from safetensors.torch import load_file

import vlmprobe
from vlmprobe.errors import GenerationOptionError, ImageError
from vlmprobe.results.row_files import OnDisk, RowFile

ANSWER = {"max_new_tokens": 5, "do_sample": False}
WAYS = {
    "greedy": ANSWER,
    "beams": {"max_new_tokens": 5, "num_beams": 3, "do_sample": False},
    "sampled": {"max_new_tokens": 5, "do_sample": True, "temperature": 2.0, "seed": 1},
}
ROUNDING = {"float32": 0.0, "float16": 2**-10, "bfloat16": 2**-7}  # of a number of size 1


def assert_rows(stored, wanted, dtype="float32", more=0.0):
    assert stored.dtype.name == dtype
    assert stored.shape == wanted.shape
    read = np.asarray(stored, np.float32)
    assert np.array_equal(np.isnan(read), np.isnan(wanted))
    finite = ~np.isnan(wanted)
    assert (
        np.abs(read - wanted)[finite] <= ROUNDING[dtype] * np.abs(wanted)[finite] + 1e-3 * (dtype != "float32") + more
    ).all()


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("way", list(WAYS))
def test_rows_on_disk_are_the_rows_in_memory(way, dtype, probe_of, tmp_path):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    probe = probe_of("internvl")
    held = probe.generate(QUESTION, image=picture(), keep="logits", **WAYS[way])
    stored = probe.generate(QUESTION, image=picture(), keep=OnDisk(tmp_path, dtype), **WAYS[way])
    for side in ("prompt", "output"):
        rows = getattr(stored, side).logits
        assert isinstance(rows, np.memmap)
        assert_rows(rows, getattr(held, side).logits, dtype)
        with pytest.raises(ValueError, match="read-only"):
            rows[0] = 0
        assert np.array_equal(getattr(stored, side).logprobs, getattr(held, side).logprobs, equal_nan=True)
    tensors = load_file(stored.meta["logits_file"])
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "prompt": held.prompt.logits.shape,
        "output": held.output.logits.shape,
    }
    assert str(tensors["output"].dtype) == f"torch.{dtype}"


def test_a_plain_path_and_what_else_is_kept(probe_of, tmp_path):
    probe = probe_of("internvl")
    held = probe.generate(QUESTION, image=picture(), keep={"logits", "hidden"}, prompt=False, **ANSWER)
    stored = probe.generate(QUESTION, image=picture(), keep={tmp_path / "rows", "hidden"}, prompt=False, **ANSWER)
    assert stored.prompt is None
    assert_rows(stored.output.logits, held.output.logits)
    assert np.array_equal(stored.output.hidden, held.output.hidden)
    assert list(load_file(stored.meta["logits_file"])) == ["output"]


def test_each_result_has_a_file_of_its_own(probe_of, tmp_path):
    probe = probe_of("internvl")
    requests = ["Hi", "Who is there? " * 3, vlmprobe.Request("What?", picture())]
    held = list(probe.generate_many(requests, keep="logits", **ANSWER))
    stored = list(probe.generate_many(requests, keep=tmp_path, **ANSWER))
    assert len({each.meta["logits_file"] for each in stored}) == 3
    for one, other in zip(stored, held, strict=True):
        assert_rows(one.output.logits, other.output.logits, more=1e-4)
        assert_rows(one.prompt.logits, other.prompt.logits, more=1e-4)
    again = probe.generate("Hi", keep=tmp_path, **ANSWER)
    assert Path(again.meta["logits_file"]).name == "000003.safetensors"
    assert_rows(stored[0].output.logits, held[0].output.logits, more=1e-4)


def test_rows_after_the_end_token_are_not_stored(probe_of, tmp_path):
    probe = probe_of("llava")
    requests = [vlmprobe.Request(text, picture(seed)) for seed, text in enumerate(("Hi", QUESTION, "Yes or no?"))]
    free = [probe.generate(each.question, each.image, **ANSWER) for each in requests]
    options = {**ANSWER, "eos_token_id": int(free[0].output.ids[1])}
    stored = list(probe.generate_many(requests, keep=tmp_path, batch_size=3, **options))
    assert len({len(each.output) for each in stored}) > 1
    for request, result in zip(requests, stored, strict=True):
        alone = probe.generate(request.question, request.image, keep="logits", **options)
        assert_rows(result.output.logits, alone.output.logits, more=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_of_candidates(dtype, probe_of, tmp_path):
    probe = probe_of("internvl")
    texts = ["yes", "no", "yes it is", "yes it was", "a tiger"]
    held = probe.score(QUESTION, texts, image=picture(), keep="logits")
    stored = probe.score(QUESTION, texts, image=picture(), keep=OnDisk(tmp_path, dtype))
    for one, other in zip(stored.tables, held.tables, strict=True):
        assert isinstance(one.logits, np.memmap)
        assert_rows(one.logits, other.logits, dtype)
    assert len(load_file(stored.meta["logits_file"])) == len(texts)


def test_a_stream_ends_with_rows_on_disk(probe_of, tmp_path):
    probe = probe_of("internvl")
    with probe.stream("Hi", keep=tmp_path, **ANSWER) as tokens:
        assert all(row.logits is None for row in tokens)
    assert_rows(tokens.result.output.logits, probe.generate("Hi", keep="logits", **ANSWER).output.logits)


@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_results_with_rows_on_disk_can_be_saved(dtype, probe_of, tmp_path):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    stored = probe_of("internvl").generate("Hi", keep=OnDisk(tmp_path / "rows", dtype), **ANSWER)
    read = vlmprobe.load_result(stored.save(tmp_path / "saved"))
    assert read.output.logits.dtype == stored.output.logits.dtype
    assert np.array_equal(read.output.logits, stored.output.logits)


def test_a_call_that_fails_leaves_no_file(checkpoint, tmp_path):
    probe = vlmprobe.load(checkpoint("internvl"), device="cpu")
    steps = []

    def broken(*_):
        steps.append(None)
        if len(steps) == 3:
            raise KeyboardInterrupt

    handle = probe.engine.adapter.model.lm_head.register_forward_hook(broken)
    with pytest.raises(KeyboardInterrupt):
        probe.generate("Hi", keep=tmp_path, **ANSWER)
    handle.remove()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ImageError):
        probe.generate("Hi", image=tmp_path / "missing.png", keep=tmp_path, **ANSWER)
    assert list(tmp_path.iterdir()) == []
    assert probe.generate("Hi", keep=tmp_path, **ANSWER).meta["logits_file"].endswith("000000.safetensors")


def test_bad_places(probe_of, tmp_path):
    probe = probe_of("internvl")
    (tmp_path / "file").write_text("")
    with pytest.raises(GenerationOptionError, match="is a file"):
        probe.generate("Hi", keep=tmp_path / "file", **ANSWER)
    with pytest.raises(GenerationOptionError, match="float16"):
        OnDisk(tmp_path, "float61")
    with pytest.raises(GenerationOptionError, match="more than one"):
        probe.generate("Hi", keep={tmp_path / "a", tmp_path / "b"}, **ANSWER)
    with pytest.raises(GenerationOptionError, match=r"pathlib\.Path"):
        probe.generate("Hi", keep="rows/here", **ANSWER)


def test_a_file_takes_rows_in_any_order(tmp_path):
    import torch

    rows = torch.arange(24, dtype=torch.float32).reshape(6, 4)
    file = RowFile(OnDisk(tmp_path), {"a": 2, "b": 0})
    file.at("b", [1, 0, 2]).append(rows[[3, 2, 4]])
    file.at("a", [1]).append(rows[1:2])
    file.blank("a", [0])
    tables = file.close({"b": 2})
    assert np.array_equal(tables["a"], [[np.nan] * 4, rows[1].tolist()], equal_nan=True)
    assert np.array_equal(tables["b"], rows[2:4].numpy())
    read = load_file(file.path)
    assert torch.equal(read["b"], rows[2:4])
