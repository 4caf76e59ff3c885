"""Where else a box could have been: as brute-force enumeration says it, by rows alone within bounds that hold."""

from __future__ import annotations

import itertools
import json
import pickle
import re
import time
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
import torchvision
from box_answers import ToyModel, answer, written
from PIL import Image

import vlmprobe
from vlmprobe.analysis import boxes
from vlmprobe.analysis.box_numbers import from_rows
from vlmprobe.analysis.box_overlap import MOST_CASES, Joint, joint_of, overlap
from vlmprobe.analysis.box_tree import Follower, Place
from vlmprobe.errors import CapabilityError, MessageError, ResultError, VlmprobeWarning

matplotlib.use("Agg")
TOKENS = ["<box>", "</box>", " ", "1", "2", "7", "0", "12", "71", "2 ", " 7", "x", "0</box>"]
PURE = TOKENS[:9]  # none of them holds both digits and something else


def outcomes(table, lead, greatest, step=1.0, first=0):
    return from_rows(table[first:], lead, greatest, step)


def listed(found):
    pairs = zip(found.low, found.high, strict=True)
    return dict(zip(pairs, zip(found.mass, found.sure, strict=True), strict=True))


# -- by the rows of an answer ---------------------------------------------------------------------------


def test_outcomes_along_the_number_that_was_written_are_those_computed_by_hand():
    table = answer(
        ("2", 0.6, {"3": 0.3, "x": 0.1}),  # 3 may end, or go on to 30 to 39; x is no number
        ("3", 0.5, {"4": 0.2, ",": 0.2}),  # 0.1 is not listed: 2, or 20 to 29
        (",", 0.9, {"5": 0.05}),  # 235 is beyond 99; 0.05 is not listed: 23, or beyond
    ).output
    found = outcomes(table, "", 99)
    total = 0.3 + 0.6 * (0.2 + 0.2 + 0.1) + 0.3 * (0.9 + 0.05)
    wanted = {
        (3, 39): (0.3, 0),
        (24, 24): (0.12, 0),
        (2, 2): (0.12, 0.12),
        (2, 29): (0.06, 0),
        (23, 23): (0.27 + 0.015, 0.27),
    }
    assert set(listed(found)) == set(wanted)
    for key, (mass, sure) in wanted.items():
        np.testing.assert_allclose(listed(found)[key], [mass / total, sure / total], rtol=1e-5)
    assert found.outside == pytest.approx((0.1 + 0.3 * 0.05) / (0.1 + 0.3 * 0.05 + total), rel=1e-5)


@pytest.mark.parametrize(
    ("tokens", "lead", "first"),
    [
        (["[", "12", ","], "", 1),
        ([" ", " 12", ","], "", 1),
        (["[12", ","], "[", 0),  # a number that begins in a token
        (['": [12', ","], '": [', 0),
        (["[", "1", "2,", "3"], "", 1),  # one that ends in one
        (["[", "12]}"], "", 1),
        (["[", "7, 12", "]"], "7,", 1),  # two numbers in one token
    ],
)
def test_numbers_that_share_tokens_with_structure_are_read(tokens, lead, first):
    found = outcomes(answer(*tokens).output, lead, 99, first=first)
    assert listed(found) == {(12, 12): (1, 1)}


def test_a_token_that_holds_structure_too_is_told_and_bounds_the_probability():
    result = answer("<box>", ("1", 0.5, {}), " ", "2", " ", ("3", 0.5, {}), (" 4", 0.8, {}), ("5</", 0.9, {}), "box>")
    found = boxes(result)
    assert found.written == [[1, 2, 3, 45]]
    assert found.straddles.tolist() == [True]
    assert np.isnan(found.probability[0])
    np.testing.assert_allclose([found.at_least[0], found.at_most[0]], [0.5 * 0.5 * 0.8 * 0.9, 0.5 * 0.5 * 1], rtol=1e-5)
    plain = boxes(answer("<box>", ("1", 0.5, {}), " ", "2", " ", "3", " ", ("4", 0.8, {}), "</box>"))
    np.testing.assert_allclose([plain.probability[0], plain.at_least[0], plain.at_most[0]], [0.4] * 3, rtol=1e-5)


