"""The embedded model: its data, its checkpoint, its figures and its training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlmprobe import demo

pytest.importorskip("sklearn", reason="scikit-learn holds the handwriting: pip install scikit-learn")

from tools.demo_model.batches import Curriculum, draw_batch, pack
from tools.demo_model.build import build_model, build_tokenizer
from tools.demo_model.evaluate import Answered, Evaluation, answer, auroc, ece, measure
from tools.demo_model.train import Recipe, Stage, train
from vlmprobe.demo import handwriting, scenes
from vlmprobe.demo.bundle import bundled
from vlmprobe.demo.drawing import COLOURS
from vlmprobe.demo.handwriting import DIGITS
from vlmprobe.demo.wordings import WORDINGS, wordings


@pytest.fixture(scope="module")
def loaded():
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = demo.checkpoint()
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def ask(model, processor, question, picture=None):
    content = [{"type": "text", "text": question}]
    if picture is not None:
        content.insert(0, {"type": "image", "image": picture})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    out = model.generate(**inputs, return_dict_in_generate=True, output_logits=True)
    text = processor.decode(out.sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text, torch.stack(out.logits, 1)[0].softmax(-1)


# -- scenes ------------------------------------------------------------------------------------------


def test_split_is_by_sample_disjoint_and_complete():
    parts = handwriting.split()
    assert len(parts.train) == 1400
    assert len(parts.test) == 397
    assert sorted([*parts.train, *parts.test]) == list(range(1797))


def test_split_is_the_one_that_the_checkpoint_was_trained_on():
    parts = handwriting.split()
    assert parts.test[:8].tolist() == [2, 4, 6, 18, 20, 24, 28, 35]
    assert int(parts.test.sum()) == 362783


def test_held_out_scenes_show_test_samples_only_and_tell_the_truth():
    test, targets = set(handwriting.split().test.tolist()), handwriting.samples()[1]
    for scene in scenes.held_out(50, seed=3):
        assert set(scene.samples) <= test
        assert scene.digits == tuple(targets[list(scene.samples)])
        left, right = (DIGITS[digit] for digit in scene.digits)
        assert f"{left} on the left" in scene.description
        assert f"{right} on the right" in scene.description
        by_kind = {qa.question: qa.answer for qa in scene.questions}
        assert by_kind["Are the two digits the same?"] == ("yes" if left == right else "no")
        assert by_kind["What colour is the digit on the right?"] == scene.colours[1]
        asked = [answer for question, answer in by_kind.items() if question.startswith("Is there")]
        assert asked == ["yes" if scene.asked in scene.digits else "no"]


def test_the_sentence_reads_as_english():
    assert scenes.describe((7, 8), ("orange", "blue")) == "an orange seven on the left and a blue eight on the right"
    assert [scenes.article(word) for word in ("one", "eight", "two")] == ["a", "an", "a"]


def test_scenes_repeat_and_do_not_depend_on_how_many_are_drawn():
    few, many = list(scenes.held_out(2, seed=5)), list(scenes.held_out(4, seed=5))
    assert few[1].samples == many[1].samples
    assert np.array_equal(np.asarray(few[1].picture), np.asarray(many[1].picture))
    assert few[0].samples != next(scenes.held_out(1, seed=6)).samples


def test_hasty_writing_is_the_same_scene_drawn_otherwise():
    plain, hasty = scenes.scene_at(5, 1), scenes.scene_at(5, 1, strength=2.0)
    assert (hasty.samples, hasty.colours, hasty.questions) == (plain.samples, plain.colours, plain.questions)
    assert np.abs(np.asarray(hasty.picture, float) - np.asarray(plain.picture, float)).mean() > 1
    assert next(scenes.held_out(1, seed=5, strength=2.0)).picture != next(scenes.held_out(1, seed=5)).picture


def test_half_of_the_scenes_are_the_same_when_asked_for():
    pairs, _ = scenes.draw_pairs(np.random.default_rng(0), handwriting.split().test, 2000, 0.5)
    digits = handwriting.samples()[1][pairs]
    assert 0.46 < (digits[:, 0] == digits[:, 1]).mean() < 0.54


def test_colours_are_where_they_are_said_to_be():
    for scene in scenes.held_out(30, seed=1):
        pixels = np.asarray(scene.picture).astype(int)
        for half, colour in zip(np.split(pixels, 2, axis=1), scene.colours, strict=True):
            brightest = half.reshape(-1, 3)[half.sum(-1).argmax()]
            nearest = min(COLOURS, key=lambda name: abs(np.array(COLOURS[name]) - brightest).sum())
            assert nearest == colour


# -- tokenizer and packing ----------------------------------------------------------------------------


def test_every_word_of_questions_and_answers_is_one_token_and_any_text_survives():
    tokenizer = build_tokenizer()
    sentence = "an orange eight on the left and a blue two on the right"
    assert [tokenizer.decode([token]) for token in tokenizer(sentence).input_ids] == [
        "an",
        *(f" {word}" for word in sentence.split()[1:]),
    ]
    longest = max(len(tokenizer(wording).input_ids) for wording in WORDINGS)
    assert longest <= 9
    for text in ("左边是什么颜色？", "naïve 🦓\n\ttabs", "Zebras & <b>bold</b>", "'s  two  spaces "):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len({tuple(tokenizer(word).input_ids) for word in ("cat", "dog", "tac", "seven")}) == 4


def test_wordings_keep_side_and_digit():
    scene = scenes.scene_at(0, 0)
    for qa in scene.questions:
        assert wordings(qa)[0] == qa.question
        if qa.kind == "exists":
            assert all(DIGITS[scene.asked] in wording for wording in wordings(qa))
        if qa.kind in ("digit", "colour"):
            assert all(("left" in wording) == ("left" in qa.question) for wording in wordings(qa))


def test_a_packed_row_computes_what_single_conversations_do(loaded):
    model, processor = loaded
    scene = scenes.scene_at(2, 0)
    pixels = processor.image_processor([scene.picture], return_tensors="pt")["pixel_values"]
    packed = pack(processor.tokenizer, [[(qa, qa.question) for qa in scene.questions]] * 2, pixels.repeat(2, 1, 1, 1),
                  blind=np.array([False, True]))  # fmt: skip
    with torch.inference_mode():
        rows = model(**packed.inputs).logits.log_softmax(-1)
    for row, blind in enumerate((False, True)):
        answers = [int(place) for place in (packed.targets[row] != -100).nonzero()]
        expected = []
        for qa in scene.questions:
            content = [{"type": "text", "text": qa.question}]
            if not blind:
                content.insert(0, {"type": "image", "image": scene.picture})
            turns = [{"role": "user", "content": content}, {"role": "assistant", "content": qa.answer}]
            inputs = processor.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")
            ids = inputs["input_ids"][0]
            count = len(processor.tokenizer(qa.answer).input_ids) + 1
            with torch.inference_mode():
                single = model(**inputs).logits[0].log_softmax(-1)
            expected += single[-count - 1 : -1].gather(-1, ids[-count:, None])[:, 0].tolist()
        found = rows[row, answers].gather(-1, packed.targets[row, answers][:, None])[:, 0]
        assert found.tolist() == pytest.approx(expected, abs=1e-4)


# -- the shipped checkpoint -----------------------------------------------------------------------------


def test_checkpoint_is_small_safe_and_described():
    folder = demo.checkpoint()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5_000_000
    assert {file.suffix for file in folder.iterdir()} <= {".json", ".safetensors", ".jinja", ".md"}
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "AUROC" in card
    assert "1,797" in card


def test_importing_the_package_loads_neither_torch_nor_scikit_learn():
    calls = "d.checkpoint(), d.sample_images()"
    code = f"import sys, vlmprobe.demo as d; {calls}; print({{'torch', 'sklearn'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_bundled_pictures_are_the_scenes_they_are_named_after():
    made = bundled()
    assert sorted(made) == [path.name for path in demo.sample_images()]
    for path in demo.sample_images():
        shown, drawn = np.asarray(Image.open(path)).astype(int), np.asarray(made[path.name].picture).astype(int)
        assert shown.shape == drawn.shape
        assert abs(shown - drawn).max() <= 3


def test_bundled_pictures_are_described_right_and_the_unsure_one_is_unsure(loaded):
    sure = {}
    for path in demo.sample_images():
        text, probabilities = ask(*loaded, "Describe the picture.", Image.open(path))
        sure[path.name] = float(probabilities.max(-1).values.prod())
        if not path.name.startswith("unsure"):
            assert text == bundled()[path.name].description
    unsure = [value for name, value in sure.items() if name.startswith("unsure")]
    assert len(unsure) == 1
    assert unsure[0] < 0.8
    assert min(value for name, value in sure.items() if not name.startswith("unsure")) > 0.9


def test_held_out_accuracy_and_meaning_of_confidence(loaded):
    measured = measure(*loaded, 120, seed=100)
    assert measured.accuracy("digit") >= 0.95
    assert measured.accuracy("colour") >= 0.97
    assert measured.accuracy("same") >= 0.9
    assert measured.accuracy("exists") >= 0.9
    assert measured.accuracy("describe") >= 0.9
    assert measured.auroc() >= 0.85
    assert measured.ece() <= 0.05


def test_without_a_picture_the_model_knows_that_it_does_not_know(loaded):
    _, blind = ask(*loaded, "Which digit is on the left?")
    _, seen = ask(*loaded, "Which digit is on the left?", scenes.scene_at(0, 1).picture)
    assert blind[0].max() < 0.3
    assert seen[0].max() > 0.9


@pytest.mark.parametrize("size", [(1, 1), (640, 480), (33, 2000)])
def test_any_picture_size_and_any_language_is_answered(loaded, size):
    text, probabilities = ask(*loaded, "左边的数字是多少？", Image.new("RGB", size, "white"))
    assert torch.isfinite(probabilities).all()
    assert text.isascii()


# -- the figures ------------------------------------------------------------------------------------------


def test_figures_equal_those_computed_by_hand():
    # four answers: right at 0.9, right at 0.6, wrong at 0.8, wrong at 0.6
    confidence, correct = np.array([0.9, 0.6, 0.8, 0.6]), np.array([True, True, False, False])
    assert auroc(confidence, correct) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    # bins of a fifth: [0.6, 0.6] -> |0.6 - 0.5| x 2/4; [0.9, 0.8] -> |0.85 - 0.5| x 2/4
    assert ece(confidence, correct, bins=5) == pytest.approx(0.5 * 0.1 + 0.5 * 0.35)
    answered = [Answered("digit", "", "two", given, sure) for given, sure in (("two", 1.0), ("ten", 0.5), ("two", 0.5))]
    evaluation = Evaluation((*answered, Answered("same", "", "yes", "no", 0.7)))
    assert evaluation.accuracy("digit") == pytest.approx(2 / 3)
    assert evaluation.accuracy() == 0.5
    assert np.isnan(evaluation.auroc("same"))
    assert np.isnan(evaluation.accuracy("colour"))


def test_auroc_equals_scikit_learn():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    confidence, correct = rng.random(500).round(2), rng.random(500) < 0.7
    assert auroc(confidence, correct) == pytest.approx(roc_auc_score(correct, confidence))


def test_confidence_is_the_probability_of_the_answer(loaded):
    scene = scenes.scene_at(4, 0)
    batched = answer(*loaded, [scene, scenes.scene_at(4, 1)], batch=5)
    text, probabilities = ask(*loaded, "Describe the picture.", scene.picture)
    assert batched[0].answer == text
    assert batched[0].confidence == pytest.approx(float(probabilities.max(-1).values.prod()), abs=1e-5)


# -- training ---------------------------------------------------------------------------------------------


def test_a_short_training_learns_and_repeats():
    eyes, whole = Stage(steps=10, scenes=4, peak=2e-3, warmup=0.2), Stage(steps=16, scenes=4, peak=2e-3, warmup=0.2)
    recipe = Recipe(eyes=eyes, whole=whole)
    first, second = train(recipe), train(recipe)
    assert first.eyes[-3:].mean() < first.eyes[0]
    assert first.whole[-4:].mean() < 0.6 * first.whole[:2].mean()
    assert np.array_equal(first.eyes, second.eyes)
    assert np.array_equal(first.whole, second.whole)


def test_batches_come_from_training_samples_and_repeat():
    tokenizer, pool = build_tokenizer(), handwriting.split().train
    one, two = (draw_batch(np.random.default_rng(8), tokenizer, pool, 5, Curriculum()) for _ in range(2))
    assert torch.equal(one.input_ids, two.input_ids)
    assert torch.equal(one.pixel_values, two.pixel_values)
    assert one.pixel_values.shape == (5, 3, 32, 32)
    answers = one.input_ids.roll(-1, 1)
    kept = one.targets != -100
    assert torch.equal(one.targets[kept], answers[kept])


def test_untrained_weights_come_from_the_seed_and_leave_the_random_state_alone():
    tokenizer = build_tokenizer()
    before = torch.random.get_rng_state()
    one, two, other = (build_model(tokenizer, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    first, again, third = (model.lm_head.weight for model in (one, two, other))
    assert torch.equal(first, again)
    assert not torch.equal(first, third)


def test_missing_scikit_learn_names_the_remedy(monkeypatch):
    from vlmprobe.errors import MissingExtraError

    handwriting._bunch.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'scikit-learn>="):
        handwriting.samples()


def test_missing_weights_name_the_remedy(monkeypatch):
    from vlmprobe.errors import CheckpointError

    monkeypatch.setattr(demo, "_HERE", Path("nowhere"))
    with pytest.raises(CheckpointError, match=r"tools\.demo_model\.train"):
        demo.checkpoint()


def test_sample_questions_are_rows_with_the_right_answers():
    from vlmprobe.demo import sample_questions
    from vlmprobe.demo.scenes import held_out

    rows = sample_questions(9)
    assert [sorted(row) for row in rows] == [["gold", "id", "image", "question"]] * 9
    asked = [(each.question, each.answer) for scene in held_out(2) for each in scene.questions]
    assert [(row["question"], row["gold"]) for row in rows] == asked[:9]
    assert len({row["id"] for row in rows}) == 9
    assert rows[:8] == sample_questions(8)
    assert rows[0]["image"] != sample_questions(1, strength=2.0)[0]["image"]
