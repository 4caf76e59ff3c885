"""Original checkpoints whose weights are stored quantised, against the same with what these weights stand for."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch
from common import GOLDEN
from quantised_checkpoints import AWQ_ORDER, IN_ORDER, dequantised, quantise, quantised_case, stored, unpack
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AwqConfig, GPTQConfig

import vlmprobe
from vlmprobe.errors import CapabilityError, CheckpointError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.model_registry.original import quantised
from vlmprobe.model_registry.original.internvl2.weights import CONVERSIONS, PackKeyValueGroups, SplitKeyValueGroups
from vlmprobe.model_registry.original.minicpmv import MiniCPMV
from vlmprobe.testing import check_adapter

HIDDEN, GROUPS, SHARED, WIDTH = 32, 2, 3, 8
PACKED = r"\.attention\.wqkv\."
SPLIT = [".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj."]
bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
# Its import takes seconds, and it wants newer packages than vlmprobe does, so it is in no group of pyproject.toml.
gptqmodel = pytest.mark.skipif(
    not (find_spec("gptqmodel") and find_spec("optimum")), reason="gptqmodel and optimum are not installed"
)


def logits(folder, case, dtype="float32", **options) -> torch.Tensor:
    probe = vlmprobe.load(folder, device="cpu", dtype=dtype, check=False, **options)
    return run(probe, case)


def run(probe, case) -> torch.Tensor:
    adapter = probe.engine.adapter
    talk = Conversation.build("What is drawn on the left?", GOLDEN / case / "image_a.png")
    with torch.no_grad():
        return adapter.model(**adapter.encode([talk]).inputs).logits[0].float()


def names_of(case: str, *quantised_layers: str) -> list[str]:
    """Names of the weights of a case; of the layers, those of AWQ and GPTQ instead."""
    plain = [name for file in (GOLDEN / case).glob("model*.safetensors") for name in load_file(file)]
    found = []
    for name in plain:
        layer, _, kind = name.rpartition(".")
        packed = kind == "weight" and layer.endswith(quantised_layers)
        found += [f"{layer}.{each}" for each in ("qweight", "qzeros", "scales")] if packed else [name]
    return found


class Told:
    """A configuration that receives the quantisation."""

    quantization_config: dict


def prepared(monkeypatch, told, names, conversions=tuple(CONVERSIONS), **options) -> dict:
    monkeypatch.setattr(quantised, "find_spec", lambda _: object())
    config = Told()
    quantised.prepare(config, told, names, conversions, "folder", **{"on_cpu": False, **options})
    return config.quantization_config


# -- what needs no library ---------------------------------------------------------------------------


def test_where_config_json_says_it():
    told = {"quant_method": "awq", "bits": 4}
    assert quantised.stored_quantisation({"quantization_config": told}) == told
    assert quantised.stored_quantisation({"vision_config": {}, "llm_config": {"quantization_config": told}}) == told
    assert quantised.stored_quantisation({"llm_config": {"quantization_config": None}}) is None


def test_layers_of_the_model_that_are_not_quantised(monkeypatch):
    names = names_of("internvl2-internlm2", "wqkv", "wo", "w1", "w2", "w3")
    found = prepared(monkeypatch, {"quant_method": "awq", "bits": 4}, names)
    aside = found["modules_to_not_convert"]
    assert {"lm_head", "model.projector.1", "model.vision_tower.encoder.layers.0.attn.qkv"} <= set(aside)
    assert [name for name in aside if "language_model.layers" in name and not name.endswith("layernorm")] == []
    assert "backend" not in found


def test_layers_of_the_model_that_are_quantised(monkeypatch):
    found = prepared(monkeypatch, {"quant_method": "gptq"}, names_of("internvl2-internlm2", "wqkv", "w2"), on_cpu=True)
    assert found["block_name_to_quantize"] == "model.language_model.layers"
    inside = ["mlp.down_proj", "self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj"]
    assert found["modules_in_block_to_quantize"] == [inside]
    assert found["backend"] == "torch"


def test_loading_a_quantised_checkpoint_changes_no_other_that_is_saved(tmp_path, monkeypatch):
    """Conversions are shared by all checkpoints of a class, and remember which of them were used."""
    prepared(monkeypatch, {"quant_method": "awq"}, names_of("internvl2-internlm2", "w1", "wqkv"))
    before = {name for file in (GOLDEN / "internvl2-qwen2").glob("model*.safetensors") for name in load_file(file)}
    probe = vlmprobe.load(GOLDEN / "internvl2-qwen2", dtype="float32", check=False)
    probe.model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == before


def test_bitsandbytes_layers(monkeypatch):
    names = ["llm.lm_head.weight", "vpm.encoder.layers.0.mlp.fc1.weight", "llm.model.layers.0.mlp.up_proj.weight"]
    names += ["llm.model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4"]
    found = prepared(monkeypatch, {"load_in_4bit": True}, names, MiniCPMV.conversions())
    assert found["llm_int8_skip_modules"] == ["lm_head", "model.vision_tower.encoder.layers.0.mlp.fc1"]


@pytest.mark.parametrize(("method", "order"), [("awq", AWQ_ORDER), ("gptq", IN_ORDER)])
def test_packed_projections_are_split_as_they_are_stored(method, order):
    """Each part stands for the rows that the split of the unquantised weight gives."""
    torch.manual_seed(0)
    weight = torch.randn(GROUPS * (SHARED + 2) * WIDTH, HIDDEN)
    held, plain = stored("layer", weight, method, 16)
    config = language(GROUPS, SHARED, WIDTH)

    def split(kind, tensor):
        return SplitKeyValueGroups().convert(
            {PACKED: tensor}, [PACKED], SPLIT, config=config, full_layer_name=f"layers.0.self_attn.q_proj.{kind}"
        )

    parts = {name.rpartition(".")[2]: split(name.rpartition(".")[2], each) for name, each in held.items()}
    due = split("weight", plain)
    for name in SPLIT:
        qweight, qzeros = parts["qweight"][name], unpack(parts["qzeros"][name], order).T
        values = unpack(qweight, order).T if method == "awq" else unpack(qweight.T, order)
        zeros = qzeros if method == "awq" else (qzeros + 1) & 15
        assert torch.equal(dequantised(values, zeros, parts["scales"][name].T), due[name])
    for kind, split_up in parts.items():
        again = PackKeyValueGroups().convert(
            split_up, SPLIT, [PACKED], config=config, full_layer_name=f"layers.0.attention.wqkv.{kind}"
        )
        assert torch.equal(again[PACKED], held[f"layer.{kind}"])


def language(groups, shared, width):
    class Language:
        num_attention_heads, num_key_value_heads = groups * shared, groups
        hidden_size = groups * shared * width

    class Config:
        text_config = Language()

    return Config()


def test_the_packing_of_these_tests():
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    values, zeros, scales = quantise(weight, 16)
    assert (dequantised(values, zeros, scales) - weight).abs().max() <= scales.max() * 0.51
    held, _ = stored("x", weight, "awq", 16)
    # AutoAWQ packs the outputs 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits on.
    first = int(held["x.qweight"][0, 0]) & 0xFFFFFFFF
    assert [first >> 4 * bits & 15 for bits in range(8)] == [int(values[at, 0]) for at in (0, 2, 4, 6, 1, 3, 5, 7)]


# -- refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "kind", "package"),
    [
        ({"quant_method": "awq", "bits": 4}, "qweight", "AWQ.*gptqmodel.*pip install 'gptqmodel"),
        ({"quant_method": "gptq", "bits": 4}, "qweight", "GPTQ.*pip install 'gptqmodel.*' 'optimum"),
        ({"load_in_4bit": True}, "weight.quant_state.bitsandbytes__nf4", "pip install 'bitsandbytes"),
    ],
)
def test_without_its_library(tmp_path, monkeypatch, told, kind, package):
    monkeypatch.setattr(quantised, "find_spec", lambda _: None)
    folder = tmp_path / "MiniCPM-V-2_6-int4"
    quantised_folder(folder, told, {f"llm.model.layers.0.mlp.up_proj.{kind}": torch.zeros(2, dtype=torch.uint8)})
    with pytest.raises(CheckpointError, match=rf"MiniCPM-V-2_6-int4 has weights quantised by .*{package}"):
        vlmprobe.load(folder)


def quantised_folder(folder, told, more):
    folder.mkdir()
    for file in (GOLDEN / "minicpmv-2.6").iterdir():
        if file.is_file() and not file.name.startswith(("model", "golden")):
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": told}))
    save_file(more, folder / "model.safetensors")


def test_an_unknown_method(tmp_path):
    quantised_folder(tmp_path / "x", {"quant_method": "compressed-tensors"}, {"llm.lm_head.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"compressed-tensors.*AWQ, bitsandbytes, GPTQ"):
        vlmprobe.load(tmp_path / "x")


def test_weights_that_are_not_quantised(tmp_path):
    quantised_folder(tmp_path / "x", {"quant_method": "awq"}, {"llm.lm_head.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"no weight of .* is quantised"):
        vlmprobe.load(tmp_path / "x")


def test_packed_projections_of_bitsandbytes_cannot_be_split(monkeypatch):
    name = "language_model.model.layers.0.attention.wqkv.weight"
    names = [name, f"{name}.absmax", f"{name}.quant_state.bitsandbytes__nf4"]
    with pytest.raises(CheckpointError, match=r"attention\.wqkv quantised by bitsandbytes.*split"):
        prepared(monkeypatch, {"load_in_4bit": True}, names)


def test_quantised_experts_cannot_be_merged(monkeypatch):
    names = ["language_model.model.layers.0.mlp.experts.3.up_proj.qweight"]
    with pytest.raises(CheckpointError, match=r"experts\.3\.up_proj quantised by AWQ.*merged"):
        prepared(monkeypatch, {"quant_method": "awq"}, names)


@pytest.mark.parametrize("told", [{"quant_method": "awq"}, {"quant_method": "gptq"}, AwqConfig(), GPTQConfig(bits=4)])
def test_what_gptqmodel_rearranged_is_not_saved(tmp_path, told):
    """It rewrites GPTQ's zero points in place: a saved checkpoint loaded without an error, and gave other logits."""
    model = vlmprobe.load(GOLDEN / "minicpmv-2.6", dtype="float32", check=False).model
    model.config.quantization_config = told
    with pytest.raises(CapabilityError, match=r"(AWQ|GPTQ).*copy the checkpoint"):
        model.save_pretrained(tmp_path / "saved")
    assert list((tmp_path / "saved").glob("*.safetensors")) == []


