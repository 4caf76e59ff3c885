"""Which weights answer is told by what they are, not by where they came from."""

from __future__ import annotations

import shutil

import pytest
import torch

import vlmprobe
from vlmprobe.runs.fingerprint import BLOCK, _blocks, fingerprint

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def probe(checkpoint):
    return vlmprobe.load(checkpoint("llava"), device="cpu", dtype="float32")


@pytest.fixture
def known(probe):
    return fingerprint(probe)


def changed(known, probe) -> set[str]:
    now = fingerprint(probe)
    return {name for name in now if now[name] != known[name]}


def test_it_is_the_same_after_calls_and_from_another_folder(probe, known, checkpoint, tmp_path):
    probe.generate("What is it?", max_new_tokens=2)
    assert not changed(known, probe)
    shutil.copytree(checkpoint("llava"), tmp_path / "copy")
    assert not changed(known, vlmprobe.load(tmp_path / "copy", device="cpu", dtype="float32"))
    assert not changed(known, vlmprobe.wrap(probe.model, probe.processor, name="mine"))


def test_every_tensor_counts(probe, known):
    for name, tensor in probe.model.named_parameters():
        before = tensor.data.reshape(-1)[-1].clone()
        tensor.data.reshape(-1)[-1] += 1
        assert changed(known, probe) == {"weights"}, name
        tensor.data.reshape(-1)[-1] = before
    assert not changed(known, probe)


def test_large_tensors_are_read_at_sixteen_places():
    large = torch.zeros(1_000_000)
    before = _blocks(large)
    assert len(before) == 16 * BLOCK
    found = 0
    for place in range(0, 1_000_000, 1000):
        large[place : place + 1000] = 1
        found += _blocks(large) != before
        large[place : place + 1000] = 0
    assert found >= 16
    large[-1] = 1
    assert _blocks(large) != before


def test_config_tokenizer_and_template(probe, known):
    probe.model.config.text_config.rms_norm_eps *= 2
    assert changed(known, probe) == {"config"}
    probe.model.config.text_config.rms_norm_eps /= 2
    probe.processor.chat_template += "{# #}"
    assert changed(known, probe) == {"template"}
    probe.processor.chat_template = probe.processor.chat_template.removesuffix("{# #}")
    probe.processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    assert changed(known, probe) == {"template"}
    probe.processor.tokenizer.add_tokens(["quite new"])
    assert changed(known, probe) == {"template", "tokenizer"}


def test_adapters(probe, known):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    tuned = get_peft_model(probe.model, config)
    with_lora = vlmprobe.wrap(tuned, probe.processor)
    assert {"weights", "config"} <= changed(known, with_lora)
    now = fingerprint(with_lora)
    with tuned.disable_adapter():
        assert changed(now, with_lora) == {"config"}
    assert not changed(now, with_lora)


def test_offloaded_weights(probe, known):
    from accelerate import cpu_offload

    cpu_offload(probe.model, execution_device="cpu")
    assert any(tensor.device.type == "meta" for tensor in probe.model.parameters())
    assert not changed(known, probe)
