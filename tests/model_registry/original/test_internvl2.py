"""InternVL2 in the original format against what the original code computed on the same checkpoints.

The references are outputs of OpenGVLab/InternVL at commit 2410d1d with transformers 4.37.2 and torch 2.3.1, on the CPU
in float32; of 3.5, with transformers 4.57.1 and torch 2.14.1. The checkpoints are random; ``<scenario>.positions`` says
which rows of the prompt logits are kept.
"""

from __future__ import annotations

import json
import shutil
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from common import GOLDEN
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.functional import normalize, to_tensor

import vlmprobe
from vlmprobe.adapter.kv_cache import cache_name, cache_of
from vlmprobe.errors import CheckpointError, MessageError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.model_registry.original.internvl2 import InternVL2
from vlmprobe.model_registry.original.internvl2.configuration import translate
from vlmprobe.model_registry.original.internvl2.processing import IMAGENET_MEAN, IMAGENET_STD, InternVL2Processor
from vlmprobe.model_registry.original.internvl2.prompt import TEMPLATES, find_template, write_prompt
from vlmprobe.model_registry.original.internvl2.tiling import choose_grid, tile_image

CASES = (
    "internvl2-qwen2",
    "internvl2-internlm2",
    "internvl2-phi3",
    "internvl2-phi3-long",  # prompts beyond the length of the short factors; the "yarn" attention factor
    "internvl2-llama",  # vision tower of the 6B kind
    "internvl2-5-qwen2",
    "internvl3-5-qwen3",  # heads wider than hidden size by their number
    "internvl3-5-qwen3-moe",  # experts in every second layer, one by one on disk
    "internvl3-5-gpt-oss",  # another template; a window shorter than the prompts
    "internvl2-knobs",  # every field of config.json off its usual value; a Yi-like vocabulary
    "internvl2-knobs-internlm2",  # others: select_layer 2, downsample_ratio 0.25, biases, epsilon 1e-3
)


@cache
def golden(case: str) -> tuple[dict, dict]:
    told = json.loads((GOLDEN / case / "golden.json").read_text(encoding="utf-8"))
    return told["scenarios"], load_file(GOLDEN / case / "golden.safetensors")


SCENARIOS = [(case, scenario) for case in CASES for scenario in golden(case)[0]]


@cache
def probe_of(case: str) -> vlmprobe.Probe:
    return vlmprobe.load(GOLDEN / case, device="cpu", dtype="float32")


def adapter_of(case: str) -> InternVL2:
    return probe_of(case).engine.adapter


def messages(case: str, scenario: str) -> list[dict]:
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "image", "path": str(GOLDEN / case / part["path"])} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in golden(case)[0][scenario]["messages"]
    ]


# -- against the original code -------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "scenario"), SCENARIOS)
def test_numbers_of_the_original_code(case, scenario):
    told, tensors = golden(case)
    expected = told[scenario]
    result = probe_of(case).generate(messages(case, scenario), keep="logits", max_new_tokens=8, do_sample=False)

    assert result.output.ids.tolist() == expected["gen_ids"]
    np.testing.assert_allclose(result.output.logits, tensors[f"{scenario}.gen_logits"], atol=1e-3, rtol=0)
    at = {int(position): row for row, position in enumerate(tensors[f"{scenario}.positions"])}
    compared = 0
    for row, position in enumerate(result.prompt.positions.tolist()):
        if result.prompt.kinds[row] != "image":
            assert result.prompt.ids[row] == expected["input_ids"][position]
        if position - 1 in at and result.prompt.kinds[row] != "image":
            original = tensors[f"{scenario}.logits"][at[position - 1]]
            np.testing.assert_allclose(result.prompt.logits[row], original, atol=1e-3, rtol=0)
            compared += 1
    assert compared >= 5
    broken = "\N{REPLACEMENT CHARACTER}"  # a probe leaves out a character that the answer ends in the middle of
    assert expected["gen_text"].replace(broken, "").startswith(result.text.replace(broken, ""))


