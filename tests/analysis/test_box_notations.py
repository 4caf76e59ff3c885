"""Boxes and points are found in the notations of the families, and lie where they should in the image."""

from __future__ import annotations

import time

import numpy as np
import pytest
from box_answers import written
from PIL import Image

from vlmprobe.analysis import boxes
from vlmprobe.analysis.box_notations import NOTATIONS, read_boxes
from vlmprobe.errors import ResultError

WRITE = {  # how each family writes a box of four numbers in its own order, and a label
    "qwen2-vl": "<|object_ref_start|>{label}<|object_ref_end|><|box_start|>({0},{1}),({2},{3})<|box_end|>",
    "qwen2.5-vl": '```json\n[{{"bbox_2d": [{0}, {1}, {2}, {3}], "label": "{label}"}}]\n```',
    "qwen3-vl": '[{{"bbox_2d": [{0}, {1}, {2}, {3}], "label": "{label}"}}]',
    "internvl": "<ref>{label}</ref><box>[[{0}, {1}, {2}, {3}]]</box>",
    "minicpm-v": "<ref>{label}</ref><box>{0} {1} {2} {3}</box>",
    "paligemma": "<loc{0:04}><loc{1:04}><loc{2:04}><loc{3:04}> {label}",
    "florence-2": "</s><s>{label}<loc_{0}><loc_{1}><loc_{2}><loc_{3}></s>",
    "kosmos-2": "<phrase> {label}</phrase><object><patch_index_{0:04}><patch_index_{1:04}></object>",
}
SIZES = [(640, 480), (31, 2000), (3000, 40), (8, 8), (1, 1), (1333, 777)]


def encoded(name, box, size, resized):
    """What a family is trained to write for a box, by the rules that it publishes."""
    (width, height), (wide, high) = size, resized
    x1, y1, x2, y2 = box
    shares = np.array([x1 / width, y1 / height, x2 / width, y2 / height])
    if name == "paligemma":  # 1,024 places from edge to edge, y before x
        return [round(each * 1023) for each in shares[[1, 0, 3, 2]]]
    if name == "florence-2":  # 1,000 bins, whose middle is meant
        return [min(999, int(each * 1000)) for each in shares]
    if name == "kosmos-2":  # the patches that hold the corners
        column = [min(31, int(each / width * 32)) for each in (x1, x2)]
        row = [min(31, int(each / height * 32)) for each in (y1, y2)]
        return [row[0] * 32 + column[0], row[1] * 32 + column[1]]
    scales = (wide, high) * 2 if name == "qwen2.5-vl" else (1000,) * 4
    return [round(each * scale / side) for each, scale, side in zip(box, scales, (width, height) * 2, strict=True)]


