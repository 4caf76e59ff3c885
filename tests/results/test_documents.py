"""Results as dictionaries, JSON and tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
from common import QUESTION, picture
from render_cases import make_table

import vlmprobe
from vlmprobe.errors import CapabilityError, ResultError
from vlmprobe.results.document import result_document


def say(*rows):
    table = make_table(list(rows))
    return vlmprobe.Result("".join(table.tokens), None, table, None, {"finish_reason": "stop"})


@pytest.fixture(scope="module")
def answer(probe_of):
    return probe_of("llava").generate(QUESTION, picture(), max_new_tokens=5, min_new_tokens=5, do_sample=False)


def test_a_result_as_a_dictionary(answer):
    made = answer.to_dict()
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert made["question"] == QUESTION
    assert made["text"] == answer.text
    assert [row["token"] for row in made["output"]] == answer.tokens == answer.output.tokens
    assert [row["logprob"] for row in made["output"]] == pytest.approx(answer.logprobs.tolist())
    assert made["confidence"] == pytest.approx(np.exp(answer.logprobs.sum()), rel=1e-5)
    assert made["mean_confidence"] == pytest.approx(np.exp(answer.logprobs.mean()), rel=1e-5)
    assert made["prompt"][0]["logprob"] is None, "the first token has no distribution"


def test_a_result_as_json(answer, tmp_path):
    text = answer.to_json()
    assert answer.to_json(tmp_path / "new" / "answer.json") == tmp_path / "new" / "answer.json"
    assert (tmp_path / "new" / "answer.json").read_text(encoding="utf-8") == text + "\n"
    assert json.loads(text) == answer.to_dict()
    assert "\n" not in text


def test_scores_as_a_dictionary_and_a_table(probe_of):
    scores = probe_of("llava").score(QUESTION, ["yes", "no it is not"], picture())
    made = scores.to_dict()
    assert json.loads(scores.to_json()) == made
    assert [each["text"] for each in made["candidates"]] == scores.candidates
    frame = scores.to_pandas()
    assert frame["candidate"].tolist() == scores.candidates
    assert frame["logprob"].tolist() == pytest.approx([each.logprobs.sum() for each in scores.tables], rel=1e-5)
    assert frame["tokens"].tolist() == [len(each) for each in scores.tables]
    assert frame["probability"].sum() == pytest.approx(1)


def test_full_logits_are_left_out_unless_wanted(probe_of):
    probe = probe_of("llava")
    made = probe.generate(QUESTION, picture(), max_new_tokens=2, do_sample=False, keep="logits")
    scored = probe.score(QUESTION, ["yes", "no"], picture(), keep="logits").to_dict()
    document = made.to_dict()
    rows = [*document["output"], *document["prompt"], *(row for c in scored["candidates"] for row in c["tokens"])]
    assert not any("logits" in row for row in rows)
    (first, *_) = result_document(made, logits=True)["output"]
    assert first["logits"] == pytest.approx(made.output.logits[0].tolist())


def test_a_result_as_a_table(answer):
    pandas = pytest.importorskip("pandas")
    assert answer.to_pandas().equals(answer.output.to_pandas())
    pandas.testing.assert_frame_equal(answer.to_pandas("prompt"), answer.prompt.to_pandas())


def test_both_sides_in_one_table(answer):
    both = answer.to_pandas("both")
    assert both["side"].tolist() == ["prompt"] * len(answer.prompt) + ["output"] * len(answer.output)
    assert both["token"].tolist() == answer.prompt.tokens + answer.output.tokens
    assert both["id"].tolist() == [*answer.prompt.ids.tolist(), *answer.output.ids.tolist()]
    logprobs = np.concatenate([answer.prompt.logprobs, answer.output.logprobs])
    np.testing.assert_array_equal(both["logprob"], logprobs)
    assert both.index.tolist() == list(range(len(both)))


def test_a_column_that_one_side_lacks_is_empty_there(answer):
    from dataclasses import replace

    scores = np.full(len(answer.output), -1.0, np.float32)
    both = replace(answer, output=replace(answer.output, scores=scores)).to_pandas("both")
    assert both["score"].isna().tolist() == [True] * len(answer.prompt) + [False] * len(answer.output)


def test_a_side_that_is_not_there(answer):
    from dataclasses import replace

    for side in ("prompt", "both"):
        with pytest.raises(ResultError, match="prompt=False"):
            replace(answer, prompt=None).to_pandas(side)
    with pytest.raises(ValueError, match="side must be"):
        answer.to_pandas("answer")


def test_numbers_of_numpy_and_lists_in_meta(answer):
    from dataclasses import replace

    changed = replace(answer, meta={**answer.meta, "n": np.int64(3), "x": np.array([1.5, np.nan]), 4: "key"})
    made = changed.to_dict()["meta"]
    assert (made["n"], made["x"], made["4"]) == (3, [1.5, None], "key")
    json.dumps(made, allow_nan=False)


def test_mean_confidence_of_a_bound_is_unknown(answer):
    from dataclasses import replace

    bound = replace(answer, output=replace(answer.output, logprobs_at_most=np.zeros(len(answer.output), np.float32)))
    assert np.isnan(bound.mean_confidence)
    assert np.isnan(bound.confidence)
    made = bound.to_dict()
    assert [made[name] for name in ("confidence", "mean_confidence", "perplexity")] == [None] * 3


def test_a_long_answer_names_its_least_sure_tokens():
    made = say(("the ", 0.9, []), ("old ", 0.04, []), *[("a ", 0.9, [])] * 396, ("b", 0.03, []), ("c", 0.2, []))
    assert len(made.output) == 400
    assert made.confidence < 1e-20
    assert made.mean_confidence == pytest.approx(0.9, abs=0.03)
    shown = repr(made)
    assert f"confidence {made.confidence:.3g}, {made.mean_confidence:.3f} per token" in shown
    assert shown.endswith("least sure 'b' 3.0%, 'old' 4.0%, 'c' 20.0%)")
    assert "confidence 5.5 × 10⁻⁴¹⁸, 0.090 per token" in repr(say(*[("a ", 0.09, [])] * 399))  # no float64
    assert "least sure" not in repr(say(("the ", 0.9, []), ("b", 0.03, [])))


def test_the_parts_of_a_local_probe(probe_of, own):
    probe = probe_of("llava")
    model = probe.model
    assert model is probe.engine.adapter.model
    assert probe.processor.tokenizer is probe.tokenizer
    seen = []
    handle = probe.layers[0].register_forward_hook(lambda *_: seen.append(1))
    probe.generate("Hi", max_new_tokens=2, do_sample=False)
    handle.remove()
    assert len(probe.layers) == model.config.text_config.num_hidden_layers
    assert seen


def test_a_served_model_has_no_parts_here():
    class Served:
        """An engine elsewhere."""

    probe = vlmprobe.Probe(Served())
    for name in ("model", "processor", "tokenizer", "layers"):
        with pytest.raises(CapabilityError, match="which Served does not provide: open the checkpoint with vlmprobe"):
            getattr(probe, name)


def test_a_wrapped_model_is_told_from_its_checkpoint(own):
    family = own("llava")
    path = family.model.config.name_or_path
    assert vlmprobe.wrap(family.model, family.processor).meta["model"] == f"{path} (wrapped)"
    assert vlmprobe.wrap(family.model, family.processor, name="mine").meta["model"] == "mine"
    for bad in ("", 3):
        with pytest.raises(TypeError, match="name must be a string"):
            vlmprobe.wrap(family.model, family.processor, name=bad)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_wrapped_model_names_its_peft_adapters(own):
    peft = pytest.importorskip("peft")
    family = own("llava")
    path = family.model.config.name_or_path
    tuned = peft.get_peft_model(family.model, peft.LoraConfig(target_modules=["q_proj"], r=2), adapter_name="birds")
    assert vlmprobe.wrap(tuned, family.processor).meta["model"] == f"{path} (wrapped, with birds)"
    assert vlmprobe.wrap(tuned, family.processor).model is tuned


def test_json_and_pages_replace_only_their_own_kind(answer, tmp_path):
    """What else is at the path stays, such as the image that was asked about; a path is what they return."""
    for name, write, held in (
        ("a.html", answer.to_html, "<title>yesterday"),
        ("a.json", answer.to_json, '{"yesterday": 1}'),
    ):
        picture().save(tmp_path / "scene.png")
        (tmp_path / "notes.txt").write_text("mine")
        for other in ("scene.png", "notes.txt"):
            before = (tmp_path / other).read_bytes()
            with pytest.raises(ResultError, match=f"{other} exists and is not (an HTML page|JSON): name another"):
                write(tmp_path / other)
            assert (tmp_path / other).read_bytes() == before
        with pytest.raises(IsADirectoryError):
            write(tmp_path)
        (tmp_path / name).write_text(f"<!DOCTYPE html><html>{held}" if name == "a.html" else held)
        assert write(str(tmp_path / name)) == tmp_path / name
        assert "yesterday" not in (tmp_path / name).read_text(encoding="utf-8")
        assert write(tmp_path / name) == tmp_path / name  # its own
        (tmp_path / name).write_text("")
        assert write(tmp_path / name).stat().st_size > 100
    with pytest.raises(ResultError, match="is not JSON"):
        answer.to_json(tmp_path / "a.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.json", "notes.txt", "scene.png"]


def test_a_page_that_cannot_be_written_leaves_the_former_one(answer, tmp_path, monkeypatch):
    answer.to_html(tmp_path / "a.html")
    before = (tmp_path / "a.html").read_bytes()

    def full(path, text, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "write_text", full)
    with pytest.raises(OSError, match="No space"):
        answer.to_html(tmp_path / "a.html")
    assert (tmp_path / "a.html").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


@pytest.mark.parametrize("name", ["ans.json", "ans.HTML", "ans.csv", "ans.parquet"])
def test_save_to_a_file_of_another_kind_says_what_writes_it(name, answer, tmp_path):
    with pytest.raises(ResultError, match=rf"save writes a folder.*; to_\w+\(.* writes {name}"):
        answer.save(tmp_path / name)
    assert not list(tmp_path.iterdir())