@pytest.mark.parametrize(("case", "scenario"), SCENARIOS)
def test_prompt_and_spans_of_the_original_code(case, scenario):
    expected = golden(case)[0][scenario]
    adapter = adapter_of(case)
    encoding = adapter.encode([Conversation.build(messages(case, scenario))])
    (prompt,) = encoding.prompts
    assert prompt.text == expected["prompt"]
    assert prompt.ids.tolist() == expected["input_ids"]
    assert adapter.tokenize(prompt.text) == expected["input_ids"]
    tiles = expected["num_patches_list"]
    assert [(span.image, span.tile) for span in prompt.spans] == [
        (image, tile) for image, count in enumerate(tiles) for tile in range(count)
    ]
    covered = [place for span in prompt.spans for place in range(span.start, span.stop)]
    context = adapter.model.config.image_token_id
    assert covered == [place for place, each in enumerate(expected["input_ids"]) if each == context]
    if tiles:
        assert encoding.inputs["pixel_values"].shape[0] == sum(tiles)
        assert encoding.inputs["image_index"][0].nonzero().flatten().tolist() == covered
    else:
        assert set(encoding.inputs) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("case", ["internvl2-qwen2", "internvl2-internlm2", "internvl3-5-qwen3"])
@pytest.mark.parametrize("scenario", ["one_image", "one_tile"])
def test_pixels_of_the_original_code(case, scenario):
    inputs = adapter_of(case).encode([Conversation.build(messages(case, scenario))]).inputs
    expected = golden(case)[1][f"{scenario}.pixel_values"]
    assert (inputs["pixel_values"] - expected).abs().max() <= 1e-6


def test_tiling_decisions_of_the_original_code():
    table = json.loads((GOLDEN / "internvl2-tiling.json").read_text())
    assert len(table["rows"]) == 212
    for (width, height), *decisions in table["rows"]:
        for (most, thumbnail), (count, *grid) in zip(table["settings"], decisions, strict=True):
            got = choose_grid(width, height, min_tiles=1, max_tiles=most, size=table["size"])
            assert list(got) == grid, (width, height, most)
            assert got[0] * got[1] + (thumbnail and got != (1, 1)) == count


# -- through the probe ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["internvl2-qwen2", "internvl2-internlm2", "internvl2-knobs"])
def test_a_batch_gives_the_numbers_of_single_calls(case):
    probe = probe_of(case)
    adapter = adapter_of(case)
    names = list(golden(case)[0])
    conversations = [Conversation.build(messages(case, name)) for name in names]
    encoding = adapter.encode(conversations)
    with torch.no_grad():
        logits = adapter.model(**encoding.inputs).logits
        for row, conversation in enumerate(conversations):
            alone = adapter.model(**adapter.encode([conversation]).inputs).logits[0]
            assert (logits[row, -len(alone) :] - alone).abs().max() < 1e-4
    many = list(probe.generate_many([messages(case, name) for name in names], max_new_tokens=8, do_sample=False))
    assert [result.output.ids.tolist() for result in many] == [golden(case)[0][name]["gen_ids"] for name in names]


def test_long_phi3_prompts_are_not_batched_with_short_ones():
    assert adapter_of("internvl2-phi3").capabilities.batching is False
    assert adapter_of("internvl2-qwen2").capabilities.batching is True


@pytest.mark.parametrize("case", ["internvl2-qwen2", "internvl2-internlm2", "internvl2-phi3", "internvl2-llama"])
def test_score_equals_the_sum_over_the_forward_of_prompt_and_candidate(case):
    adapter = adapter_of(case)
    chat = messages(case, "one_image")
    candidates = [" yes", "no", "A green box and two thin lines.", "红色"]
    scores = probe_of(case).score(chat, candidates)
    (prompt,) = adapter.encode([Conversation.build(chat)]).prompts
    inputs = adapter.encode([Conversation.build(chat)]).inputs
    for candidate, logprob in zip(candidates, scores.logprobs, strict=True):
        whole = adapter.tokenize(prompt.text + candidate)
        assert whole[: len(prompt.ids)] == prompt.ids.tolist()
        ids = torch.tensor([whole[len(prompt.ids) :]])
        with torch.no_grad():
            rows = adapter.model(**adapter.extend(inputs, ids)).logits[0].double().log_softmax(-1)
        expected = sum(float(rows[len(prompt.ids) - 1 + step, each]) for step, each in enumerate(ids[0]))
        assert logprob == pytest.approx(expected, abs=1e-3)