def bins(name, size, resized):
    """Pixels of one step of the notation, [4]."""
    (width, height), (wide, high) = size, resized
    units = {"paligemma": (1023, 1023), "kosmos-2": (32, 32), "qwen2.5-vl": (wide, high)}.get(name, (1000, 1000))
    return np.array([width / units[0], height / units[1]] * 2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", WRITE)
def test_a_box_comes_back_to_its_place_within_half_a_step_of_the_notation(name, size):
    width, height = size
    resized = 28 * max(1, round(width / 28)), 28 * max(1, round(height / 28))
    random = np.random.default_rng(0)
    for _ in range(5):
        x, y = np.sort(random.uniform(0, width, 2)), np.sort(random.uniform(0, height, 2))
        box = np.array([x[0], y[0], x[1], y[1]])
        text = WRITE[name].format(*encoded(name, box, size, resized), label="dog")
        found = boxes(written(text, image_sizes=[size], resized_sizes=[resized]), name)
        assert (found.kinds, found.labels, found.size) == (["box"], ["dog"], size)
        step = bins(name, size, resized)
        flat = name == "kosmos-2" and np.any(np.diff(box.reshape(2, 2) // step[:2], axis=0) == 0)
        allowed = 1.0 if flat else 0.5  # corners in one row or column of patches enclose them
        assert np.all(np.abs(found.xyxy[0] - box) <= allowed * step + 1e-6), (found.xyxy[0], box)
        assert np.all((found.xyxy[0] >= 0) & (found.xyxy[0] <= [width, height] * 2))


def test_kosmos_boxes_are_those_of_transformers_own_processor():
    from transformers.models.kosmos2.processing_kosmos2 import patch_index_to_coordinate

    for first, last in [(44, 863), (5, 911), (100, 100), (33, 62), (33, 545), (0, 1023)]:
        text = WRITE["kosmos-2"].format(first, last, label="x")
        found = boxes(written(text, image_sizes=[[1, 1]]))
        np.testing.assert_allclose(found.xyxy[0], patch_index_to_coordinate(first, last, 32), atol=1e-12)


def test_molmo_points_are_percent_of_width_and_height():
    text = (
        'Here: <point x="61.5" y="40.6" alt="Mt Rainier">Mt Rainier</point>, <points x1="1.0" y1="2" x2="99.9" y2="4">'
    )
    found = boxes(written(text, image_sizes=[[200, 1000]]))
    assert found.format == "molmo"
    assert found.kinds == ["point"] * 3
    assert found.labels == ["Mt Rainier", "", ""]
    np.testing.assert_allclose(found.xyxy[:, :2], [[123, 406], [2, 20], [199.8, 40]])
    assert np.isnan(found.xyxy[:, 2:]).all()
    assert np.isnan(found.iou).all()
    assert found.coordinate(0, "x1").interval() == (123.0, 123.0)


def test_points_in_tags_of_a_model_whose_family_is_recorded_count_as_its_boxes_do():
    text = '<points x1="154" y1="500" alt="dog">dog</points>'
    meta = {"image_sizes": [[2000, 100]], "resized_sizes": [[1540, 1000]]}
    np.testing.assert_allclose(boxes(written(text, **meta, box_format="qwen3-vl")).xyxy[0, :2], [308, 50])
    np.testing.assert_allclose(boxes(written(text, **meta, box_format="qwen2.5-vl")).xyxy[0, :2], [200, 50])


@pytest.mark.parametrize("name", WRITE)
def test_the_syntax_tells_the_notation_unless_it_is_json(name):
    numbers = (10, 900) if name == "kosmos-2" else (1, 2, 3, 4)
    result = written(WRITE[name].format(*numbers, label="dog"), resized_sizes=[[10, 10]])
    if "json" in NOTATIONS[name].syntaxes[0]:
        with pytest.raises(ResultError, match=r"format='qwen2\.5-vl'.*'qwen3-vl'"):
            boxes(result)
        result.meta["box_format"] = name
    assert boxes(result).format == name


def test_a_name_that_is_none_is_an_error_that_lists_them():
    with pytest.raises(ResultError, match="internvl"):
        boxes(written("<box>[[1, 2, 3, 4]]</box>"), "intern-vl")


def test_pixels_of_a_frame_that_nobody_recorded_are_an_error_or_given():
    result = written('{"bbox_2d": [10, 20, 30, 40]}', image_sizes=[[100, 200]])
    with pytest.raises(ResultError, match=r"frame=\(width, height\)"):
        boxes(result, "qwen2.5-vl")
    found = boxes(result, "qwen2.5-vl", frame=(50, 50))
    np.testing.assert_allclose(found.xyxy, [[20, 80, 60, 160]])


def test_several_boxes_of_one_label_and_text_with_stray_numbers():
    text = "In 2020 there were 3 of [1, 2, 3, 4]: <ref>dogs</ref><box>[[1, 2, 3, 4], [50, 60, 70, 80]]</box>, (5,6)"
    found = boxes(written(text))
    assert found.labels == ["dogs", "dogs"]
    np.testing.assert_allclose(found.xyxy, [[1, 2, 3, 4], [50, 60, 70, 80]])
    assert [found.text[start:stop] for start, stop in found.spans] == ["[1, 2, 3, 4]", "[50, 60, 70, 80]"]
    text = "<loc0001><loc0002><loc0003><loc0004> cat ; <loc0005><loc0006><loc0007><loc0008><seg001> dog"
    assert boxes(written(text)).labels == ["cat", "dog"]
    text = "car<loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><loc_7><loc_8>dog<loc_1><loc_2><loc_3><loc_4>"
    assert boxes(written(text)).labels == ["car", "car", "dog"]


def test_json_labels_stand_before_or_after_escaped_and_in_their_own_object():
    text = r'[{"label": "a \"b\" }", "bbox_2d": [1, 2, 3, 4]}, {"point_2d": [5, 6]}'
    text += ', {"bbox_2d": [7, 8, 9, 10], "label": "z"}]'
    found = boxes(written(text), "qwen3-vl")
    assert found.labels == ['a "b" }', "", "z"]
    assert found.kinds == ["box", "point", "box"]


def test_an_answer_without_boxes_is_an_empty_table():
    found = boxes(written("There is none, 12 of 34."))
    assert len(found) == 0
    assert found.format == ""
    assert len(found.to_pandas()) == 0
    assert found.to_dict()["boxes"] == []
    assert repr(found) == "Boxes(0 boxes, no notation)"


@pytest.mark.parametrize(
    ("text", "kind", "note"),
    [
        ("<box>[[1, 2, 3]]</box>", "malformed", "3 numbers, not 4"),
        ("<box>[[1, 2, 3, 4, 5]]</box>", "malformed", "5 numbers, not 4"),
        ("<box>[[a, b]]</box>", "malformed", "0 numbers, not 4"),
        ("<box>[[1, 2, 3, 4], no", "box", "cut off"),
        ("<box>1 2 3</box>", "malformed", "3 numbers, not 4"),
        ("<|box_start|>(1,2),(x,4)<|box_end|>", "malformed", "3 numbers, not 4"),
        ("<|box_start|>(1,2),(3,4) <|box_start|>(1,2),(3,4)<|box_end|>", "box", "not closed"),
        ("<loc0001><loc0002><loc0003> cat", "malformed", "3 numbers, not 4"),
        ("<box>[[900, 2, 3, 4]]</box>", "box", "corners reversed"),
        ("<box>[[1, 900, 3, 4]]</box>", "box", "corners reversed"),
        ("<box>[[1, 2, 1003, 4]]</box>", "box", "out of range"),
        ("<box>[[-1, 2, 3, 4]]</box>", "box", "out of range"),
    ],
)
def test_what_is_wrong_with_a_box_is_noted(text, kind, note):
    found = boxes(written(text))
    assert found.kinds[0] == kind
    assert note in found.notes[0] or (note == "cut off" and found.complete.all())
    box = found.xyxy[0]
    if kind == "malformed":
        assert np.isnan(box).all()
        assert np.isnan(found.iou[0])
        assert np.isnan(found.scores[0])
    else:
        assert 0 <= box[0] <= box[2] <= 1000
        assert 0 <= box[1] <= box[3] <= 1000


@pytest.mark.parametrize("name", WRITE)
def test_an_answer_cut_off_anywhere_is_read_and_told(name):
    numbers = (10, 900) if name == "kosmos-2" else (12, 34, 567, 890)
    whole = WRITE[name].format(*numbers, label="dog")
    seen = set()
    for stop in range(1, len(whole)):
        found = boxes(written(whole[:stop], resized_sizes=[[1000, 1000]], box_format=name), name)
        assert len(found) <= 1
        if len(found):
            digits = [int(each) for each in found.written[0]]
            assert len(digits) <= len(numbers)
            assert digits[:-1] == list(numbers)[: max(0, len(digits) - 1)]
            assert found.complete[0] or found.notes[0] == "cut off"
            seen.add(bool(found.complete[0]))
    assert seen == {True, False}


def test_two_images_need_the_number_of_one():
    result = written("<box>[[100, 100, 500, 500]]</box>", image_sizes=[[10, 20], [1000, 2000]])
    with pytest.raises(ResultError, match="which="):
        boxes(result)
    np.testing.assert_allclose(boxes(result, which=0).xyxy, [[1, 2, 5, 10]])
    np.testing.assert_allclose(boxes(result, which=1).xyxy, [[100, 200, 500, 1000]])
    with pytest.raises(ResultError, match="from 0 to 1"):
        boxes(result, which=2)
    result = written(
        '{"bbox_2d": [5, 5, 10, 10]}', image_sizes=[[10, 20], [100, 200]], resized_sizes=[[10, 10], [50, 20]]
    )
    np.testing.assert_allclose(boxes(result, "qwen2.5-vl", which=1).xyxy, [[10, 50, 20, 100]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_in_the_rows_and_columns_of_a_rotated_file(orientation, tmp_path):
    """What lies in the box of the image that models see is what lies in that of the stored pixels."""
    from PIL import ImageOps

    random = np.random.default_rng(orientation)
    stored = Image.fromarray(random.integers(0, 255, (30, 50, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "image.png", exif=exif)
    with Image.open(tmp_path / "image.png") as opened:
        upright = ImageOps.exif_transpose(opened)
    width, height = upright.size
    box = 3, 5, 11, 25
    numbers = [each * 1000 / side for each, side in zip(box, (width, height) * 2, strict=True)]
    result = written(f"<box>{numbers[0]} {numbers[1]} {numbers[2]} {numbers[3]}</box>", image_sizes=[upright.size])
    found = boxes(result)
    np.testing.assert_allclose(found.xyxy[0], box)
    for given in (tmp_path / "image.png", (tmp_path / "image.png").read_bytes(), Image.open(tmp_path / "image.png")):
        inner = found.as_stored(given)[0]
        assert inner.round(6).tolist() == inner.round().tolist()
        pixels = np.sort(np.asarray(stored.crop(tuple(round(each) for each in inner))).reshape(-1))
        np.testing.assert_array_equal(pixels, np.sort(np.asarray(upright.crop(box)).reshape(-1)))
    with pytest.raises(ResultError, match="pixels"):
        found.as_stored(Image.new("RGB", (7, 9)))


def test_ten_thousand_boxes_and_hostile_text_take_bounded_time():
    started = time.perf_counter()
    for text, count in [
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "x"}' + ', {"bbox_2d": [1, 2, 3, 4], "label": "x"}' * 9999, 10_000),
        ("<box>" * 20_000, None),
        ("<|object_ref_start|>" * 20_000, 0),
        ("<ref>" * 20_000 + "<box>[[1,2,3,4]]</box>", 1),
        ("<loc0001>" * 40_000, 10_000),
        ('"bbox_2d": [' * 20_000, 20_000),
        ("[" * 200_000, 0),
        ('<point x="' * 50_000, None),
    ]:
        _, found = read_boxes(text, "qwen3-vl" if "bbox" in text else None, None)
        assert count is None or len(found) == count
    assert time.perf_counter() - started < 20  # measured: below 2 s
