"""MiniCPM-V in its original format against the original implementations.

1.0, 2.0 and 2.6, 2.5 and 4.5: the unmodified original code. 4.0: the code of 2.6 with Llama for Qwen2, which is how
its authors describe it; the original of 4.0 was not at hand.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from original_cases import GOLDEN, GREEDY, Scenario, config, scenarios
from safetensors.torch import load_file, save_file

import vlmprobe
from vlmprobe.errors import CapabilityError, CheckpointError, MessageError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.model_registry.original.minicpmv import MiniCPMV
from vlmprobe.model_registry.original.minicpmv.config import translate
from vlmprobe.model_registry.original.minicpmv.modeling import MiniCPMVForConditionalGeneration
from vlmprobe.model_registry.original.timm_towers import TimmTowerConfig

pytest.importorskip("timm")
pytest.importorskip("sentencepiece")

CASES = ("minicpmv-1.0", "minicpmv-2.0", "minicpmv-2.5", "minicpmv-2.6", "minicpmv-4.0", "minicpmv-4.5")
ALL = scenarios(*CASES)
QUESTION = "What is drawn on the left side of the picture?"


@cache
def probe(case: str) -> vlmprobe.Probe:
    return vlmprobe.load(GOLDEN / case, device="cpu", dtype="float32")


def adapter(case: str) -> MiniCPMV:
    return probe(case).engine.adapter


def conversation(*parts: object, case: str = "minicpmv-2.6") -> Conversation:
    """One user message of texts and, by their letter, images of a case."""
    content = [
        {"type": "image", "path": str(GOLDEN / case / f"image_{part.upper()[0].lower()}.png")}
        if isinstance(part, str) and len(part) == 1
        else part
        for part in parts
    ]
    return Conversation.build([{"role": "user", "content": content}])


def copied(case: str, folder: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / case, folder / case))


def edit(file: Path, **changes: object) -> None:
    held = json.loads(file.read_text())
    file.write_text(json.dumps({**held, **changes}))


# -- against the originals ---------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ALL, ids=str)
def test_prompt_and_pixels(scenario):
    encoding = adapter(scenario.case).encode([Conversation.build(scenario.messages)])
    prompt = encoding.prompts[0]
    assert prompt.text == scenario.told["prompt"]
    assert prompt.ids.tolist() == scenario.told["input_ids"]
    bounds = scenario.tensor("image_bound")
    assert [[span.start, span.stop] for span in prompt.spans] == ([] if bounds is None else bounds.tolist())
    if bounds is None:
        assert "pixel_values" not in encoding.inputs
        return
    assert encoding.inputs["tgt_sizes"].tolist() == scenario.tensor("tgt_sizes").tolist()
    pixels = encoding.inputs["pixel_values"]
    assert len(pixels) == len(bounds)
    for item, piece in enumerate(pixels):
        expected = scenario.tensor(f"pixel_values_{item}")
        if expected is not None:
            _, height, width = expected.shape
            torch.testing.assert_close(piece[:, :height, :width], expected, atol=1e-6, rtol=0)
            assert piece[:, height:].abs().sum() + piece[:, :, width:].abs().sum() == 0


@pytest.mark.parametrize("scenario", ALL, ids=str)
def test_rows_and_answer(scenario):
    result = probe(scenario.case).generate(scenario.messages, keep="logits", **GREEDY)
    assert result.input_ids.tolist() == scenario.told["input_ids"]
    assert result.output.ids.tolist() == scenario.told["gen_ids"]
    scored = ~np.isnan(result.prompt.logprobs)
    rows = scenario.tensor("logits").numpy()[result.prompt.positions[scored] - 1]
    np.testing.assert_allclose(result.prompt.logits[scored], rows, atol=1e-3, rtol=0)
    made = scenario.tensor("gen_logits").numpy()[: len(result.output)]
    np.testing.assert_allclose(result.output.logits, made, atol=1e-3, rtol=0)


@pytest.mark.parametrize("scenario", ALL, ids=str)
def test_teacher_forced_rows(scenario):
    """The whole sequence in one forward: also where a token is hidden and positions skip it."""
    family = adapter(scenario.case)
    inputs = family.encode([Conversation.build(scenario.messages)]).inputs
    made = scenario.told["gen_ids"]
    with torch.no_grad():
        whole = family.model(**family.extend(inputs, torch.tensor([made]))).logits[0]
    length = inputs["input_ids"].shape[1]
    torch.testing.assert_close(whole[:length], scenario.tensor("logits"), atol=1e-3, rtol=0)
    rows = scenario.tensor("gen_logits")[: len(made)]
    torch.testing.assert_close(whole[length - 1 : -1], rows, atol=1e-3, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_end_tokens(case):
    family = adapter(case)
    known = {scenario.case: scenario.told["end_ids"] for scenario in ALL if "end_ids" in scenario.told}
    named = {"minicpmv-2.0": [2], "minicpmv-2.6": [433, 431], **known}
    assert family.end_ids == set(named[case])


def test_an_end_token_ends_the_answer():
    told = Scenario("minicpmv-4.0", "system").told
    assert len(told["gen_ids"]) < 8
    assert told["gen_ids"][-1] in told["end_ids"]


# -- the same numbers however it is run --------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_batch_changes_nothing(case):
    family = adapter(case)
    talks = [Conversation.build(scenario.messages) for scenario in ALL if scenario.case == case]
    with torch.no_grad():
        together = family.model(**family.encode(talks).inputs).logits
        for row, talk in zip(together, talks, strict=True):
            alone = family.model(**family.encode([talk]).inputs).logits[0]
            torch.testing.assert_close(row[-len(alone) :], alone, atol=1e-4, rtol=0)


def test_2_5_padding_reaches_the_features():
    """The original's mask covers padding, so an image's features depend on its neighbours in the conversation."""
    tower = adapter("minicpmv-2.5").model.model
    family = adapter("minicpmv-2.5")
    with torch.no_grad():
        features = []
        for parts in (("d",), ("d", "a")):
            inputs = family.encode([conversation(*parts, case="minicpmv-2.5")]).inputs
            features.append(
                tower.image_features(inputs["pixel_values"], tgt_sizes=inputs["tgt_sizes"], owners=inputs["owners"])[0]
            )
    assert (features[0] - features[1]).abs().max() > 1e-2


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_the_whole_forward(case):
    family, scenario = adapter(case), Scenario(case, "one_image")
    candidates = ["yes", "no", "a red box", "红色!"]
    scores = probe(case).score(scenario.messages, candidates)
    talk = Conversation.build(scenario.messages)
    encoding = family.encode([talk])
    for candidate, found in zip(candidates, scores.logprobs, strict=True):
        joint = family.tokenize(encoding.prompts[0].text + candidate)
        assert joint[: len(encoding.prompts[0].ids)] == encoding.prompts[0].ids.tolist()
        more = torch.tensor([joint[len(encoding.prompts[0].ids) :]])
        with torch.no_grad():
            logits = family.model(**family.extend(encoding.inputs, more)).logits[0]
        rows = logits[-more.shape[1] - 1 : -1].double().log_softmax(-1)
        assert rows.gather(1, more.T).sum().item() == pytest.approx(found, abs=1e-3)


@pytest.mark.parametrize("case", ["minicpmv-2.0", "minicpmv-2.5", "minicpmv-2.6"])
def test_beams_encode_an_image_once(case):
    family, scenario = adapter(case), Scenario(case, "one_image")
    runs = []
    hook = family.model.model.resampler.register_forward_hook(lambda _, __, out: runs.append(out.shape[0]))
    try:
        result = probe(case).generate(scenario.messages, max_new_tokens=5, do_sample=False, num_beams=3)
    finally:
        hook.remove()
    inputs = family.encode([Conversation.build(scenario.messages)]).inputs
    assert sum(runs) == len(inputs["pixel_values"])
    with torch.no_grad():  # the same search without sharing: three rows of their own
        copies = {name: inputs[name].repeat(3, 1) for name in ("input_ids", "attention_mask", "image_index")}
        images = {name: inputs[name] for name in ("pixel_values", "tgt_sizes", "owners")}
        first = family.model(**copies, **images).logits[:, -1]
        assert torch.equal(first[0], first[2])
        plain = family.model.generate(
            **inputs, max_new_tokens=5, do_sample=False, num_beams=3, use_cache=False, pad_token_id=0
        )
    assert plain[0, inputs["input_ids"].shape[1] :].tolist()[: len(result.output)] == result.output.ids.tolist()


def test_sampling_with_a_seed():
    ask = probe("minicpmv-2.6").generate
    drawn = [
        ask(Scenario("minicpmv-2.6", "one_image").messages, max_new_tokens=6, do_sample=True, seed=seed).output.ids
        for seed in (1, 1, 2)
    ]
    assert drawn[0].tolist() == drawn[1].tolist() != drawn[2].tolist()


@pytest.mark.parametrize("case", ["minicpmv-2.0", "minicpmv-2.6"])
def test_bfloat16(case):
    told = Scenario(case, "one_image")
    low = vlmprobe.load(GOLDEN / case, device="cpu", dtype="bfloat16")
    assert next(low.engine.adapter.model.parameters()).dtype == torch.bfloat16
    rows = low.generate(told.messages, keep="logits", **GREEDY).output.logits[0]
    exact = told.tensor("gen_logits")[0].numpy()
    assert np.corrcoef(rows, exact)[0, 1] > 0.99


def test_device_map():
    assert (
        vlmprobe.load(GOLDEN / "minicpmv-2.6", device_map="auto", dtype="float32")
        .generate(Scenario("minicpmv-2.6", "one_image").messages, **GREEDY)
        .output.ids.tolist()
        == Scenario("minicpmv-2.6", "one_image").told["gen_ids"]
    )


# -- conversations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_an_assistant_message_is_continued(case):
    asked = {"role": "user", "content": [{"type": "text", "text": "Which colour?"}]}
    family = adapter(case)
    fresh = family.encode([Conversation.build([asked])]).prompts[0].text
    begun = family.encode([Conversation.build([asked, {"role": "assistant", "content": "It is"}])]).prompts[0].text
    assert begun == f"{fresh}It is"


def test_thinking_of_4_5():
    folder = GOLDEN / "minicpmv-4.5"
    thinking = MiniCPMV.load(folder, config=config("minicpmv-4.5"), enable_thinking=True)
    talk = Conversation.build("Which colour?")
    assert thinking.encode([talk]).prompts[0].text.endswith("assistant\n<think>\n")
    assert adapter("minicpmv-4.5").encode([talk]).prompts[0].text.endswith("assistant\n<think>\n\n</think>\n\n")
    with pytest.raises(CapabilityError, match=r"4\.5"):
        MiniCPMV.load(GOLDEN / "minicpmv-2.6", config=config("minicpmv-2.6"), enable_thinking=True)


def test_max_slice_nums_of_an_image():
    part = {"type": "image", "path": str(GOLDEN / "minicpmv-2.6" / "image_a.png")}
    sizes = [
        len(adapter("minicpmv-2.6").encode([conversation({**part, **more})]).inputs["pixel_values"])
        for more in ({}, {"max_slice_nums": 2}, {"max_slice_nums": 1})
    ]
    assert sizes == [7, 3, 1]
    with pytest.raises(CapabilityError, match="max_pixels"):
        adapter("minicpmv-2.6").encode([conversation({**part, "max_pixels": 5})])
    with pytest.raises(MessageError, match="at least 1"):
        adapter("minicpmv-2.6").encode([conversation({**part, "max_slice_nums": 0})])


def test_1_0_cuts_no_image():
    part = {"type": "image", "path": str(GOLDEN / "minicpmv-1.0" / "image_a.png"), "max_slice_nums": 2}
    with pytest.raises(CapabilityError, match="max_slice_nums"):
        adapter("minicpmv-1.0").encode([conversation(part, case="minicpmv-1.0")])


def test_a_side_of_1_0_that_patches_do_not_divide(tmp_path):
    """The original's tower pads the last row and column of patches; no released size needs it."""
    folder = copied("minicpmv-1.0", tmp_path)
    edit(folder / "config.json", image_size=60)
    family = vlmprobe.load(folder, dtype="float32", check=False).engine.adapter
    inputs = family.encode([conversation("a", case="minicpmv-1.0")]).inputs
    assert inputs["pixel_values"].shape[-2:] == (60, 60)
    tower = family.model.model
    with torch.no_grad():
        features = tower.image_features(inputs["pixel_values"], tgt_sizes=inputs["tgt_sizes"], owners=inputs["owners"])
        padded = torch.nn.functional.pad(inputs["pixel_values"], (0, 10, 0, 10))
        due = tower.resampler(tower.vision_tower(padded), (5, 5))
    torch.testing.assert_close(features, due, atol=1e-5, rtol=0)


