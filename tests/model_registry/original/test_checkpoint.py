"""Loading weights: everything that is there, nothing that is not, and a clear word on what is wrong."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from common import GOLDEN
from safetensors.torch import load_file, save_file

from vlmprobe.errors import CheckpointError, UnknownModelError
from vlmprobe.model_registry.original.checkpoint import local_folder, read_json, weight_files
from vlmprobe.model_registry.original.internvl2 import InternVL2


def load(folder: Path) -> InternVL2:
    return InternVL2.load(folder, config=read_json(folder / "config.json"), dtype=torch.float32)


@pytest.fixture
def sharded(tmp_path):
    return Path(shutil.copytree(GOLDEN / "internvl2-internlm2", tmp_path / "sharded"))


@pytest.fixture
def whole(tmp_path):
    return Path(shutil.copytree(GOLDEN / "internvl2-llama", tmp_path / "whole"))


def change(folder: Path, edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_every_weight_is_loaded_under_its_new_name(whole):
    stored = load_file(whole / "model.safetensors")
    held = load(whole).model.state_dict()
    for name in ("embeddings.class_embedding", "encoder.layers.1.attn.qkv.weight", "encoder.layers.1.ls2"):
        assert torch.equal(held[f"model.vision_tower.{name}"], stored[f"vision_model.{name}"].float())
    assert torch.equal(held["model.projector.3.weight"], stored["mlp1.3.weight"].float())
    layer = "layers.1.self_attn.q_proj.weight"
    assert torch.equal(held[f"model.language_model.{layer}"], stored[f"language_model.model.{layer}"].float())
    assert torch.equal(held["lm_head.weight"], stored["language_model.lm_head.weight"].float())
    assert sum(each.numel() for each in held.values()) == sum(each.numel() for each in stored.values())


def test_packed_projections_are_split_by_key_value_head(sharded):
    index = read_json(sharded / "model.safetensors.index.json")["weight_map"]
    name = "language_model.model.layers.0.attention.wqkv.weight"
    packed = load_file(sharded / index[name])[name]  # [2 groups x (4 q + k + v) x 8, 64]
    held = load(sharded).model.state_dict()
    layer = "model.language_model.layers.0.self_attn."
    second_group = packed[48:]
    assert torch.equal(held[layer + "q_proj.weight"][32:40], second_group[:8])
    assert torch.equal(held[layer + "k_proj.weight"][8:], second_group[32:40])
    assert torch.equal(held[layer + "v_proj.weight"][8:], second_group[40:])


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 3 weight shards: model-00002-of-00003\.safetensors"):
        load(sharded)


def test_a_truncated_shard_is_named(sharded):
    shard = sharded / "model-00003-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model-00003-of-00003\.safetensors is damaged"):
        load(sharded)


def test_an_index_cannot_point_outside_its_folder(sharded):
    index = sharded / "model.safetensors.index.json"
    held = json.loads(index.read_text())
    held["weight_map"]["mlp1.0.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(held))
    with pytest.raises(CheckpointError, match="outside its folder"):
        weight_files(sharded)


@pytest.mark.parametrize("index", ["{", "[]", "{}"])
def test_a_broken_index_is_an_error(sharded, index):
    (sharded / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        weight_files(sharded)


def test_a_folder_without_weights_is_an_error(whole):
    (whole / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        load(whole)


def test_missing_weights_are_listed_and_never_made_up(whole):
    def edit(weights):
        del weights["mlp1.3.bias"], weights["vision_model.encoder.layers.2.attn.qkv.weight"]

    change(whole, edit)
    with pytest.raises(CheckpointError, match="2 missing") as caught:
        load(whole)
    assert "model.projector.3.bias" in str(caught.value)
    assert "model.vision_tower.encoder.layers.2.attn.qkv.weight" in str(caught.value)


def test_unexpected_weights_are_listed(whole):
    change(whole, lambda weights: weights.update({"language_model.model.layers.7.mlp.up_proj.weight": torch.ones(2)}))
    with pytest.raises(CheckpointError, match=r"1 unexpected: .*layers\.7\.mlp\.up_proj\.weight"):
        load(whole)


def test_weights_of_another_shape_are_listed(whole):
    change(whole, lambda weights: weights.update({"mlp1.1.bias": torch.ones(3)}))
    with pytest.raises(CheckpointError, match=r"1 of another shape: .*projector\.1\.bias \(3,\) for \(64,\)"):
        load(whole)


def as_bin_shards(folder: Path, weights: dict) -> None:
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: weights[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_bin_shards_give_the_same_model(whole):
    before = load(whole).model.state_dict()
    as_bin_shards(whole, load_file(whole / "model.safetensors"))
    after = load(whole).model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.write_text, (self.marker, "ran"))


def test_a_pickle_that_runs_code_is_refused(whole, tmp_path):
    weights = load_file(whole / "model.safetensors")
    as_bin_shards(whole, weights)
    marker = tmp_path / "marker"
    with (whole / "pytorch_model-00002-of-00002.bin").open("wb") as file:
        torch.save({"mlp1.0.weight": Bomb(marker)}, file, pickle_module=pickle)
    with pytest.raises(CheckpointError):
        load(whole)
    assert not marker.exists()


def test_the_stored_type_is_kept_unless_another_is_asked_for(whole):
    config = read_json(whole / "config.json")
    assert InternVL2.load(whole, config=config).model.dtype == torch.bfloat16
    full = GOLDEN / "internvl2-qwen2"  # config.json says bfloat16, the weights are float32
    assert InternVL2.load(full, config=read_json(full / "config.json")).model.dtype == torch.float32
    halved = InternVL2.load(full, config=read_json(full / "config.json"), dtype=torch.bfloat16).model
    assert {each.dtype for each in halved.parameters()} == {torch.bfloat16}


def test_a_folder_is_used_as_it_is_and_download_options_are_taken_out(tmp_path):
    options = {"cache_dir": "elsewhere", "attn_implementation": "eager"}
    assert local_folder(tmp_path, options=options) == tmp_path
    assert options == {"attn_implementation": "eager"}


def test_a_hub_id_fetches_data_files_and_the_file_that_states_system_texts(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot_download(name, *, revision, allow_patterns, token):
        asked.append((name, revision, tuple(allow_patterns), token))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert local_folder("some/model", revision="abc", options={"token": "t"}) == tmp_path
    assert [each[:2] + each[3:] for each in asked] == [("some/model", "abc", "t")] * 2
    code = [pattern for each in asked for pattern in each[2] if ".py" in pattern or pattern == "*"]
    assert code == ["conversation.py"]  # parsed as text, never imported
    assert asked[1][2] == ("pytorch_model*.bin",)


def test_neither_folder_nor_hub_id_is_an_error():
    with pytest.raises(UnknownModelError, match="neither a local folder nor"):
        local_folder("not a folder/nor/an id")