# -- with bitsandbytes -------------------------------------------------------------------------------


@bitsandbytes
def test_bitsandbytes_numbers_are_those_of_the_weights(tmp_path):
    packed, plain = quantised_case(tmp_path, "minicpmv-2.6", "bitsandbytes")
    probe = vlmprobe.load(packed, device="cpu", dtype="float32")
    layers = {name for name, each in probe.model.named_modules() if type(each).__name__.startswith("Linear4bit")}
    assert {"model.vision_tower.encoder.layers.0.mlp.fc1", "model.language_model.layers.1.mlp.down_proj"} <= layers
    assert not any(name.endswith(("out_proj", "kv_proj", "lm_head")) for name in layers)
    found, due = run(probe, "minicpmv-2.6"), logits(plain, "minicpmv-2.6")
    torch.testing.assert_close(found, due, atol=1e-3, rtol=0)
    assert (found - logits(GOLDEN / "minicpmv-2.6", "minicpmv-2.6")).abs().max() > 0.1  # quantised, not the same


@bitsandbytes
def test_minicpm_o_with_its_audio_and_speech_weights(tmp_path):
    """What is left out may be quantised as well, and is then left out as well."""
    packed, plain = quantised_case(tmp_path, "minicpmv-2.6", "bitsandbytes")
    weights = load_file(packed / "model.safetensors")
    name = "llm.model.layers.0.mlp.up_proj.weight"
    aside = {
        f"apm.layers.0.fc1.weight{key.removeprefix(name)}": each.clone()
        for key, each in weights.items()
        if key.startswith(name)
    }
    assert len(aside) > 3
    save_file(weights | aside | {"tts.emb_text.weight": torch.zeros(2, 2)}, packed / "model.safetensors")
    for folder in (packed, plain):
        told = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**told, "model_type": "minicpmo", "version": "2.6"}))
    torch.testing.assert_close(logits(packed, "minicpmv-2.6"), logits(plain, "minicpmv-2.6"), atol=1e-3, rtol=0)