@pytest.mark.parametrize("text", ["an <image> tag", "</slice>", "(<image>./</image>)", "<image><unk></image>"])
def test_image_tags_in_the_text_are_refused(text):
    with pytest.raises(MessageError, match="image parts"):
        adapter("minicpmv-2.6").encode([conversation("d", {"type": "text", "text": text})])


@pytest.mark.parametrize("case", ["minicpmv-1.0", "minicpmv-2.0"])
def test_conversations_that_a_first_release_cannot_express(case):
    family = adapter(case)
    image = {"type": "image", "path": str(GOLDEN / case / "image_a.png")}
    text = {"type": "text", "text": QUESTION}
    with pytest.raises(CapabilityError, match="one image"):
        family.encode([Conversation.build([{"role": "user", "content": [image, image, text]}])])
    with pytest.raises(MessageError, match="first part of the first message"):
        family.encode([Conversation.build([{"role": "user", "content": [text, image]}])])
    with pytest.raises(CapabilityError, match="takes no system message"):
        family.encode(
            [Conversation.build([{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Hi"}])]
        )


def test_a_user_speaks_first():
    with pytest.raises(MessageError, match="user message first"):
        adapter("minicpmv-2.6").encode(
            [Conversation.build([{"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Hi"}])]
        )


# -- true sizes --------------------------------------------------------------------------------------

FIRST = {  # fields of the released config.json that decide sizes, the same in 1.0 and 2.0
    "model_type": "minicpmv",
    "vision_encoder": "vit_so400m_patch14_siglip_384.webli",
    "vocab_size": 122753,
    "hidden_size": 2304,
    "num_hidden_layers": 40,
    "num_attention_heads": 36,
    "num_key_value_heads": 36,
    "intermediate_size": 5760,
    "query_num": 64,
    "scale_emb": 12,
}


@pytest.mark.parametrize(("release", "fields"), [("1.0", {}), ("2.0", {"scale_resolution": 448})])
def test_the_model_of_a_first_release_has_as_many_parameters_as_its_weight_files(release, fields, monkeypatch):
    """Their index says 6,869,931,584 bytes, two for each. The tower's sizes come from weights; here they are timm's."""
    monkeypatch.setattr("vlmprobe.model_registry.original.minicpmv.config.read_tower", lambda *_: TimmTowerConfig())
    with torch.device("meta"):
        model = MiniCPMVForConditionalGeneration(translate(Path(), FIRST | fields))
    assert model.config.release == release
    assert sum(each.numel() for each in model.parameters()) == 6_869_931_584 // 2


# -- checkpoints that cannot be right ----------------------------------------------------------------


@pytest.mark.parametrize("version", [3.0, "1.0", "six", None])
def test_unsupported_versions(tmp_path, version):
    folder = copied("minicpmv-2.6", tmp_path)
    edit(folder / "config.json", version=version)
    with pytest.raises(CheckpointError, match=r"2\.0, 2\.5, 2\.6, 4\.0, 4\.5"):
        vlmprobe.load(folder)


def test_native_releases_are_left_to_transformers():
    assert not MiniCPMV.handles({"model_type": "minicpmv4_6"})


def test_missing_shard(tmp_path):
    folder = copied("minicpmv-2.6", tmp_path)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        vlmprobe.load(folder)


def test_missing_and_unexpected_weights_are_listed(tmp_path):
    folder = copied("minicpmv-4.0", tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["resampler.extra"] = weights.pop("resampler.ln_q.weight")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"ln_q\.weight.*resampler\.extra"):
        vlmprobe.load(folder)


def test_weights_that_do_not_show_the_tower(tmp_path):
    folder = copied("minicpmv-2.0", tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["vpm.pos_embed"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"vpm\.pos_embed"):
        vlmprobe.load(folder)


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("preprocessor_config.json", {"image_feature_size": 7}, "query_num 5"),
        ("config.json", {"slice_mode": False}, "slice_mode"),
        ("config.json", {"vision_encoder": "vit_tiny"}, None),
    ],
)
def test_files_that_contradict_each_other(tmp_path, file, change, told):
    folder = copied("minicpmv-2.6" if told else "minicpmv-2.0", tmp_path)
    edit(folder / file, **change)
    with pytest.raises(CheckpointError, match=told or "vit_tiny"):
        vlmprobe.load(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "quantised"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"vision_config": {"hidden_size": "wide"}}, "vision"),
    ],
)
def test_configs_that_describe_no_model(tmp_path, change, told):
    folder = copied("minicpmv-2.6", tmp_path)
    edit(folder / "config.json", **change)
    with pytest.raises(CheckpointError, match=told):
        vlmprobe.load(folder)


