"""MiniCPM-o in its original format: MiniCPM-V's vision and text, another attention mask, audio and speech left out.

The judge is the original chat() of MiniCPM-o 2.6 and 4.5 on the weights of MiniCPM-V's reference cases, without its
audio encoder and speech generator: _units/minicpmo.json has the ids, and minicpmo.safetensors the logits of the
scenarios with an id 0. Those of the others are the logits of MiniCPM-V.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from common import GOLDEN
from minicpm_configs import RELEASES
from minicpmo_checkpoints import AUDIO_AND_SPEECH, omni
from original_cases import GREEDY, Scenario, config, scenarios
from safetensors.torch import load_file

import vlmprobe
from vlmprobe.errors import CapabilityError, CheckpointError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.inputs.prompt_format import PromptFormat
from vlmprobe.model_registry.original.minicpmv.config import translate
from vlmprobe.model_registry.original.minicpmv.modeling import MiniCPMVForConditionalGeneration
from vlmprobe.testing import check_adapter

UNITS = GOLDEN / "_units"
TOLD = json.loads((UNITS / "minicpmo.json").read_text())
VERSIONS = ("2.6", "4.5")
ALL = scenarios(*(f"minicpmv-{version}" for version in VERSIONS))
HIDING = [scenario for scenario in ALL if 0 in scenario.told["input_ids"]]
PLAIN = [scenario for scenario in ALL if scenario not in HIDING]


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    """The probe of a version."""

    @cache
    def probe(version: str) -> vlmprobe.Probe:
        folder = omni(tmp_path_factory.mktemp("omni") / f"MiniCPM-o-{version}", version)
        return vlmprobe.load(folder, device="cpu", dtype="float32")

    return probe


def probe_of(scenario: Scenario, probes: Any) -> vlmprobe.Probe:
    return probes(scenario.case.removeprefix("minicpmv-"))


def logits(probe: vlmprobe.Probe, scenario: Scenario) -> torch.Tensor:
    adapter = probe.engine.adapter
    with torch.no_grad():
        return adapter.model(**adapter.encode([Conversation.build(scenario.messages)]).inputs).logits[0]


@pytest.mark.parametrize("release", RELEASES, ids=str)
def test_the_model_of_a_released_configuration_is_as_large_as_its_card_says(release):
    with torch.device("meta"):
        model = MiniCPMVForConditionalGeneration(translate(Path(), release.config))
    parts = {"": model, "language": model.model.language_model, "head": model.lm_head}
    counts = {name: sum(each.numel() for each in part.parameters()) / 1e9 for name, part in parts.items()}
    assert f"{counts['']:.1f}" == release.billions
    assert f"{counts['language'] + counts['head']:.1f}" == release.language


@pytest.mark.parametrize("scenario", ALL, ids=str)
def test_prompt_ids_and_answer_are_those_of_the_original(scenario, probes):
    probe = probe_of(scenario, probes)
    told = TOLD[scenario.case.removeprefix("minicpmv-")][scenario.name]
    encoding = probe.engine.adapter.encode([Conversation.build(scenario.messages)])
    assert encoding.prompts[0].ids.tolist() == told["input_ids"] == scenario.told["input_ids"]
    assert encoding.prompts[0].text == scenario.told["prompt"]
    assert encoding.inputs["attention_mask"].all()
    assert probe.generate(scenario.messages, **GREEDY).output.ids.tolist() == told["gen_ids"]


@pytest.mark.parametrize("scenario", PLAIN, ids=str)
def test_logits_are_those_of_minicpm_v_where_nothing_is_hidden(scenario, probes):
    found = logits(probe_of(scenario, probes), scenario)
    torch.testing.assert_close(found, scenario.tensor("logits"), atol=1e-3, rtol=0)


@pytest.mark.parametrize("scenario", HIDING, ids=str)
def test_id_0_is_not_hidden(scenario, probes):
    """The original passes a mask of ones, where that of MiniCPM-V masks every "!" and does not count it."""
    found = logits(probe_of(scenario, probes), scenario)
    due = load_file(UNITS / "minicpmo.safetensors")[f"{scenario.case.removeprefix('minicpmv-')}.{scenario.name}.logits"]
    torch.testing.assert_close(found, due, atol=1e-3, rtol=0)
    assert (found - scenario.tensor("logits")).abs().max() > 0.1


def test_that_is_the_plain_forward_of_minicpm_v(probes):
    scenario = Scenario("minicpmv-2.6", "quirk_bang")
    found = logits(probes("2.6"), scenario)[-1]
    torch.testing.assert_close(found, scenario.tensor("last_logits_without_mask"), atol=1e-3, rtol=0)


@pytest.mark.parametrize("version", ["2.6", pytest.param("4.5", marks=pytest.mark.long)])
def test_it_conforms(version, probes):
    report = check_adapter(probes(version))
    assert report.passed, str(report)


def test_meta_says_what_is_left_out(probes):
    parts = ["apm.", "audio_projection_layer.", "tts."]
    assert probes("2.6").meta["unused_weights"] == parts
    scenario = Scenario("minicpmv-2.6", "text_only")
    assert probes("2.6").generate(scenario.messages, max_new_tokens=1).meta["unused_weights"] == parts
    assert "unused_weights" not in vlmprobe.load(GOLDEN / "minicpmv-2.6", dtype="float32", check=False).meta


@pytest.mark.parametrize("name", ["audio_encoder.weight", "resampler.tts.weight", "apm_extra.weight"])
def test_nothing_else_is_left_out(tmp_path, name):
    folder = omni(tmp_path / "o", "2.6", more={name: (2, 2)})
    with pytest.raises(CheckpointError, match=rf"1 unexpected: \S*{name.rpartition('.')[0]}"):
        vlmprobe.load(folder)


def test_minicpm_v_has_no_such_parts(tmp_path):
    folder = omni(tmp_path / "o", "2.6", model_type="minicpmv")
    with pytest.raises(CheckpointError, match=rf"{len(AUDIO_AND_SPEECH)} unexpected.*apm\."):
        vlmprobe.load(folder)


def test_a_checkpoint_without_audio_and_speech(tmp_path):
    folder = omni(tmp_path / "o", "2.6", init_audio=False, init_tts=False)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if name not in AUDIO_AND_SPEECH}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-audio-and-speech.safetensors").unlink()
    scenario = Scenario("minicpmv-2.6", "multi_turn")
    found = logits(vlmprobe.load(folder, dtype="float32", check=False), scenario)
    torch.testing.assert_close(found, scenario.tensor("logits"), atol=1e-3, rtol=0)


@pytest.mark.parametrize("version", ["4.0", 4.6, None])
def test_other_versions_are_refused(tmp_path, version):
    folder = omni(tmp_path / "o", "2.6", version=version)
    with pytest.raises(CheckpointError, match=rf"MiniCPM-o version {version!r}.* are 2\.6, 4\.5\."):
        vlmprobe.load(folder)


def test_no_vision_tower(tmp_path):
    with pytest.raises(CheckpointError, match=r"init_vision.*MiniCPM-o 2\.6 has no vision tower"):
        vlmprobe.load(omni(tmp_path / "o", "2.6", init_vision=False))


def test_thinking(tmp_path, probes):
    folder = omni(tmp_path / "o", "4.5")
    talk = Conversation.build("Which colour?")
    thinking = vlmprobe.load(folder, dtype="float32", check=False, enable_thinking=True).engine.adapter
    assert thinking.encode([talk]).prompts[0].text.endswith("assistant\n<think>\n")
    quick = probes("4.5").engine.adapter.encode([talk]).prompts[0].text
    assert quick.endswith("assistant\n<think>\n\n</think>\n\n")
    with pytest.raises(CapabilityError, match=r"MiniCPM-V 4\.5 and MiniCPM-o 4\.5; this checkpoint is MiniCPM-o 2\.6"):
        vlmprobe.load(omni(tmp_path / "older", "2.6"), enable_thinking=True)


def test_the_chat_template_is_not_asked_for_speech(tmp_path):
    """Released MiniCPM-o 4.5 has its chat template in a file of its own, with a branch for spoken answers."""
    folder = omni(tmp_path / "o", "4.5")
    told = json.loads((folder / "tokenizer_config.json").read_text())
    template = told.pop("chat_template")
    spoken = "{%- if use_tts_template is defined and use_tts_template is not false %}{{ '<|tts_bos|>' }}{%- endif %}"
    asked = "{%- if use_tts_template is not defined %}{{ 'not passed' }}{%- endif %}"
    (folder / "chat_template.jinja").write_text(template + spoken + asked)
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    adapter = vlmprobe.load(folder, dtype="float32", check=False).engine.adapter
    scenario = Scenario("minicpmv-4.5", "one_image")
    assert adapter.encode([Conversation.build(scenario.messages)]).prompts[0].text == scenario.told["prompt"]


def test_arguments_of_the_chat_template(probes):
    def prompt(version: str, **kwargs: Any) -> str:
        talk = Conversation.build("Which colour?", format=PromptFormat(chat_template_kwargs=kwargs))
        return probes(version).engine.adapter.encode([talk]).prompts[0].text

    assert prompt("4.5", enable_thinking=True).endswith("assistant\n<think>\n")
    assert prompt("4.5", use_tts_template=False) == prompt("4.5", enable_thinking=False) == prompt("4.5")
    with pytest.raises(CapabilityError, match="use_tts_template"):
        prompt("2.6", use_tts_template=True)
    with pytest.raises(CapabilityError, match="may hold enable_thinking, use_tts_template"):
        prompt("4.5", thinking=True)


@pytest.mark.parametrize(("version", "kept"), [("2.6", 1), ("4.5", 0)])
def test_the_token_of_listening_leaves_a_prompt_of_4_5(tmp_path, version, kept):
    adapter = vlmprobe.load(omni(tmp_path / "o", version), dtype="float32", check=False).engine.adapter
    adapter.tokenizer.add_tokens(["<|listen|>"], special_tokens=True)
    listen = adapter.tokenizer.convert_tokens_to_ids("<|listen|>")
    ids = adapter.encode([Conversation.build("Which<|listen|> colour?")]).prompts[0].ids.tolist()
    assert ids.count(listen) == kept
    plain = adapter.encode([Conversation.build("Which colour?")]).prompts[0].ids.tolist()
    assert [each for each in ids if each != listen] == plain


@pytest.mark.parametrize("version", VERSIONS)
def test_saved_it_loads_again_without_audio_and_speech(tmp_path, version, probes):
    first = probes(version)
    first.model.save_pretrained(tmp_path)
    first.tokenizer.save_pretrained(tmp_path)
    held = {name for file in tmp_path.glob("model*.safetensors") for name in load_file(file)}
    before = {name for file in (GOLDEN / f"minicpmv-{version}").glob("model*.safetensors") for name in load_file(file)}
    assert held == before
    told = config(tmp_path)
    assert told["model_type"] == "minicpmo"
    assert told["audio_config"]["vocab_size"] == 51865  # that of the audio encoder
    again = vlmprobe.load(tmp_path, dtype="float32", check=False)
    assert again.meta["unused_weights"] == first.meta["unused_weights"]
    for scenario in ALL:
        if scenario.case.endswith(version):
            assert torch.equal(logits(again, scenario), logits(first, scenario))


def test_code_of_the_checkpoint_never_runs(tmp_path):
    folder = omni(tmp_path / "o", "2.6", auto_map={"AutoModel": "modeling_minicpmo.MiniCPMO"})
    witness = tmp_path / "it-ran"
    for name in ("modeling_minicpmo", "configuration_minicpm", "processing_minicpmo", "image_processing_minicpmv"):
        (folder / f"{name}.py").write_text(f"open({str(witness)!r}, 'w').close()\nraise SystemExit\n")
    vlmprobe.load(folder, dtype="float32")
    assert not witness.exists()
    shutil.rmtree(folder)