def teacher_forced(adapter: InternVL2, chat: list[dict], made: np.ndarray) -> torch.Tensor:
    inputs = adapter.encode([Conversation.build(chat)]).inputs
    with torch.no_grad():
        logits = adapter.model(**adapter.extend(inputs, torch.tensor(made)[None])).logits[0]
    return logits[inputs["input_ids"].shape[1] - 1 : -1]


@pytest.mark.parametrize("options", [{"do_sample": True, "seed": 3, "temperature": 1.5}, {"num_beams": 3}])
def test_sampled_and_beam_tokens_have_the_rows_of_the_model(options):
    case = "internvl2-internlm2"
    chat = messages(case, "two_images")  # several tiles of several images for each beam
    result = probe_of(case).generate(chat, keep="logits", max_new_tokens=6, **options)
    expected = teacher_forced(adapter_of(case), chat, result.output.ids)
    np.testing.assert_allclose(result.output.logits, expected, atol=1e-3, rtol=0)
    again = probe_of(case).generate(chat, max_new_tokens=6, **options)
    assert again.output.ids.tolist() == result.output.ids.tolist()


def test_a_placeholder_that_the_model_writes_is_an_ordinary_token():
    case = "internvl2-qwen2"
    adapter = adapter_of(case)
    model = adapter.model
    inputs = adapter.encode([Conversation.build(messages(case, "one_image"))]).inputs
    written = torch.tensor([[model.config.image_token_id, 24, model.config.image_token_id]])
    with torch.no_grad():
        got = model(**adapter.extend(inputs, written)).logits[0]
        embeds = model.get_input_embeddings()(torch.cat([inputs["input_ids"], written], dim=1))
        features = model.model.image_features(inputs["pixel_values"])
        embeds[0, inputs["image_index"][0].nonzero().flatten()] = features.flatten(0, 1)
        expected = model(inputs_embeds=embeds).logits[0]
        run = model(**inputs, use_cache=True)
        step = model(input_ids=written, **{cache_name(model.forward): cache_of(run)}).logits[0]
    assert torch.allclose(got, expected, atol=1e-5)
    assert torch.allclose(step, expected[-3:], atol=1e-4)


def test_too_few_image_positions_are_an_error():
    adapter = adapter_of("internvl2-qwen2")
    inputs = adapter.encode([Conversation.build(messages("internvl2-qwen2", "one_tile"))]).inputs
    inputs["image_index"] = torch.zeros_like(inputs["input_ids"])
    with pytest.raises(ValueError, match="0 image positions for 4 rows of image features"):
        adapter.model(**inputs)


def test_the_answer_ends_where_the_original_ends():
    for case, token in (("internvl2-phi3", "<|end|>"), ("internvl2-5-qwen2", "<|im_end|>")):
        adapter = adapter_of(case)
        assert adapter.end_ids == {adapter.tokenizer.convert_tokens_to_ids(token)}


def test_the_parts_of_the_network_are_found():
    adapter = adapter_of("internvl2-internlm2")
    inputs = adapter.encode([Conversation.build("Hello")]).inputs
    with torch.no_grad():
        hidden = adapter.backbone(**inputs).last_hidden_state
        states = adapter.model(**inputs, output_hidden_states=True)
        assert torch.equal(adapter.head(hidden), states.logits)
        last = adapter.layers[-1]
        kept = []
        handle = last.register_forward_hook(lambda _, __, out: kept.append(out[0] if isinstance(out, tuple) else out))
        adapter.model(**inputs)
        handle.remove()
        assert torch.allclose(adapter.head(adapter.final_norm(kept[0])), states.logits, atol=1e-6)


# -- prompts ---------------------------------------------------------------------------------------------


def write(template: str, *chat: tuple[str, str]) -> str:
    conversation = Conversation.build([{"role": role, "content": text} for role, text in chat])
    found = TEMPLATES[template]
    return write_prompt(conversation, found, found.system, [])


