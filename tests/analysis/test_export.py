"""Top-k to Parquet and back; divergences against torch's own over the full rows."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow
import pytest
import torch
from analysis_cases import VOCABULARY, random_result, random_table
from common import picture
from pyarrow import parquet

from vlmprobe.analysis import distillation, export
from vlmprobe.errors import ResultError


def student_rows(count, seed=9, spread=2.0):
    return torch.randn(count, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * spread


def full_divergence(table, student, rows):
    """[T] by torch, from the full rows."""
    teacher = torch.log_softmax(torch.tensor(table.logits[rows]).double(), -1)
    own = torch.log_softmax(student.double(), -1)
    return torch.nn.functional.kl_div(own, teacher, log_target=True, reduction="none").sum(-1)


def test_round_trip(tmp_path):
    results = [random_result(seed, request=f"q{seed}", count=3 + seed) for seed in range(4)]
    path = export.write_parquet(iter(results), tmp_path / "deep" / "teacher.parquet", sides=("prompt", "output"))
    read = list(distillation.read_parquet(path))
    assert [(each.result, each.side, each.id) for each in read] == [
        (place, side, f"q{place}") for place in range(4) for side in ("prompt", "output")
    ]
    for each in read:
        table = getattr(results[each.result], each.side)
        rows = table.scored
        assert rows.sum() == len(each.positions)
        np.testing.assert_array_equal(each.positions, table.positions[rows])
        np.testing.assert_array_equal(each.token_ids, table.ids[rows])
        np.testing.assert_array_equal(each.top_ids, table.top_ids[rows])
        np.testing.assert_array_equal(each.top_logprobs, table.top_logprobs[rows])
    described = distillation.describe_parquet(path)
    assert described["format"] == export.FORMAT
    assert described["top"] == 5
    assert described["vocabulary"] == VOCABULARY
    assert described["model"] == "random"
    assert list(tmp_path.joinpath("deep").iterdir()) == [path]


def test_the_file_is_a_plain_table_for_others(tmp_path):
    result = random_result(1)
    table = parquet.read_table(export.write_parquet([result], tmp_path / "a.parquet", sides=("prompt",)))
    assert table.schema.names == [
        "result", "id", "side", "position", "token_id", "token", "kind", "logprob", "logsumexp", "top_ids",
        "top_logprobs",
    ]  # fmt: skip
    assert table["kind"].to_pylist() == result.prompt.kinds
    assert table["token"].to_pylist() == result.prompt.tokens
    logprobs = table["logprob"].to_pylist()
    assert [value is None for value in logprobs] == [True, False, True, False, False, False]
    np.testing.assert_array_equal(
        np.float32([each for each in logprobs if each is not None]), result.prompt.logprobs[[1, 3, 4, 5]]
    )
    raw = table["logprob"].to_numpy()[1] + table["logsumexp"].to_numpy()[1]
    assert raw == pytest.approx(result.prompt.logits[1, result.prompt.ids[1]], abs=1e-5)


def test_several_row_groups_make_the_same_file(tmp_path, monkeypatch):
    results = [random_result(seed, count=7) for seed in range(5)]
    one = export.write_parquet(results, tmp_path / "one.parquet")
    monkeypatch.setattr(export, "GROUP_ROWS", 4)
    many = export.write_parquet(results, tmp_path / "many.parquet")
    assert parquet.ParquetFile(many).num_row_groups > parquet.ParquetFile(one).num_row_groups
    assert parquet.read_table(many).equals(parquet.read_table(one))
    assert [each.result for each in distillation.read_parquet(many)] == [0, 1, 2, 3, 4]


def test_more_than_the_table_holds_comes_from_full_rows():
    table = random_table(2, blank=(1,), alternatives=3)
    ids, logprobs = export.top_columns(table, 10)
    wide = random_table(2, blank=(1,), alternatives=10)
    np.testing.assert_array_equal(ids, wide.top_ids)
    np.testing.assert_allclose(logprobs, wide.top_logprobs, atol=1e-5)
    np.testing.assert_array_equal(export.top_columns(wide, 3)[0], table.top_ids)
    bare = random_table(2, alternatives=3, keep=False)
    with pytest.raises(ResultError, match="alternatives=10"):
        export.top_columns(bare, 10)
    with pytest.raises(ResultError, match="more than the 40 tokens"):
        export.top_columns(table, 41)
    for wrong in (0, True, 2.5):
        with pytest.raises(ResultError, match="at least 1"):
            export.top_columns(table, wrong)


def test_rounded_rows_still_sum_to_one():
    table = random_table(2, alternatives=3, spread=30.0)
    rounded = replace(table, logits=table.logits.astype(np.float16))
    _, logprobs = export.top_columns(rounded, VOCABULARY)
    np.testing.assert_allclose(np.exp(logprobs.astype(np.float64)).sum(axis=1), 1, atol=1e-6)


def test_with_the_whole_vocabulary_the_divergence_is_the_full_one(tmp_path):
    result = random_result(3, blank=(2,))
    path = export.write_parquet([result], tmp_path / "a.parquet", top=VOCABULARY)
    (targets,) = distillation.read_parquet(path)
    student = student_rows(len(targets.positions))
    wanted = full_divergence(result.output, student, result.output.scored)
    found = distillation.kl_divergence(targets, student, reduction="none")
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    dense = targets.dense(VOCABULARY)
    own = torch.nn.functional.kl_div(student.log_softmax(-1), dense, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(own.double(), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        distillation.kl_divergence(targets, student).double(), wanted.mean(), atol=1e-5, rtol=1e-5
    )
    total = distillation.kl_divergence(targets, student, reduction="sum")
    torch.testing.assert_close(total.double(), wanted.sum(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("top", [1, 3, 10, 39])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_with_a_top_k_the_rest_is_one_token(top, spread):
    table = random_table(4, 20, alternatives=VOCABULARY, spread=spread)
    targets = distillation.targets_of(table, top)
    student = student_rows(20, spread=spread)
    teacher = torch.softmax(torch.tensor(table.logits).double(), -1).gather(-1, targets.top_ids)
    own = torch.softmax(student.double(), -1).gather(-1, targets.top_ids)
    p, q = (torch.cat([each, 1 - each.sum(-1, keepdim=True)], -1) for each in (teacher, own))
    wanted = (p * (p / q).log()).sum(-1)
    found = distillation.kl_divergence(targets, student, reduction="none")
    torch.testing.assert_close(found.double(), wanted, atol=2e-5, rtol=1e-4)
    assert (found <= full_divergence(table, student, np.ones(20, bool)) + 1e-5).all()
    torch.testing.assert_close(targets.tail.double(), 1 - teacher.sum(-1), atol=1e-6, rtol=1e-5)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn():
    table = random_table(5, spread=20.0)  # so sure that 1 less the top-k would be rounding
    targets = distillation.targets_of(table)
    student = torch.tensor(table.logits, requires_grad=True)
    loss = distillation.kl_divergence(targets, student)
    loss.backward()
    assert abs(loss.item()) < 1e-5
    assert student.grad.abs().max() < 1e-4


def test_gradients_are_those_of_the_full_divergence():
    table = random_table(6, alternatives=VOCABULARY)
    targets = distillation.targets_of(table)
    student = student_rows(12).requires_grad_()
    distillation.kl_divergence(targets, student, reduction="sum").backward()
    wanted = torch.softmax(student.detach(), -1) - torch.softmax(torch.tensor(table.logits), -1)
    torch.testing.assert_close(student.grad, wanted, atol=1e-5, rtol=1e-4)


def test_dense_sums_to_one():
    targets = distillation.targets_of(random_table(7, blank=(0,)))
    for tail in ("spread", "drop"):
        dense = targets.dense(VOCABULARY, tail)
        assert dense.shape == (11, VOCABULARY)
        torch.testing.assert_close(dense.exp().sum(-1), torch.ones(11), atol=1e-5, rtol=0)
    spread, drop = targets.dense(VOCABULARY), targets.dense(VOCABULARY, "drop")
    torch.testing.assert_close(spread.gather(-1, targets.top_ids), targets.top_logprobs)
    assert drop.isneginf().sum(-1).tolist() == [VOCABULARY - 5] * 11
    with pytest.raises(ResultError, match="tail must be"):
        targets.dense(VOCABULARY, "keep")


def test_a_token_that_the_teacher_rules_out_costs_nothing():
    targets = distillation.targets_of(random_table(8, 1, alternatives=2))
    top = torch.tensor([[0.0, -torch.inf]])
    ruled = replace(targets, top_logprobs=top)
    student = student_rows(1)
    found = distillation.kl_divergence(ruled, student)
    torch.testing.assert_close(found, -student.log_softmax(-1)[0, targets.top_ids[0, 0]])


def test_what_does_not_fit_is_refused(tmp_path):
    targets = distillation.targets_of(random_table(9))
    with pytest.raises(ResultError, match="targets are of 12 tokens"):
        distillation.kl_divergence(targets, student_rows(11))
    with pytest.raises(ResultError, match="outside a vocabulary of 3"):
        targets.dense(3)
    with pytest.raises(ResultError, match="outside a vocabulary"):
        distillation.kl_divergence(targets, student_rows(12)[:, :3])
    with pytest.raises(ResultError, match="reduction"):
        distillation.kl_divergence(targets, student_rows(12), reduction="batchmean")
    with pytest.raises(ResultError, match="no results"):
        export.write_parquet([], tmp_path / "a.parquet")
    with pytest.raises(ResultError, match="sides must be among"):
        export.write_parquet([random_result(1)], tmp_path / "a.parquet", sides=("answer",))
    with pytest.raises(ResultError, match="Result 1 has no prompt side"):
        export.write_parquet(
            [random_result(1), replace(random_result(2), prompt=None)], tmp_path / "a.parquet", sides=("prompt",)
        )
    with pytest.raises(ResultError, match="vocabulary=7"):
        export.write_parquet([random_result(1)], tmp_path / "a.parquet", vocabulary=7)
    assert not list(tmp_path.iterdir())  # nothing half-written is left


def test_files_of_others_are_refused(tmp_path):
    path = export.write_parquet([random_result(1)], tmp_path / "a.parquet")
    table = parquet.read_table(path)

    def rewritten(changed):
        parquet.write_table(changed, tmp_path / "b.parquet")
        return tmp_path / "b.parquet"

    for changed, said in (
        (table.replace_schema_metadata({}), "was not written by"),
        (table.replace_schema_metadata({b"vlmprobe": b"{"}), "was not written by"),
        (table.replace_schema_metadata({b"vlmprobe": json.dumps({"format": 2}).encode()}), "layout 2"),
        (table.drop_columns(["logprob"]), "does not have the columns"),
        (ragged(table), "single K"),
    ):
        with pytest.raises(ResultError, match=said):
            list(distillation.read_parquet(rewritten(changed)))
    junk = tmp_path / "junk.parquet"
    junk.write_bytes(b"PAR1 and nothing else")
    for file in (junk, tmp_path / "missing.parquet"):
        with pytest.raises(ResultError, match="cannot be read"):
            list(distillation.read_parquet(file))


def ragged(table):
    rows = table.to_pylist()
    rows[3]["top_ids"] = rows[3]["top_ids"][:2]
    return pyarrow.Table.from_pylist(rows, schema=table.schema)


def test_targets_of_a_model_meet_the_model_itself(probe_of, own, tmp_path):
    """A student that is the teacher: its own forward has no divergence at the positions before the tokens."""
    from reference import chat, encode, extended, forward

    probe, image = probe_of("qwen2_vl"), picture()
    result = probe.generate(chat("Describe.", image), max_new_tokens=5, alternatives=8)
    path = export.write_parquet([result], tmp_path / "a.parquet", sides=("prompt", "output"))
    model = own("qwen2_vl")
    logits = forward(model, extended(model, encode(model, chat("Describe.", image)), result.output.ids.tolist()))
    for targets in distillation.read_parquet(path):
        student = torch.tensor(logits)[targets.positions - 1]
        assert abs(distillation.kl_divergence(targets, student).item()) < 1e-5
        off_by_one = torch.tensor(logits)[targets.positions - 2]
        assert distillation.kl_divergence(targets, off_by_one).item() > 1e-3
