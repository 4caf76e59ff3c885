"""The embedded model of receipts: its data, its checkpoint and its training."""

from __future__ import annotations

import json
import sys
import zlib

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib holds the fonts: pip install matplotlib")

from tools.demo_model import receipts as training
from tools.demo_model.recipe import ReceiptRecipe, Stage
from vlmprobe import demo
from vlmprobe.demo import receipts
from vlmprobe.demo.receipts import FONTS, PIXELS, WORDINGS, draw_receipt, held_out, receipt_at
from vlmprobe.errors import MissingExtraError


def test_receipts_repeat_and_do_not_depend_on_how_many_are_drawn():
    few, many = list(held_out(2, seed=5)), list(held_out(3, seed=5))
    assert few[1].gold == many[1].gold
    assert np.array_equal(np.asarray(few[1].picture), np.asarray(many[1].picture))
    assert few[0].gold != receipt_at(6, 0).gold
    assert few[0].picture.size == (PIXELS, PIXELS)


def test_the_right_answer_is_json_of_what_is_drawn():
    for receipt in held_out(20):
        assert json.loads(receipt.answer) == receipt.gold
        for name, text in (("date", receipt.date), ("total", receipt.total)):
            assert "".join(each.character for each in receipt.glyphs if each.field == name) == text
        assert receipt.questions[0].question == WORDINGS[0]


def test_no_receipt_for_training_is_one_for_tests():
    def share(receipt):
        return zlib.crc32(f"{receipt.date} {receipt.total}".encode()) % 10

    assert {share(each) for each in held_out(10)} == {0}
    rng = np.random.default_rng(0)
    assert 0 not in {share(draw_receipt(rng, held_out=False, side=48)) for _ in range(20)}


@pytest.mark.parametrize("strength", [0.0, 2.0])
def test_characters_are_where_they_are_said_to_be(strength):
    darker = []
    for receipt in held_out(12, strength=strength):
        grey = np.asarray(receipt.picture.convert("L")).astype(float)
        paper = np.median(grey)
        for glyph in (each for each in receipt.glyphs if each.field and each.character in "023456789"):
            x, y = (round(PIXELS * each) for each in glyph.centre)
            darker.append(paper - grey[y - 16 : y + 16, x - 12 : x + 12].min())
    assert np.median(darker) > 60
    assert np.mean(np.array(darker) > 20) > 0.9


def test_a_stronger_receipt_says_the_same_and_looks_worse():
    plain, worn = receipt_at(5, 1, strength=0.0), receipt_at(5, 1, strength=2.0)
    assert worn.gold == plain.gold
    assert np.abs(np.asarray(worn.picture, float) - np.asarray(plain.picture, float)).mean() > 3


def test_every_font_is_used(monkeypatch):
    used, font = set(), receipts._font
    monkeypatch.setattr(receipts, "_font", lambda name, size: used.add(name) or font(name, size))
    list(held_out(40))
    assert used == set(FONTS)


def test_missing_matplotlib_names_the_remedy(monkeypatch):
    receipts._font.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'matplotlib>="):
        list(held_out(12))


def test_sample_receipts_are_requests():
    rows = demo.sample_receipts(3)
    assert [row["id"] for row in rows] == ["0", "1", "2"]
    assert rows[0]["gold"] == receipt_at(0, 0).gold
    assert rows[0]["question"] == WORDINGS[0]


# -- training -------------------------------------------------------------------------------------------


def test_structure_has_tokens_of_its_own_and_digits_are_single():
    words = training.tokenizer()
    ids = words(receipt_at(0, 0).answer).input_ids
    assert words.decode(ids) == receipt_at(0, 0).answer
    tokens = [words.decode([each]) for each in ids]
    assert tokens[:5] == ['{"', "date", '":', ' "', "2"]
    assert all(len(each) == 1 for each in tokens if each.strip().isdigit())


def test_what_is_drawn_for_training_says_which_character_stands_where():
    drawn = training.draw(3, seed=1)
    assert drawn.pixels.shape == (3, training.LOOK.picture, training.LOOK.picture)
    for row, text in enumerate(drawn.receipts):
        gold = json.loads(text)
        there = drawn.places[row]
        date = [training.CHARACTERS[each] for each in drawn.characters[row, (there >= 0) & (there < training.DATE)]]
        assert "".join(date) == gold["date"]
        assert np.abs(drawn.centres[row]).max() <= 1.1


def test_training_runs_and_only_its_end_trains_the_tower():
    towers = []

    def watch(stage, done, model):
        if stage == "whole":
            tower = model.model.vision_tower
            towers.append(None if isinstance(tower, training.Seen) else tower.embeddings.cls_token.detach().clone())

    stage = Stage(steps=4, scenes=2, peak=1e-3, warmup=0.5)
    trained = training.train(ReceiptRecipe(eyes=stage, whole=stage, receipts=4, frozen=0.5), watch=watch)
    assert np.isfinite(trained.eyes).all()
    assert np.isfinite(trained.whole).all()
    assert [each is None for each in towers] == [True, True, False, False]
    assert not np.array_equal(towers[2].numpy(), towers[3].numpy())
    evaluation, shares = training.measure(trained.model, trained.processor, 2)
    assert len(evaluation.answered) == 2
    assert set(shares) == {"date", "total"}