@bitsandbytes
def test_bitsandbytes_round_trip(tmp_path):
    packed, _ = quantised_case(tmp_path, "minicpmv-2.6", "bitsandbytes")
    probe = vlmprobe.load(packed, device="cpu", dtype="float32", check=False)
    probe.model.save_pretrained(tmp_path / "again")
    probe.tokenizer.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == load_file(packed / "model.safetensors").keys()
    assert torch.equal(logits(tmp_path / "again", "minicpmv-2.6"), run(probe, "minicpmv-2.6"))


@bitsandbytes
@pytest.mark.parametrize("case", ["minicpmv-2.6", "internvl2-internlm2"])
def test_quantised_when_loaded_and_saved(tmp_path, case):
    from transformers import BitsAndBytesConfig

    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, bnb_4bit_quant_type="nf4")
    probe = vlmprobe.load(GOLDEN / case, device="cpu", dtype="float32", check=False, quantization_config=options)
    assert any(type(module).__name__.startswith("Linear4bit") for module in probe.model.modules())
    assert type(probe.model.lm_head) is nn.Linear
    found = run(probe, case)
    if case == "internvl2-internlm2":  # whose format packs projections
        with pytest.raises(CapabilityError, match="dequantize"):
            probe.model.save_pretrained(tmp_path)
        return
    probe.model.save_pretrained(tmp_path)
    probe.tokenizer.save_pretrained(tmp_path)
    assert torch.equal(logits(tmp_path, case), found)