def test_a_config_that_lacks_a_size(tmp_path):
    folder = copied("minicpmv-2.0", tmp_path)
    held = config(folder)
    del held["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(held))
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        vlmprobe.load(folder)


def test_missing_preprocessor_config(tmp_path):
    folder = copied("minicpmv-2.6", tmp_path)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        vlmprobe.load(folder)


@pytest.mark.parametrize("case", ["minicpmv-2.0", "minicpmv-2.6"])
def test_code_of_the_checkpoint_never_runs(tmp_path, case):
    folder = copied(case, tmp_path)
    witness = tmp_path / "it-ran"
    hostile = f"open({str(witness)!r}, 'w').close()\nraise SystemExit\n"
    for name in ("modeling_minicpmv", "configuration_minicpm", "tokenization_minicpmv_fast", "processing_minicpmv"):
        (folder / f"{name}.py").write_text(hostile)
    assert "auto_map" in config(folder)
    scenario = Scenario(case, "one_image")
    result = vlmprobe.load(folder, dtype="float32").generate(scenario.messages, **GREEDY)
    assert result.output.ids.tolist() == scenario.told["gen_ids"]
    assert not witness.exists()


def test_candidates_after_a_prompt_with_an_exclamation_mark():
    """MiniCPM-V 2.6 hides id 0 ("!") from attention, in the prompt that candidates share as well."""
    probe = vlmprobe.load(GOLDEN / "minicpmv-2.6", dtype="float32", check=False)
    adapter = probe.engine.adapter
    question, image = "Look! What is drawn?", GOLDEN / "minicpmv-2.6" / "image_d.png"
    encoding = adapter.encode([probe.conversation(question, image)])
    assert not encoding.inputs["attention_mask"].all()
    candidates = ["red nine", "the cat is", "no"]
    scores = probe.score(question, candidates, image=image)
    for candidate, got in zip(candidates, scores.logprobs, strict=True):
        ids = adapter.continuation(encoding.prompts[0], candidate).ids
        with torch.no_grad():
            logits = adapter.model(**adapter.extend(encoding.inputs, torch.tensor([ids]))).logits[0]
        rows = logits[-len(ids) - 1 : -1].log_softmax(-1)
        due = sum(float(row[each]) for row, each in zip(rows, ids, strict=True))
        assert got == pytest.approx(due, abs=1e-4)