def test_location_tokens_are_numbers_of_their_own():
    given = [
        ("<loc0100>", 0.7, {"<loc0200>": 0.2, "<loc1023>": 0.1}),
        ("<loc0200>", 1.0, {}),
        ("<loc0500>", 0.5, {"<loc0600>": 0.4, "cat": 0.1}),
        ("<loc1023>", 1.0, {}),
        (" dog", 0.25, {}),
    ]
    found = boxes(answer(*given, image_sizes=[[2046, 1023]]))
    assert found.format == "paligemma"
    np.testing.assert_allclose(found.xyxy, [[400, 100, 2046, 500]])
    y1, y2 = found.coordinate(0, "y1"), found.coordinate(0, "y2")
    np.testing.assert_allclose(y1.low, [100, 200, 1023])
    np.testing.assert_allclose(y1.mass, [0.7, 0.2, 0.1], rtol=1e-5)
    assert y1.expected == pytest.approx(100 * 0.7 + 200 * 0.2 + 1023 * 0.1, rel=1e-5)
    assert y1.spread == pytest.approx(np.sqrt(np.cov([100, 200, 1023], aweights=[0.7, 0.2, 0.1], ddof=0)), rel=1e-4)
    assert y1.unresolved == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(y2.mass, [0.5 / 0.9, 0.4 / 0.9], rtol=1e-5)
    assert y2.outside == pytest.approx(0.1, rel=1e-5)
    reported = torch.tensor([[400.0, 100, 2046, 500]])
    others = [(top, bottom) for top in (100.0, 200, 1023) for bottom in (500.0, 600)]
    weights = np.outer([0.7, 0.2, 0.1], [0.5 / 0.9, 0.4 / 0.9]).ravel()
    sides = torch.tensor([[400, min(pair), 2046, max(pair)] for pair in others])
    shares = torchvision.ops.box_iou(reported, sides).numpy()[0]
    assert found.iou[0] == pytest.approx(float(shares @ weights), rel=1e-5)
    np.testing.assert_allclose(found.overlap_above(0.7), (weights @ (shares > 0.7)) * np.ones((2, 1)), rtol=1e-5)
    assert found.label_at_least[0] == pytest.approx(0.25)
    assert found.scores[0] == pytest.approx(0.25 * found.iou[0])
    assert found.probability[0] == pytest.approx(0.35, rel=1e-5)


def test_kosmos_patches_are_two_coordinates_each():
    given = [("<patch_index_0000>", 0.75, {"<patch_index_0033>": 0.25}), ("<patch_index_1023>", 1.0, {})]
    found = boxes(answer("<object>", *given, "</object>", image_sizes=[[320, 640]]))
    np.testing.assert_allclose(found.xyxy, [[5, 10, 315, 630]])
    np.testing.assert_allclose(found.coordinate(0, "x1").low, [5, 15])
    np.testing.assert_allclose(found.coordinate(0, "y1").low, [10, 30])
    inner = (315 - 15) * (630 - 30) / ((315 - 5) * (630 - 10))
    assert found.iou[0] == pytest.approx(0.75 + 0.25 * inner, rel=1e-5)


def test_what_an_engine_does_not_say_leaves_every_number_open():
    result = written("<box>1 2 3 4</box>")
    table = replace(result.output, logprobs=np.full(len(result.output), np.nan, np.float32))
    found = boxes(replace(result, output=table))
    np.testing.assert_allclose(found.xyxy, [[1, 2, 3, 4]])
    assert np.isnan([found.probability[0], found.at_least[0], found.scores[0], found.iou[0]]).sum() >= 3
    assert found.coordinate(0, "x1").interval() == (0, 1000)
    assert found.coordinate(0, "x1").unresolved == pytest.approx(1)
    np.testing.assert_allclose([found.iou_at_least[0], found.iou_at_most[0]], [0, 1])


