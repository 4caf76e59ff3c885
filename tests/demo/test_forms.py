"""The embedded model that answers with JSON: its data, its checkpoint and its training."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="scikit-learn holds the handwriting: pip install scikit-learn")

import vlmprobe
from tools.demo_model import forms as training
from tools.demo_model.recipe import FormRecipe, Stage
from vlmprobe import demo
from vlmprobe.analysis import calibration, field_alternatives
from vlmprobe.analysis.field_frame import field_frame
from vlmprobe.demo.forms import WORDINGS, form_answer
from vlmprobe.demo.handwriting import DIGITS
from vlmprobe.demo.scenes import scene_at


@pytest.fixture(scope="module")
def probe():
    return vlmprobe.load("demo-forms", check=False)


def test_sample_forms_are_requests_with_the_right_fields():
    rows = demo.sample_forms(3)
    scene = scene_at(0, 2, strength=2.0)
    assert [row["id"] for row in rows] == ["0", "1", "2"]
    assert rows[2]["question"] == WORDINGS[0]
    assert np.array_equal(np.asarray(rows[2]["image"]), np.asarray(scene.picture))
    assert rows[2]["gold"] == json.loads(form_answer(scene.digits))
    assert rows[2]["gold"]["right"] == DIGITS[scene.digits[1]]


def test_checkpoint_is_small_safe_and_described():
    folder = demo.checkpoint("demo-forms")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5_000_000
    assert {file.suffix for file in folder.iterdir()} <= {".json", ".safetensors", ".jinja", ".md"}
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    card, recipe = (folder / "README.md").read_text(encoding="utf-8"), FormRecipe()
    assert f"{recipe.stage.steps:,} steps of {recipe.stage.scenes} scenes" in card
    assert f"--seed {recipe.seed}" in card


def test_the_model_answers_with_json_and_knows_where_it_errs(probe):
    results = probe.generate_many(demo.sample_forms(96), batch_size=48, prompt=False, progress=False)
    table = field_frame(results, "gold")
    assert (table["kind"] == "string").mean() > 0.97
    known = table.dropna(subset="at_least")
    assert 0.6 < table["correct"].mean() < 1
    assert calibration.auroc(known["at_least"], known["correct"]) > 0.75


def test_what_else_a_field_might_have_been_is_that_of_plain_forwards(probe, monkeypatch):
    """Every digit, after an answer about an image; and that the image is encoded once."""
    row = min(demo.sample_forms(24), key=lambda row: len(str(row["gold"])))
    result = probe.generate(row["question"], row["image"])
    looked, encode = [], torch.nn.functional.conv2d
    monkeypatch.setattr(
        torch.nn.functional, "conv2d", lambda *args, **options: looked.append(1) or encode(*args, **options)
    )
    found = field_alternatives(probe, result, "left", values=DIGITS)
    assert len(looked) == 1
    monkeypatch.undo()
    adapter = probe.engine.adapter
    content = [{"type": "image", "image": row["image"]}, {"type": "text", "text": row["question"]}]
    options = {"tokenize": True, "add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
    prompt = adapter.processor.apply_chat_template([{"role": "user", "content": content}], **options)
    before = result.text[: result.text.index('"left":') + len('"left":')]
    for value, probability in zip(found.values, found.probability, strict=True):
        ids = adapter.tokenizer(f'{before} "{value}"').input_ids
        count = len(ids) - len(adapter.tokenizer(before).input_ids)
        inputs = {**prompt, "input_ids": torch.cat([prompt["input_ids"], torch.tensor([ids])], 1)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.inference_mode():
            logprobs = adapter.model(**inputs).logits[0, -count - 1 : -1].double().log_softmax(-1)
        expected = float(logprobs.gather(-1, torch.tensor(ids[-count:])[:, None]).sum().exp())
        assert expected - 1e-6 <= probability  # and further tokenisations of the same value
        assert probability == pytest.approx(expected, abs=0.01)
    assert found.probability.sum() + found.rest == pytest.approx(1)
    assert found.probability.sum() > 0.95


# -- training -------------------------------------------------------------------------------------------


def test_training_leaves_the_tower_alone_and_repeats():
    recipe = FormRecipe(stage=Stage(steps=4, scenes=2, peak=1e-3, warmup=0.5))
    first, again = training.train(recipe), training.train(recipe)
    assert np.isfinite(first.whole).all()
    assert np.array_equal(first.whole, again.whole)
    shipped = vlmprobe.load("demo", check=False).engine.adapter.model.state_dict()
    changed = {name for name, value in first.model.state_dict().items() if not torch.equal(value, shipped[name])}
    assert changed
    assert not any("vision_tower" in name for name in changed)
    assert set(training.measure(first.model, first.processor, 2, 0.0)) <= {"left", "right"}
