"""OmniLMM-12B in its original format against the original implementation."""

from __future__ import annotations

import json
import pickle
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from original_cases import GOLDEN, GREEDY, Scenario, scenarios
from PIL import Image
from safetensors.torch import load_file

import vlmprobe
from vlmprobe.errors import CapabilityError, CheckpointError, MessageError
from vlmprobe.inputs.messages import Conversation

pytest.importorskip("timm")

CASE = "omnilmm"
ALL = scenarios(CASE)
PICTURE = {"type": "image", "path": str(GOLDEN / CASE / "image_a.png")}
PATCHES = "<im_start>" + "<im_patch>" * 9 + "<im_end>"


@cache
def probe() -> vlmprobe.Probe:
    return vlmprobe.load(GOLDEN / CASE, device="cpu", dtype="float32")


def encode(*parts: object, before: tuple[dict, ...] = ()) -> vlmprobe.adapter.Encoding:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return probe().engine.adapter.encode([Conversation.build([*before, {"role": "user", "content": content}])])


def copied(folder: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / CASE, folder / CASE))


@pytest.mark.parametrize("scenario", ALL, ids=str)
def test_prompt_and_pixels(scenario):
    encoding = probe().engine.adapter.encode([Conversation.build(scenario.messages)])
    assert encoding.prompts[0].text == scenario.told["prompt"]
    assert encoding.prompts[0].ids.tolist() == scenario.told["input_ids"]
    expected = scenario.tensor("pixel_values")
    if expected is None:
        assert "pixel_values" not in encoding.inputs
    else:
        torch.testing.assert_close(encoding.inputs["pixel_values"], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("scenario", ALL, ids=str)
def test_rows_and_answer(scenario):
    result = probe().generate(scenario.messages, keep="logits", **GREEDY)
    assert result.output.ids.tolist() == scenario.told["gen_ids"]
    scored = ~np.isnan(result.prompt.logprobs)
    rows = scenario.tensor("logits").numpy()[result.prompt.positions[scored] - 1]
    np.testing.assert_allclose(result.prompt.logits[scored], rows, atol=1e-3, rtol=0)
    np.testing.assert_allclose(result.output.logits, scenario.tensor("gen_logits").numpy(), atol=1e-3, rtol=0)


def test_a_batch_with_and_without_image_changes_nothing():
    family = probe().engine.adapter
    talks = [Conversation.build(scenario.messages) for scenario in ALL]
    with torch.no_grad():
        together = family.model(**family.encode(talks).inputs).logits
    for row, scenario in zip(together, ALL, strict=True):
        expected = scenario.tensor("logits")
        torch.testing.assert_close(row[-len(expected) :], expected, atol=1e-3, rtol=0)


def test_scores_beams_and_sampling():
    messages = Scenario(CASE, "one_image").messages
    scores = probe().score(messages, ["yes", "no", "a red box"])
    alone = [probe().score(messages, [candidate]).logprobs[0] for candidate in scores.candidates]
    np.testing.assert_allclose(scores.logprobs, alone, atol=1e-4)
    greedy = probe().generate(messages, max_new_tokens=5, do_sample=False)
    beams = probe().generate(messages, max_new_tokens=5, do_sample=False, num_beams=4)
    assert beams.output.logprobs.sum() >= greedy.output.logprobs.sum() - 1e-4
    drawn = [probe().generate(messages, max_new_tokens=5, do_sample=True, seed=7).output.ids for _ in range(2)]
    assert drawn[0].tolist() == drawn[1].tolist()


def test_another_picture_changes_the_text_after_it():
    family = probe().engine.adapter
    other = {"type": "image", "image": Image.new("RGB", (30, 50), "red")}
    with torch.no_grad():
        rows = [family.model(**encode(picture, "Hello").inputs).logits[0] for picture in (PICTURE, other)]
    start = encode(PICTURE, "Hello").prompts[0].spans[0].start
    assert torch.equal(rows[0][:start], rows[1][:start])
    assert (rows[0][-1] - rows[1][-1]).abs().max() > 1e-2


# -- conversations -----------------------------------------------------------------------------------


def test_where_the_image_goes():
    assert f"<|user|>\n{PATCHES}\nHello</s>" in encode(PICTURE, "Hello").prompts[0].text
    assert f"<|user|>\nSee {PATCHES}.</s>" in encode(PICTURE, "See <image>.").prompts[0].text
    assert f"<|user|>\nSee {PATCHES}.</s>" in encode("See ", PICTURE, ".").prompts[0].text


def test_conversations_that_it_cannot_express():
    with pytest.raises(CapabilityError, match="one image"):
        encode(PICTURE, PICTURE, "Hello")
    with pytest.raises(MessageError, match="2 times"):
        encode(PICTURE, "<image> and <image>")
    with pytest.raises(MessageError, match="enclose an image"):
        encode("Hello <im_patch>")
    with pytest.raises(CapabilityError, match="takes no system message"):
        encode("Hello", before=({"role": "system", "content": "Be terse."},))
    with pytest.raises(MessageError, match="alternate"):
        encode("Hello", before=({"role": "user", "content": "Hi"},))
    talk = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"})
    with pytest.raises(MessageError, match="first message"):
        encode(PICTURE, "Hello", before=talk)


def test_an_assistant_message_is_continued():
    family = probe().engine.adapter
    asked = {"role": "user", "content": [PICTURE, {"type": "text", "text": "Which colour?"}]}
    fresh = family.encode([Conversation.build([asked])]).prompts[0].text
    begun = family.encode([Conversation.build([asked, {"role": "assistant", "content": "It is"}])]).prompts[0].text
    assert begun == f"{fresh}It is"


# -- weights -----------------------------------------------------------------------------------------


def as_bin(folder: Path, **replaced: object) -> None:
    """The weights as two ``.bin`` shards with an index, instead of safetensors."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {f"pytorch_model-0000{part}-of-00002.bin": names[part - 1 :: 2] for part in (1, 2)}
    for file, held in shards.items():
        torch.save({name: weights[name] for name in held}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def test_bin_shards(tmp_path):
    folder = copied(tmp_path)
    as_bin(folder)
    scenario = Scenario(CASE, "one_image")
    result = vlmprobe.load(folder, dtype="float32").generate(scenario.messages, keep="logits", **GREEDY)
    np.testing.assert_allclose(result.output.logits, scenario.tensor("gen_logits").numpy(), atol=1e-3, rtol=0)


class Bomb:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return (open, (str(self.witness), "w"))


def test_a_pickle_with_code_is_refused(tmp_path):
    folder = copied(tmp_path)
    as_bin(folder)
    witness = tmp_path / "it-ran"
    torch.save({"lm_head.weight": Bomb(witness)}, folder / "pytorch_model-00001-of-00002.bin", pickle_module=pickle)
    with pytest.raises(CheckpointError, match="other than tensors"):
        vlmprobe.load(folder)
    assert not witness.exists()


def test_a_missing_weight_is_listed(tmp_path):
    folder = copied(tmp_path)
    as_bin(folder)
    shard = folder / "pytorch_model-00002-of-00002.bin"
    weights = torch.load(shard, weights_only=True)
    lost = next(name for name in weights if "self_attn" in name)
    del weights[lost]
    torch.save(weights, shard)
    with pytest.raises(CheckpointError, match=lost.removeprefix("model.").replace(".", r"\.")):
        vlmprobe.load(folder)


def test_another_tower_is_refused(tmp_path):
    folder = copied(tmp_path)
    held = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**held, "mm_vision_tower": "eva02_large"}))
    with pytest.raises(CheckpointError, match="eva02_large"):
        vlmprobe.load(folder)


def test_keys_of_the_tower_have_no_bias():
    """timm keeps that zero in a buffer which no checkpoint holds, and loading leaves such buffers unset."""
    biases = [buffer for name, buffer in probe().engine.adapter.model.named_buffers() if name.endswith("k_bias")]
    assert len(biases) == 3
    assert all(not bias.any() for bias in biases)