@bitsandbytes
@pytest.mark.long
def test_bitsandbytes_conforms(tmp_path):
    packed, _ = quantised_case(tmp_path, "minicpmv-2.6", "bitsandbytes")
    report = check_adapter(vlmprobe.load(packed, device="cpu", dtype="float32", check=False))
    assert report.passed, str(report)


# -- with gptqmodel ----------------------------------------------------------------------------------


@gptqmodel
@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # the libraries' own deprecations
@pytest.mark.parametrize("method", ["awq", "gptq"])
@pytest.mark.parametrize("case", ["internvl2-internlm2", "internvl2-qwen2", "minicpmv-2.6"])
def test_gptqmodel_numbers_are_those_of_the_weights(tmp_path, case, method):
    """Its plain kernel computes in float16, so rounding is allowed what it costs the unquantised model in float16."""
    packed, plain = quantised_case(tmp_path, case, method)
    due = logits(plain, case)
    rounding = (logits(plain, case, "float16") - due).abs().max()
    found = logits(packed, case, "float16")
    assert (found - due).abs().max() <= 2 * rounding
    assert (logits(GOLDEN / case, case) - due).abs().max() > 10 * rounding  # what quantisation changes is seen


@gptqmodel
@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_a_model_that_gptqmodel_loaded_is_not_saved(tmp_path, method):
    packed, _ = quantised_case(tmp_path, "minicpmv-2.6", method)
    model = vlmprobe.load(packed, device="cpu", dtype="float16", check=False).model
    with pytest.raises(CapabilityError, match=method.upper()):
        model.save_pretrained(tmp_path / "saved")
