"""What resizes the images of Qwen-VL: the checkpoint's processor, or qwen-vl-utils where it is asked for."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from reference import chat, encode, forward

import vlmprobe
from vlmprobe.errors import CapabilityError, ImageError
from vlmprobe.inputs.messages import Conversation

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
SIZES = ((50, 37), (10, 90), (300, 20), (200, 201))  # narrow ones get another number of patches from qwen-vl-utils
QUESTION = "What is in the picture?"


def noise(width: int, height: int) -> Image.Image:
    levels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def by_utils(own, messages):
    """The inputs by the documented use of qwen-vl-utils: it resizes, the processor does not."""
    from qwen_vl_utils import process_vision_info

    pixels = own.processor.image_processor
    limits = {"min_pixels": pixels.size["shortest_edge"], "max_pixels": pixels.size["longest_edge"]}
    given = [
        {**each, "content": [{**limits, **part} if part["type"] == "image" else part for part in each["content"]]}
        for each in messages
    ]
    images, _ = process_vision_info(given, image_patch_size=pixels.patch_size)
    text = own.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return own.processor(text=[text], images=images, do_resize=False, return_tensors="pt")


def assert_equal(inputs, wanted):
    assert sorted(inputs) == sorted(wanted)
    for name, value in wanted.items():
        assert torch.equal(inputs[name], value), name


def encoded(probe, *asked):
    return probe.engine.adapter.encode([Conversation.build(each) for each in asked]).inputs


def without_resizing(source, folder):
    shutil.copytree(source, folder)
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (file := folder / name).exists():
            document = json.loads(file.read_text())
            document.get("image_processor", document)["do_resize"] = False
            file.write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FAMILIES)
def test_images_are_those_of_the_checkpoints_processor_and_the_numbers_those_of_plain_transformers(
    name, size, probe_of, own
):
    messages = chat(QUESTION, noise(*size))
    wanted = encode(own(name), messages)
    assert_equal(encoded(probe_of(name), messages), wanted)
    result = probe_of(name).generate(messages, keep="logits", max_new_tokens=1)
    assert result.meta["resize"] == "processor"
    rows = forward(own(name), wanted)
    assert np.abs(result.output.logits[0] - rows[-1]).max() < 1e-4
    text = np.flatnonzero(result.prompt.scored)
    assert np.abs(result.prompt.logits[text] - rows[result.prompt.positions[text] - 1]).max() < 1e-4


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_do_resize_false_of_the_checkpoint_is_honoured(name, checkpoint, tmp_path):
    from types import SimpleNamespace

    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = without_resizing(checkpoint(name), tmp_path / name)
    own = SimpleNamespace(
        processor=AutoProcessor.from_pretrained(folder),
        model=AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval(),
    )
    probe = vlmprobe.load(folder, device="cpu", dtype="float32")
    side = 2 * own.processor.image_processor.patch_size
    messages = chat(QUESTION, noise(9 * side, 3 * side))  # beyond the pixel limits of the checkpoint
    wanted = encode(own, messages)
    assert wanted["image_grid_thw"].tolist() == [[1, 6, 18]]
    assert_equal(encoded(probe, messages), wanted)
    row = probe.generate(messages, keep="logits", max_new_tokens=1).output.logits[0]
    assert np.abs(row - forward(own, wanted)[-1]).max() < 1e-4
    with pytest.raises(ImageError, match=r"does not resize.*50 x 37.*multiples of"):
        probe.generate(QUESTION, noise(50, 37), max_new_tokens=1)
    sized = [{"type": "image", "image": noise(50, 37), "resized_width": 3 * side, "resized_height": 2 * side}]
    assert encoded(probe, [{"role": "user", "content": sized}])["image_grid_thw"].tolist() == [[1, 4, 6]]


@pytest.mark.parametrize("name", FAMILIES)
def test_qwen_vl_utils_resizes_where_it_is_asked_for(name, checkpoint, own):
    loaded = vlmprobe.load(checkpoint(name), device="cpu", dtype="float32", resize="qwen-vl-utils")
    wrapped = vlmprobe.wrap(own(name).model, own(name).processor, resize="qwen-vl-utils")
    for size in SIZES:
        messages = chat(QUESTION, noise(*size))
        wanted = by_utils(own(name), messages)
        for probe in (loaded, wrapped):
            assert_equal(encoded(probe, messages), wanted)
    messages = chat(QUESTION, noise(50, 37))
    assert not torch.equal(by_utils(own(name), messages)["pixel_values"], encode(own(name), messages)["pixel_values"])
    result = loaded.generate(messages, keep="logits", max_new_tokens=1)
    assert np.abs(result.output.logits[0] - forward(own(name), by_utils(own(name), messages))[-1]).max() < 1e-4
    assert loaded.meta["resize"] == result.meta["resize"] == "qwen-vl-utils"


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "options", [{"min_pixels": 9000}, {"max_pixels": 5000}, {"resized_width": 60, "resized_height": 100}], ids=str
)
def test_an_image_with_options_is_resized_by_qwen_vl_utils(name, options, probe_of, own):
    messages = chat(QUESTION, noise(90, 70))
    messages[0]["content"][0].update(options)
    assert_equal(encoded(probe_of(name), messages), by_utils(own(name), messages))
    scores = probe_of(name).score(messages, ["a", "b"])
    assert scores.meta["resize"] == "qwen-vl-utils"
    assert probe_of(name).meta["resize"] == "processor"


@pytest.mark.parametrize("name", FAMILIES)
def test_each_image_of_a_call_is_resized_as_if_it_were_alone(name, probe_of, own):
    """The one with options by qwen-vl-utils, the others by the processor; also in a batch."""
    tall, wide = noise(33, 120), noise(90, 70)
    content = [{"type": "image", "image": wide, "max_pixels": 5000}, {"type": "image", "image": tall}]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": QUESTION}]}]
    alone = [
        by_utils(own(name), [{"role": "user", "content": content[:1]}]),
        encode(own(name), [{"role": "user", "content": content[1:]}]),
    ]
    result = probe_of(name).generate(messages, keep="logits", max_new_tokens=1)
    inputs = encoded(probe_of(name), messages)
    assert result.meta["resize"] == ["qwen-vl-utils", "processor"]
    for key in ("pixel_values", "image_grid_thw"):
        assert torch.equal(inputs[key], torch.cat([each[key] for each in alone])), key
    assert np.abs(result.output.logits[0] - forward(own(name), inputs)[-1]).max() < 1e-4
    merged = [int(each["image_grid_thw"].prod()) // 4 for each in alone]
    assert [span.stop - span.start for span in result.prompt.image_spans] == merged
    batch = encoded(probe_of(name), chat(QUESTION, wide, tall), messages)
    assert batch["input_ids"].shape[0] == 2
    halves = [encode(own(name), chat(QUESTION, wide, tall))["pixel_values"], inputs["pixel_values"]]
    assert torch.equal(batch["pixel_values"], torch.cat(halves))


def test_a_resize_that_a_family_does_not_have_is_refused_before_anything_is_loaded(checkpoint, own, monkeypatch):
    from transformers import AutoModelForImageTextToText

    def never(*_, **__):
        raise AssertionError

    model, processor = own("llava").model, own("llava").processor
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", never)
    with pytest.raises(CapabilityError, match="'processor' or 'qwen-vl-utils'"):
        vlmprobe.load(checkpoint("qwen2_vl"), resize="qwen_vl_utils")
    with pytest.raises(CapabilityError, match=r"resize='processor'.*leave resize out"):
        vlmprobe.load(checkpoint("llava"), resize="processor")
    with pytest.raises(CapabilityError, match="leave resize out"):
        vlmprobe.wrap(model, processor, resize="qwen-vl-utils")
    with pytest.raises(CapabilityError, match="leave out adapter, resize, device"):
        vlmprobe.load(checkpoint("qwen2_vl"), engine="vllm", resize="processor")


def test_no_family_without_a_choice_says_what_resizes(probe_of):
    assert "resize" not in probe_of("llava").generate("Hi", max_new_tokens=1).meta
    assert probe_of("qwen2_vl").generate("Hi", max_new_tokens=1).meta["resize"] == "processor"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_recorded_size_of_an_image_is_that_of_the_grid_the_model_receives(name, probe_of):
    """For tall, wide, tiny and large images, whoever resizes them: the answers of Qwen2.5-VL count in these pixels."""
    probe = probe_of(name)
    patch = probe.engine.adapter.processor.image_processor.patch_size
    sizes = [(640, 480), (20, 1500), (1999, 11), (3, 4), (57, 57), (85, 43)]
    options = [{}, {"resized_height": 61, "resized_width": 120}, {"max_pixels": 5000}]
    for size in sizes:
        for each in options[: 3 if min(size) > 20 else 1]:
            parts = [{"type": "image", "image": noise(*size), **each}, {"type": "text", "text": "Where?"}]
            messages = [{"role": "user", "content": parts}]
            conversation = Conversation.build(messages)
            _, high, wide = encoded(probe, messages)["image_grid_thw"][0].tolist()
            told = probe.engine.adapter.facts(conversation)
            assert told["resized_sizes"] == [[wide * patch, high * patch]], (size, each)
            assert told["box_format"] == {"qwen2_vl": "qwen2-vl", "qwen2_5_vl": "qwen2.5-vl"}.get(name, "qwen3-vl")
    assert "resized_sizes" not in probe.engine.adapter.facts(Conversation.build("Hi"))