def test_templates_as_the_original_writes_them():
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]
    assert write("Hermes-2", *turns) == (
        "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nHi<|im_end|><|im_start|>assistant\nHello<|im_end|>"
        "<|im_start|>user\nBye<|im_end|><|im_start|>assistant\n"
    )
    assert write("internlm2-chat", *turns) == write("Hermes-2", *turns)
    assert write("internvl2_5", *turns) == write("Hermes-2", *turns).replace("<|im_end|>", "<|im_end|>\n")
    assert write("phi3-chat", *turns) == (
        "<|system|>\nBe brief.<|end|><|user|>\nHi<|end|><|assistant|>\nHello<|end|><|user|>\nBye<|end|><|assistant|>\n"
    )
    assert write("internvl_zh", *turns[1:]) == " <human>: Hi <bot>: Hello</s><human>: Bye <bot>:"


def test_the_model_can_continue_its_own_answer():
    assert write("Hermes-2", ("user", "Hi"), ("assistant", "I am")).endswith("<|im_start|>assistant\nI am")


def test_an_unknown_template_names_the_near_ones():
    with pytest.raises(CheckpointError, match=r"'internvl2_6'.*Did you mean internvl2_5"):
        find_template("internvl2_6")
    with pytest.raises(CheckpointError, match="None"):
        find_template(None)


def test_a_placeholder_in_the_text_is_refused_beside_an_image_only():
    adapter = adapter_of("internvl2-qwen2")
    picture = Image.new("RGB", (20, 20))
    with pytest.raises(MessageError, match="<IMG_CONTEXT>"):
        adapter.encode([Conversation.build("What is <IMG_CONTEXT>?", picture)])
    assert adapter.encode([Conversation.build("What is <IMG_CONTEXT>?")]).prompts[0].spans == ()


def test_a_system_text_in_the_configuration_is_the_default():
    adapter = adapter_of("internvl2-qwen2")
    for value, expected in (("Be kind.", "Be kind."), (None, TEMPLATES["Hermes-2"].system)):
        processor = InternVL2Processor.build(
            {"template": "Hermes-2", "system_message": value}, adapter.tokenizer, size=56, positions=4
        )
        assert processor.system == expected


# -- fields of config.json -------------------------------------------------------------------------------


def config_of(case: str) -> dict:
    return json.loads((GOLDEN / case / "config.json").read_text())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"ps_version": "v3"}, "ps_version 'v3'"),
        ({"llm_config": {"architectures": ["Qwen5ForCausalLM"]}}, "Qwen5ForCausalLM.*Did you mean Qwen[23]ForCausalLM"),
        ({"llm_config": {"architectures": ["Qwen2ForCausalLM"], "hidden_size": 64}}, "lacks vocab_size"),
        ({"force_image_size": 60}, "do not divide evenly"),
        ({"downsample_ratio": 0.3}, "do not divide evenly"),
        ({"vision_config": {"hidden_size": "wide", "image_size": 56}}, "does not describe a vision tower"),
        ({"select_layer": 4}, "select_layer 4 for a vision tower with 3 layers"),
        ({"use_llm_lora": 16}, "merge them first"),
    ],
)
def test_fields_that_cannot_be_honoured(change, told):
    with pytest.raises(CheckpointError, match=told):
        translate({**config_of("internvl2-qwen2"), **change})


def test_absent_fields_have_the_defaults_of_the_original():
    config = translate({"llm_config": config_of("internvl2-llama")["llm_config"]})
    assert (config.ps_version, config.downsample_ratio, config.vision_layers) == ("v1", 0.5, 48)
    vision = config.vision_config
    assert (vision.hidden_size, vision.norm_type, vision.qk_normalization, vision.qkv_bias) == (
        3200,
        "rms_norm",
        True,
        False,
    )
    assert config.image_seq_length == 64  # tiles of 224 px
    processor = InternVL2Processor.build({"template": "Hermes-2"}, None, size=224, positions=64)
    assert (processor.dynamic, processor.min_tiles, processor.max_tiles, processor.thumbnail) == (False, 1, 6, False)


def test_an_empty_range_of_tiles_is_an_error():
    with pytest.raises(CheckpointError, match="at least 5 and at most 2"):
        InternVL2Processor.build(
            {"template": "Hermes-2", "min_dynamic_patch": 5, "max_dynamic_patch": 2}, None, size=56, positions=4
        )


