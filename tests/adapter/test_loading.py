"""Weights that nothing reads, or that are missing: an error with both sides of names; and who loaded a model."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from common import GOLDEN
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import vlmprobe
from vlmprobe.adapter.loading import loader_of
from vlmprobe.cli import app
from vlmprobe.errors import CheckpointError
from vlmprobe.model_registry.native import Native

FILE = "model.safetensors"


@pytest.fixture
def changed(checkpoint, tmp_path):
    """A copy of a tiny checkpoint, its weights changed by a function from name -> tensor to the same."""

    def make(change, name="llava"):
        folder = tmp_path / name
        shutil.copytree(checkpoint(name) if not isinstance(name, type(GOLDEN)) else name, folder)
        save_file(change(load_file(folder / FILE)), folder / FILE, metadata={"format": "pt"})
        return folder

    return make


def with_draft_head(weights):
    return {**weights, "mtp.fc.weight": torch.ones(2, 2), "mtp.norm.weight": torch.ones(2)}


def load(folder, **options):
    return vlmprobe.load(folder, device="cpu", **options)


def test_weights_that_nothing_reads_are_refused_with_a_way_out(changed):
    with pytest.raises(CheckpointError) as raised:
        load(changed(with_draft_head))
    told = str(raised.value)
    assert r"in the checkpoint, and read by nothing: mtp.* (2)" in told
    assert "load with ignore_weights=('mtp.',)" in told
    assert "--ignore-weights mtp. on the command line" in told
    assert "_keys_to_ignore_on_load_unexpected" in told


@pytest.mark.parametrize("given", ["mtp.", ["mtp."], ("mtp.fc", "mtp.norm.")], ids=str)
def test_weights_are_left_unread_at_the_users_word_and_meta_says_so(given, changed, checkpoint):
    probe = load(changed(with_draft_head), ignore_weights=given)
    assert probe.meta["ignore_weights"] == ([given] if isinstance(given, str) else list(given))
    whole = load(checkpoint("llava"))
    assert "ignore_weights" not in whole.meta
    asked = [each.score("Who are you?", ["yes"]).logprobs for each in (probe, whole)]
    assert asked[0].tolist() == asked[1].tolist()


def test_others_than_those_left_unread_are_still_refused(changed):
    with pytest.raises(CheckpointError, match=r"read by nothing: mtp\.norm\.weight\)"):
        load(changed(with_draft_head), ignore_weights="mtp.fc.")


def test_a_renamed_weight_is_on_both_sides_with_a_remedy_for_authors(changed):
    def rename(weights):
        name = next(each for each in weights if each.endswith("layers.1.mlp.down_proj.weight"))
        return {each.replace("down_proj", "w2") if each == name else each: held for each, held in weights.items()}

    with pytest.raises(CheckpointError) as raised:
        load(changed(rename))
    told = str(raised.value)
    assert "mlp.w2.weight; needed by LlavaForConditionalGeneration, and missing: " in told
    assert "layers.1.mlp.down_proj.weight)" in told
    assert "To write an adapter for llava: if names on both sides mean the same weight, rename" in told
    assert "every shard was downloaded" in told


def test_missing_weights_alone_have_no_talk_of_unread_ones(changed):
    with pytest.raises(CheckpointError) as raised:
        load(changed(lambda weights: {each: held for each, held in weights.items() if "layers.1.mlp" not in each}))
    told = str(raised.value)
    assert "and missing: " in told
    assert "random numbers" in told
    assert "ignore_weights" not in told


def test_harmless_surplus_is_no_error(changed):
    """Buffers of rotary embeddings, and the head saved twice where it is tied."""

    def add(weights):
        embeddings = next(held for name, held in weights.items() if name.endswith("embed_tokens.weight"))
        buffers = {"model.language_model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
        return {**weights, **buffers, "model.language_model.lm_head.weight": embeddings.clone()}

    assert load(changed(add, "gemma3")).meta["adapter"] == "native"


@pytest.mark.parametrize("wrong", [[1], [""], [None]], ids=str)
def test_what_is_no_beginning_of_a_name(wrong, checkpoint):
    with pytest.raises(TypeError, match="ignore_weights"):
        load(checkpoint("llava"), ignore_weights=wrong)


def test_original_formats_take_it_too(changed, tmp_path):
    folder = tmp_path / "original"
    shutil.copytree(GOLDEN / "internvl2-qwen2", folder)
    save_file(with_draft_head(load_file(folder / FILE)), folder / FILE, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"2 unexpected: mtp\.fc.*ignore_weights="):
        load(folder)
    assert load(folder, ignore_weights=("mtp.",)).meta["ignore_weights"] == ["mtp."]


def test_the_command_line_takes_it_too(changed):
    folder = str(changed(with_draft_head))
    arguments = ["check", folder, "--device", "cpu", "--only", "C3"]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code != 0
    done = CliRunner().invoke(app, [*arguments, "--ignore-weights", "mtp.fc.", "--ignore-weights", "mtp.norm."])
    assert done.exit_code == 0, done.output


# Which adapter loaded a model


def test_wrap_takes_the_adapter_that_loaded_the_model(checkpoint):
    probe = load(checkpoint("qwen2_vl"), adapter="native")
    assert vlmprobe.wrap(probe.model, probe.processor).meta["adapter"] == "native"
    assert vlmprobe.wrap(copy.deepcopy(probe.model), probe.processor).meta["adapter"] == "native"
    assert vlmprobe.wrap(probe.model, probe.processor, adapter="qwen_vl").meta["adapter"] == "qwen_vl"


def test_wrap_finds_it_whatever_the_config_says(checkpoint):
    probe = load(checkpoint("internvl"))
    probe.model.config.model_type = "llava"
    again = vlmprobe.wrap(probe.model, probe.processor)
    assert type(again.engine.adapter) is type(probe.engine.adapter)


def test_wrap_of_a_model_in_original_format():
    probe = load(GOLDEN / "internvl2-qwen2")
    again = vlmprobe.wrap(probe.model, probe.processor)
    assert again.meta["adapter"] == "internvl2"
    asked = [each.score("Who are you?", ["yes", "no"]).logprobs for each in (probe, again)]
    assert asked[0].tolist() == asked[1].tolist()


def test_wrap_of_what_an_adapters_own_load_returns(checkpoint):
    class Own(Native):
        name = "own"

    folder = checkpoint("llava")
    made = Own.load(folder, config={"model_type": "llava"})
    assert type(vlmprobe.wrap(made.model, made.processor).engine.adapter) is Own


def test_a_model_of_transformers_has_no_loader(own):
    held = own("llava")
    assert loader_of(held.model) is None
    assert vlmprobe.wrap(held.model, held.processor).meta["adapter"] == "native"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # peft reads it
def test_wrap_of_a_peft_model_around_it(checkpoint):
    from peft import LoraConfig, get_peft_model

    probe = load(checkpoint("qwen2_vl"), adapter="native")
    tuned = get_peft_model(probe.model, LoraConfig(target_modules=["q_proj"]))
    assert vlmprobe.wrap(tuned, probe.processor).meta["adapter"] == "native"