def test_a_text_that_was_changed_has_boxes_and_no_probabilities():
    result = replace(written("<box>1 2 3 4</box>"), text="<box>5 6 7 8</box>")
    with pytest.warns(VlmprobeWarning, match="changed"):
        found = boxes(result)
    np.testing.assert_allclose(found.xyxy, [[5, 6, 7, 8]])
    assert np.isnan([found.at_least[0], found.iou[0], found.scores[0]]).all()
    with pytest.raises(ResultError, match="has no x1"):
        found.coordinate(0, "x1")


def test_a_cut_off_number_is_open_and_has_no_place():
    found = boxes(answer("<box>", "1", " ", "2", " ", "3", " ", ("4", 0.9, {"5": 0.1})))
    assert found.notes == ["cut off"]
    np.testing.assert_allclose(found.xyxy, [[1, 2, 3, np.nan]])
    assert found.coordinate(0, "y2").interval() == (4, 599)
    assert np.isnan(found.iou[0])


def test_columns_dicts_slices_and_views():
    result = replace(
        written("<ref>a</ref><box>[[1, 2, 30, 40], [3, 4, 5]]</box>"), images=(Image.new("RGB", (10, 10)),)
    )
    found = boxes(result)
    frame = found.to_pandas()
    assert frame["kind"].tolist() == ["box", "malformed"]
    assert {"x1", "y2_low", "x1_expected", "iou_at_most", "score", "notes"} <= set(frame)
    assert found.to_dict()["boxes"][1]["x1"] is None
    assert found[1].kinds == ["malformed"]
    assert len(found[found.scores > 0.5]) == 1
    assert repr(found) == "Boxes(2 boxes, internvl, least sure a >99.9%)"
    assert "3 numbers, not 4" in found._repr_html_()
    assert "Coordinate(x1: 90% from 1 to 1" in repr(found.coordinate(0, "x1"))
    assert found.coordinate(0, "x1").to_pandas()["probability"].tolist() == [1.0]
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.overlap_above(0.5), found.overlap_above(0.5))
    with pytest.raises(ResultError, match="side must be"):
        found.coordinate(0, "x3")