def test_without_dynamic_size_a_picture_is_one_tile_squared_where_asked():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 50, 3), dtype=np.uint8))
    fields = {"template": "Hermes-2", "dynamic_image_size": False}
    plain = InternVL2Processor.build(fields, None, size=56, positions=4).pixels(picture)
    resized = picture.resize((56, 56), Image.Resampling.BICUBIC)
    assert torch.equal(plain, normalize(to_tensor(resized), IMAGENET_MEAN, IMAGENET_STD)[None])
    square = Image.new("RGB", (50, 50), (123, 116, 103))
    square.paste(picture, (0, 15))
    padded = InternVL2Processor.build({**fields, "pad2square": True}, None, size=56, positions=4).pixels(picture)
    resized = square.resize((56, 56), Image.Resampling.BICUBIC)
    assert torch.equal(padded, normalize(to_tensor(resized), IMAGENET_MEAN, IMAGENET_STD)[None])


def test_tiles_lie_row_by_row_and_the_thumbnail_last():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]
    picture = Image.new("RGB", (90, 60))
    for place, colour in enumerate(colours):
        column, row = place % 3, place // 3
        picture.paste(colour, (column * 30, row * 30, column * 30 + 30, row * 30 + 30))
    tiles = tile_image(picture, min_tiles=1, max_tiles=6, size=30, thumbnail=True)
    assert [tile.getpixel((15, 15)) for tile in tiles[:6]] == colours
    assert len(tiles) == 7
    assert tiles[6].getpixel((2, 2)) == colours[0]
    assert tiles[6].getpixel((28, 28)) == colours[5]
    assert len(tile_image(Image.new("RGB", (20, 20)), min_tiles=1, max_tiles=6, size=30, thumbnail=True)) == 1


# -- checkpoints -----------------------------------------------------------------------------------------


def test_code_in_the_checkpoint_never_runs(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "internvl2-internlm2", tmp_path / "hostile"))
    marker = tmp_path / "marker"
    code = f"open({str(marker)!r}, 'w').write('ran')\n"
    for name in (
        "modeling_internvl_chat",
        "configuration_internvl_chat",
        "modeling_internlm2",
        "configuration_internlm2",
        "tokenization_internlm2",
    ):
        (folder / f"{name}.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    assert "auto_map" in json.loads((folder / "config.json").read_text())
    assert "auto_map" in json.loads((folder / "tokenizer_config.json").read_text())
    result = vlmprobe.load(folder, device="cpu", dtype="float32").generate(
        messages("internvl2-internlm2", "one_tile"), max_new_tokens=8, do_sample=False
    )
    assert result.output.ids.tolist() == golden("internvl2-internlm2")[0]["one_tile"]["gen_ids"]
    assert not marker.exists()
    assert not [name for name in sys.modules if name.endswith(("modeling_internvl_chat", "tokenization_internlm2"))]


def test_a_checkpoint_with_an_unknown_template_is_refused_before_its_weights_are_read(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "internvl2-qwen2", tmp_path / "unknown"))
    config = config_of("internvl2-qwen2") | {"template": "hermes_2"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"'hermes_2'.*Hermes-2"):
        vlmprobe.load(folder)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "internvl2-qwen2", tmp_path / "other"))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    del tokenizer["added_tokens_decoder"]["485"]
    tokenizer["additional_special_tokens"].remove("<IMG_CONTEXT>")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    for name in ("added_tokens.json", "special_tokens_map.json"):
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match="no token <IMG_CONTEXT>"):
        vlmprobe.load(folder)


def test_half_precision_stays_near_full_precision():
    case = "internvl2-knobs"  # position embeddings are resized, which the original does in float32
    half = vlmprobe.load(GOLDEN / case, device="cpu")
    assert half.meta["dtype"] == "bfloat16"
    chat = messages(case, "one_image")
    near = half.generate(chat, max_new_tokens=1, do_sample=False, keep="logits").output.logits[0]
    full = probe_of(case).generate(chat, max_new_tokens=1, do_sample=False, keep="logits").output.logits[0]
    assert np.abs(near - full).max() < 1.0
    assert np.corrcoef(near, full)[0, 1] > 0.99


def test_device_map_auto_gives_the_same_answer():
    case = "internvl2-qwen2"
    probe = vlmprobe.load(GOLDEN / case, dtype="float32", device_map="auto")
    result = probe.generate(messages(case, "one_image"), max_new_tokens=8, do_sample=False)
    assert result.output.ids.tolist() == golden(case)[0]["one_image"]["gen_ids"]