def test_boxes_are_drawn_on_the_image_and_nothing_is_an_error():
    given = ["<box>", ("1", 0.5, {"3": 0.5}), "0", " ", "2", "0", " ", "9", "0", " ", "8", "0", "</box>"]
    result = replace(answer(*given, "<point>", "5", " ", "6", "</point>"), images=(Image.new("RGB", (10, 10)),))
    ax = boxes(result).plot()
    assert len(ax.patches) >= 2
    assert len(ax.images) == 1
    assert [each.get_text() for each in ax.texts][1] == ">99.9%"
    assert ax.get_xlim() == (0, 1000)
    assert ax.get_ylim() == (1000, 0)
    assert "1 more not drawn" in boxes(result).plot(most=1, image=np.zeros((5, 5), np.uint8)).get_xlabel()
    with pytest.raises(ResultError, match="no box"):
        boxes(written("nothing")).plot()


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.long)])
def test_many_boxes_take_time_that_grows_with_their_number_only(count):
    others = {str(digit): 0.01 for digit in range(5, 9)}
    unsure = ["<box>", *[each for _ in range(3) for each in (("1", 0.9, others), ("2", 0.9, others), " ")]]
    unsure = [*unsure, ("9", 0.9, others), "</box>"]
    started = time.perf_counter()
    assert len(boxes(written("<box>11 22 33 44</box>" * count))) == count
    assert len(boxes(answer(*(unsure * (count // 10))))) == count // 10
    assert time.perf_counter() - started < count / 20  # measured: 5 s for a thousand, with both cores busy


# -- with the model -------------------------------------------------------------------------------------


def brute_force(model, begin, greatest, deepest=5):
    """Probability of every number after a beginning: all sequences of tokens, told apart by their whole text."""
    found, outside = {}, 0.0
    waiting = [((), 1.0)]
    for depth in range(deepest + 1):
        further = []
        for path, mass in waiting:
            for token, share in enumerate(model.row((*begin, *path))):
                text = model.decode((*path, token))
                whole = re.fullmatch(r"\s*(\d+)(\D.*)", text, re.DOTALL)
                if whole:
                    if int(whole[1]) <= greatest:
                        found[int(whole[1])] = found.get(int(whole[1]), 0.0) + mass * share
                    else:
                        outside += mass * share
                elif not re.fullmatch(r"\s*\d*", text) or (text.strip() and int(text) > greatest):
                    outside += mass * share
                elif depth < deepest:
                    further.append(((*path, token), mass * share))
        waiting = further
    return found, outside


@pytest.mark.parametrize("seed", range(3))
def test_every_number_has_the_probability_of_brute_force_over_all_tokenisations(seed):
    model = ToyModel(TOKENS, seed)
    begin = (0,)
    follower = Follower(model, None, [*begin, 3, 2], 0.0)
    found = follower.outcomes(Place(1, 1, "", "", 99, 1.0))
    wanted, _ = brute_force(model, begin, 99)
    total = sum(wanted.values())
    exact = {low: mass for (low, high), (mass, _) in listed(found).items() if low == high}
    assert set(wanted) <= set(exact)
    missing = 1 - total - brute_force(model, begin, 99)[1]  # longer than what was enumerated
    assert missing / total < 0.01
    for number, mass in wanted.items():
        assert exact[number] == pytest.approx(mass / total, abs=2 * missing / total + 1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("alternatives", [1, 3])
def test_bounds_from_the_rows_alone_hold(seed, alternatives):
    """What the tree of the same model says lies within what a few alternatives of each row allow."""
    model = ToyModel(TOKENS, seed, sharp=1.5)
    tokens = ["<box>", "1", " 7", " ", "71", " ", "12", "</box>"]
    result = model.answer(*tokens, alternatives=alternatives, image_sizes=[[100, 100]])
    bounded = boxes(result)
    exact = exact_boxes(model, result, least=1e-7, draws=0)
    for side in ("x1", "y1", "x2", "y2"):
        rows, tree = bounded.coordinate(0, side), exact.coordinate(0, side)
        assert tree.unresolved < 1e-3
        least, most = rows.bounds
        assert least - 0.1 <= tree.expected <= most + 0.1
        assert rows.interval()[0] <= tree.interval()[0] + 1e-9
        assert tree.interval()[1] <= rows.interval()[1] + 1e-9
        assert rows.outside <= tree.outside + 1e-6
    assert bounded.iou_at_least[0] - 1e-6 <= exact.iou_at_least[0]
    assert exact.iou_at_most[0] <= bounded.iou_at_most[0] + 1e-6
    for threshold in (0.1, 0.5, 0.9):
        (least, most), (low, high) = bounded.overlap_above(threshold), exact.overlap_above(threshold)
        assert least[0] - 1e-6 <= low[0] <= high[0] <= most[0] + 1e-6


def exact_boxes(model, result, **options):
    """As :func:`boxes` with a probe, of an answer whose prompt is not looked at."""
    return boxes(result.output, question="?", image=Image.new("RGB", (100, 100)), probe=model, **options)


def test_boxes_are_drawn_from_the_chain_of_the_models_own_conditionals():
    model = ToyModel(PURE, 5, sharp=1.0)
    result = model.answer("<box>", "1", " ", "2", " ", "7", " ", "71", "</box>", image_sizes=[[100, 100]])
    ids = result.output.ids.tolist()
    places = [Place(first, first, "", "", 1000, 1.0) for first in (1, 3, 5, 7)]
    follower = Follower(model, None, ids, 0.0)
    drawn = follower.draws(places, 2000, np.random.default_rng(0))
    assert not np.isnan(drawn).any()

    def assert_alike(column, place, given):
        """Numbers were drawn as often as they are likely."""
        exact = listed(Follower(model, None, given, 1e-6).outcomes(place))
        wanted = np.array([exact.get((value, value), (0.0,))[0] for value in range(1001)])
        found = np.bincount(column.astype(int), minlength=1001) / len(column)
        noise = np.sqrt(2 / np.pi * wanted * (1 - wanted) / len(column)).sum() / 2  # of as many true draws
        assert np.abs(found - wanted).sum() / 2 < 1.3 * noise + 0.01  # total variation

    assert_alike(drawn[:, 0], places[0], ids)
    token = max((1, 2, 7), key=lambda value: np.sum(drawn[:, 0] == value))  # each of them one token
    after = drawn[drawn[:, 0] == token, 1]
    assert len(after) > 200
    assert_alike(after, places[1], [0, PURE.index(str(token)), *ids[2:]])


def test_the_same_seed_draws_the_same_boxes_and_none_can_be_asked_for():
    model = ToyModel(TOKENS, 5)
    result = model.answer("<box>", "1", " ", "2", " ", "7", " ", "71", "</box>")
    one, other = (exact_boxes(model, result, seed=3, draws=50) for _ in range(2))
    assert one.iou_at_least[0] == other.iou_at_least[0]
    assert len(one.joints[0].weight) == 50
    assert len(exact_boxes(model, result, draws=0).joints[0].joint.weight) > 50


def test_the_overlap_is_that_of_torchvision_and_its_bounds_hold():
    random = np.random.default_rng(0)
    box = np.array([10.0, 20, 60, 90])
    others = random.uniform(0, 100, (200, 4))
    ordered = np.concatenate([np.minimum(others[:, :2], others[:, 2:]), np.maximum(others[:, :2], others[:, 2:])], 1)
    wanted = torchvision.ops.box_iou(torch.tensor(box[None]), torch.tensor(ordered)).numpy()[0]
    np.testing.assert_allclose(overlap(box, others), wanted, atol=1e-12)
    low = random.uniform(0, 60, (50, 4))
    high = low + random.uniform(0, 40, (50, 4)) * random.integers(0, 2, (50, 4))
    weight = np.full(50, 1 / 50)
    least, greatest = Joint(low, high, weight, weight).overlaps(box)
    for _ in range(300):
        inner = overlap(box, random.uniform(low, high))
        assert np.all(least - 1e-9 <= np.nan_to_num(inner))
        assert np.all(np.nan_to_num(inner) <= greatest + 1e-9)


def test_many_combinations_are_drawn_evenly_and_come_close_to_all_of_them():
    random = np.random.default_rng(1)
    parts = []
    for column, centre in enumerate((200, 300, 700, 800)):
        values = np.sort(random.choice(np.arange(-60, 60), 12, replace=False)) + centre
        mass = random.dirichlet(np.ones(12))
        found = type("Found", (), {"mass": mass, "sure": mass})
        parts.append(((column,), values[:, None], values[:, None], found))
    assert MOST_CASES < 12**4
    box = np.array([200.0, 300, 700, 800])
    every = [np.array(each) for each in itertools.product(*(part[1][:, 0] for part in parts))]
    weights = np.array([np.prod(each) for each in itertools.product(*(part[3].mass for part in parts))])
    wanted = float(weights @ overlap(box, np.array(every)))
    least, most = joint_of(parts).expected(box)
    assert least == pytest.approx(most)
    assert least == pytest.approx(wanted, abs=2e-3)


def test_a_probe_that_cannot_follow_is_an_error_that_says_so():
    result = written("<box>1 2 3 4</box>")
    with pytest.raises(CapabilityError):
        boxes(result, probe=type("Probe", (), {"engine": object(), "conversation": lambda *a, **k: None})())
    with pytest.raises(ResultError, match="question="):
        boxes(result.output, image=Image.new("RGB", (4, 4)), probe=ToyModel(TOKENS))
    table = replace(result.output, ids=None)
    with pytest.raises(ResultError, match="token ids"):
        boxes(replace(result, output=table), probe=ToyModel(TOKENS))


# -- on tiny models -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(checkpoint):
    """A probe of a tiny model that likes digits, its question and an answer that was given to it."""
    probe = vlmprobe.load(checkpoint("qwen2_5_vl"), device="cpu", dtype="float32")
    model, tokenizer = probe.engine.adapter.model, probe.engine.adapter.tokenizer
    head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    head.weight.data = 0.3 * model.lm_head.weight.data  # lest few numbers have all the probability
    liked = [tokenizer.convert_tokens_to_ids(each) for each in "123456789,"]
    head.bias.data.zero_()[liked] = 16.0
    model.lm_head = head.requires_grad_(False)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 60, 3), dtype=np.uint8))
    first = probe.generate("Where?", image, max_new_tokens=1)
    text = '{"bbox_2d": [1, 22, 35, 68], "label": "cat"}'
    return probe, image, probe.branch(first, 0, text, max_new_tokens=1, alternatives=10)


def plain_rows(probe, result, image, paths, begin):
    """Probabilities after the prompt, the beginning of an answer and each path, by the model's own forward."""
    adapter = probe.engine.adapter
    inputs = adapter.encode([probe.conversation(result.meta["question"], image)]).inputs
    found = []
    with torch.no_grad():
        for path in paths:
            grown = adapter.extend(inputs, torch.tensor([[*begin, *path]]))
            found.append(adapter.model(**grown).logits[0, -1].double().softmax(-1).numpy())
    return found


def test_two_digits_in_pixels_of_the_resized_image_equal_plain_forwards(asked):
    probe, image, result = asked
    assert result.meta["resized_sizes"] == [[56, 84]]
    found = boxes(result, probe=probe, least=1e-9, draws=0)
    np.testing.assert_allclose(found.xyxy[0], [60 / 56, 90 * 22 / 84, 60 * 35 / 56, 90 * 68 / 84], rtol=1e-6)
    tokenizer = probe.engine.adapter.tokenizer
    digits = [tokenizer.convert_tokens_to_ids(str(each)) for each in range(10)]
    x2 = found.coordinate(0, "x2")
    before = result.output.ids[: result.output.tokens.index("3")].tolist()  # [1, 22, 35: the first 3
    row = plain_rows(probe, result, image, [()], before)[0]
    second = plain_rows(probe, result, image, [(each,) for each in digits], before)
    numbers = np.zeros(57)
    for tens in range(1, 10):
        numbers[tens] += row[digits[tens]] * (1 - second[tens][digits].sum())
        for ones in range(10):
            if 10 * tens + ones <= 56:
                ids = (digits[tens], digits[ones])
                third = plain_rows(probe, result, image, [ids], before)[0]
                numbers[10 * tens + ones] += row[ids[0]] * second[tens][ids[1]] * (1 - third[digits].sum())
    numbers /= numbers.sum()
    told = np.zeros(57)
    for low, high, mass in zip(x2.low, x2.high, x2.mass, strict=True):
        if low == high:
            told[round(low * 56 / 60)] += mass
    np.testing.assert_allclose(told, numbers, atol=1e-5)


def test_all_numbers_of_three_digits_equal_plain_forwards(asked):
    """1,111 plain forwards of a prompt without an image, in one batch each for the first, second and third digit."""
    probe, _, _ = asked
    adapter = probe.engine.adapter
    conversation = probe.conversation("Where?")
    begin = adapter.tokenizer("[")["input_ids"]
    follower = Follower(probe, conversation, [*begin, 0], 1e-9)
    found = follower.outcomes(Place(1, 1, "", "", 999, 1.0))
    digits = [adapter.tokenizer.convert_tokens_to_ids(str(each)) for each in range(10)]
    prompt = adapter.encode([conversation]).inputs["input_ids"][0].tolist()
    rows = {}
    with torch.no_grad():
        for length in range(4):
            paths = list(itertools.product(range(10), repeat=length))
            ids = torch.tensor([[*prompt, *begin, *(digits[each] for each in path)] for path in paths])
            logits = adapter.model(input_ids=ids).logits[:, -1].double().softmax(-1)[:, digits].numpy()
            rows |= dict(zip(paths, logits, strict=True))
    wanted = np.zeros(1000)
    for length in (1, 2, 3):
        for path in itertools.product(range(10), repeat=length):
            mass = np.prod([rows[path[:place]][digit] for place, digit in enumerate(path)])
            wanted[int("".join(map(str, path)))] += mass * (1 - rows[path].sum())
    wanted /= wanted.sum()
    told = np.zeros(1000)
    for low, high, mass in zip(found.low, found.high, found.mass, strict=True):
        if low == high:
            told[int(low)] += mass
    np.testing.assert_allclose(told, wanted, atol=1e-5)
    known = wanted > 1e-6
    assert known[100:].sum() > 500
    np.testing.assert_allclose(told[known], wanted[known], rtol=1e-3)


@pytest.mark.parametrize("size", [(90, 61), (20, 700), (3, 4), (613, 24)])
def test_a_box_in_pixels_comes_back_to_its_place_in_a_rotated_file(asked, size, tmp_path):
    """From a file as it is stored, through its rotation and the resizing of the processor, and back."""
    probe, _, _ = asked
    exif = Image.Exif()
    exif[0x0112] = 6  # upright, it is turned by a quarter
    Image.new("RGB", size, "red").save(tmp_path / "turned.jpg", exif=exif)
    high, wide = size
    first = probe.generate("Where?", tmp_path / "turned.jpg", max_new_tokens=1)
    processor = probe.engine.adapter.processor
    plain = processor.image_processor(Image.new("RGB", (wide, high)), return_tensors="pt")["image_grid_thw"][0].tolist()
    grid = np.array([plain[2], plain[1]] * 2) * processor.image_processor.patch_size
    box = np.array([0.1, 0.2, 0.8, 0.9]) * [wide, high, wide, high]
    numbers = np.round(box / [wide, high, wide, high] * grid).astype(int).tolist()
    result = probe.branch(first, 0, json.dumps({"bbox_2d": numbers}), max_new_tokens=1, image=tmp_path / "turned.jpg")
    found = boxes(result)
    step = np.array([wide, high, wide, high]) / grid
    assert np.all(np.abs(found.xyxy[0] - box) <= 0.5 * step + 1e-9)
    stored = found.as_stored(tmp_path / "turned.jpg")[0]
    wanted = [box[1], wide - box[2], box[3], wide - box[0]]  # columns run down the upright image, rows to its left
    assert np.all(np.abs(stored - wanted) <= 0.5 * step[[1, 0, 3, 2]] + 1e-9)


def test_location_tokens_have_the_probabilities_of_plain_forwards(probe_of):
    probe = probe_of("paligemma")
    image = Image.new("RGB", (100, 300), "blue")
    first = probe.generate("detect cat", image, max_new_tokens=1)
    result = probe.branch(first, 0, "<loc0100><loc0200><loc0500><loc0700> cat", max_new_tokens=1)
    assert result.output.tokens[:2] == ["<loc0100>", "<loc0200>"]
    found = boxes(result, probe=probe, least=1e-7, draws=20)
    np.testing.assert_allclose(found.xyxy[0], np.array([200, 100, 700, 500]) / 1023 * [100, 300, 100, 300])
    tokenizer = probe.engine.adapter.tokenizer
    ids = tokenizer.convert_tokens_to_ids([f"<loc{each:04}>" for each in range(1024)])
    blank = [each for each in range(len(tokenizer)) if tokenizer.decode([each]).isspace()]  # may come before it
    rows = plain_rows(probe, result, image, [(), *((each,) for each in blank)], result.output.ids[:2].tolist())
    row = rows[0][ids] + sum(rows[0][each] * after[ids] for each, after in zip(blank, rows[1:], strict=True))
    y2 = found.coordinate(0, "y2")
    exact = y2.low == y2.high
    np.testing.assert_allclose(y2.mass[exact], row / row.sum(), atol=1e-5)
    assert len(blank) < 20
    assert y2.expected == pytest.approx(float(row @ np.arange(1024) / row.sum()) * 300 / 1023, abs=0.3)
    known = boxes(result)  # by its rows, of which most of the probability is not among the alternatives
    assert known.iou_at_least[0] <= found.iou_at_least[0] <= found.iou_at_most[0] <= known.iou_at_most[0]


def test_an_answer_saved_and_loaded_gives_the_same_boxes(asked, tmp_path):
    probe, image, result = asked
    again = vlmprobe.load_result(result.save(tmp_path / "answer"))
    one, other = boxes(result), boxes(again)
    np.testing.assert_array_equal(one.xyxy, other.xyxy)
    np.testing.assert_array_equal(one.iou_at_most, other.iou_at_most)
    assert other.image is not None
    with pytest.raises(MessageError, match="images"):
        boxes(again, probe=probe, question="Where?", image=Image.new("RGB", image.size))
