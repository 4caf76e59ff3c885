"""Every release of InternVL: its true configuration, its prompts, and tiny checkpoints around its language model.

The judge of a language model is the stock class of transformers; of prompts, the conversation.py of OpenGVLab/InternVL
at the commits of the releases: 88a146c (1.2), a08ba33 (1.5), f4e5aee (Mini 1.5), 0dc48a2 (2.0), 2410d1d (later ones).
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from common import GOLDEN, picture
from internvl_checkpoints import harmony_tokenizer, write
from internvl_configs import RELEASES
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import vlmprobe
from vlmprobe.errors import CheckpointError, VlmprobeWarning
from vlmprobe.inputs.messages import Conversation
from vlmprobe.model_registry import registry
from vlmprobe.model_registry.original.internvl2 import InternVL2
from vlmprobe.model_registry.original.internvl2.configuration import translate
from vlmprobe.model_registry.original.internvl2.modeling import InternVL2ForConditionalGeneration
from vlmprobe.model_registry.original.internvl2.prompt import SYSTEM_2, SYSTEM_2_5, TEMPLATES, write_prompt
from vlmprobe.model_registry.original.internvl2.releases import require_supported, system_text
from vlmprobe.model_registry.original.internvl2.shipped_template import MOST_BYTES, shipped_system_text
from vlmprobe.testing import check_adapter

INTERNLM = "You are an AI assistant whose name is InternLM (书生·浦语)."
SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
}
WIDE_HEADS = SIZES | {"vocab_size": 368, "head_dim": 16}  # 4 heads of 16 for a hidden size of 48
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 1e6}


# -- true configurations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES, ids=str)
def test_the_model_of_a_released_configuration_is_as_large_as_its_card_says(release):
    with torch.device("meta"):
        model = InternVL2ForConditionalGeneration(translate(release.config))
    count = sum(each.numel() for each in model.parameters()) / 1e9
    decimals = len(release.billions.partition(".")[2])
    assert f"{count:.{decimals}f}" == release.billions
    assert model.config.image_seq_length == 256


# -- language models of 3 and 3.5 --------------------------------------------------------------------------


def qwen3(folder: Path, **fields: Any) -> tuple[Path, Any]:
    stock = Qwen3ForCausalLM(Qwen3Config(**WIDE_HEADS, rope_parameters=DEFAULT_ROPE, **fields))
    told = {**WIDE_HEADS, **fields, "architectures": ["Qwen3ForCausalLM"], "rope_theta": 1e6}
    return write(folder, "internvl3-5-qwen3", stock, llm_config=told), stock


def qwen3_moe(folder: Path) -> tuple[Path, Any]:
    experts = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "decoder_sparse_step": 2,  # every second layer has experts
        "mlp_only_layers": [],
    }
    stock = Qwen3MoeForCausalLM(Qwen3MoeConfig(**WIDE_HEADS, **experts, rope_parameters=DEFAULT_ROPE))
    told = {**WIDE_HEADS, **experts, "architectures": ["Qwen3MoeForCausalLM"], "rope_theta": 1e6}
    return write(folder, "internvl3-5-qwen3", stock, llm_config=told), stock


def gpt_oss(folder: Path) -> tuple[Path, Any]:
    tokenizer = harmony_tokenizer()
    rope = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
    rope["original_max_position_embeddings"] = 4096
    sizes = WIDE_HEADS | {
        "vocab_size": len(tokenizer),
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 16,  # shorter than any prompt
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "swiglu_limit": 5.0,
        "attention_bias": True,
    }
    stock = GptOssForCausalLM(GptOssConfig(**sizes, rope_parameters={**rope, "rope_theta": 150000.0}))
    told = {**sizes, "architectures": ["GptOssForCausalLM"], "rope_theta": 150000, "rope_scaling": rope}
    made = write(
        folder, "internvl3-5-qwen3", stock, llm_config=told, tokenizer=tokenizer, template="internvl3_5_gpt_oss"
    )
    return made, stock


def internlm3(folder: Path, *, bias: bool = False, qkv_bias: bool = False) -> tuple[Path, Any]:
    vocabulary = json.loads((GOLDEN / "internvl2-internlm2" / "config.json").read_text())["llm_config"]["vocab_size"]
    sizes = SIZES | {"hidden_size": 64, "vocab_size": vocabulary, "head_dim": 24}
    rope = {"rope_type": "dynamic", "factor": 6.0}
    stock = LlamaForCausalLM(
        LlamaConfig(
            **sizes, attention_bias=bias or qkv_bias, mlp_bias=bias, rope_parameters={**rope, "rope_theta": 1e6}
        )
    )
    for layer in stock.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            if not (bias if name == "o_proj" else qkv_bias):
                getattr(layer.self_attn, name).register_parameter("bias", None)
    told = {**sizes, "bias": bias, "qkv_bias": qkv_bias, "rope_theta": 1e6, "rope_scaling": rope}
    made = write(
        folder,
        "internvl2-internlm2",
        stock,
        llm_config=told | {"architectures": ["InternLM3ForCausalLM"]},
        tokenizer_config={"tokenizer_class": "InternLM3Tokenizer"},
        template="internvl2_5",
    )
    return made, stock


LANGUAGE_MODELS = {"qwen3": qwen3, "qwen3_moe": qwen3_moe, "gpt_oss": gpt_oss, "internlm3": internlm3}


@pytest.fixture(scope="module", params=LANGUAGE_MODELS)
def made(request, tmp_path_factory) -> tuple[vlmprobe.Probe, Any]:
    """A probe of a tiny checkpoint, and the stock language model whose weights are in it."""
    folder, stock = LANGUAGE_MODELS[request.param](tmp_path_factory.mktemp("made") / request.param)
    with warnings.catch_warnings():
        warnings.simplefilter("error", VlmprobeWarning)  # of the quick checks at load
        return vlmprobe.load(folder, device="cpu", dtype="float32"), stock


def text_logits(probe: vlmprobe.Probe, stock: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a prompt without an image: from the probe's model, and from the stock language model."""
    model = probe.engine.adapter.model
    inputs = probe.engine.adapter.encode([Conversation.build("Name three colours of the rainbow.")]).inputs
    with torch.no_grad():
        return model(**inputs).logits, stock(input_ids=inputs["input_ids"]).logits


def test_text_logits_are_those_of_the_stock_language_model(made):
    ours, theirs = text_logits(*made)
    assert theirs.std() > 0.5
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    "made",
    [
        pytest.param("qwen3", marks=pytest.mark.long),  # a dense decoder as in the reference cases
        "qwen3_moe",
        pytest.param("gpt_oss", marks=pytest.mark.long),  # a mixture of experts too
        pytest.param("internlm3", marks=pytest.mark.long),  # Llama, like InternLM2
    ],
    indirect=True,
)
def test_it_conforms(made):
    report = check_adapter(made[0])
    assert report.passed, str(report)
    assert {f"C{number}" for number in range(1, 16)} <= {result.id for result in report.results}


def test_the_image_path_of_3_5_is_that_of_2_5(tmp_path):
    newer = vlmprobe.load(qwen3(tmp_path / "newer")[0], device="cpu", dtype="float32")
    stock = Qwen2ForCausalLM(Qwen2Config(**SIZES, vocab_size=368))
    told = SIZES | {"vocab_size": 368, "architectures": ["Qwen2ForCausalLM"]}
    folder = write(tmp_path / "older", "internvl3-5-qwen3", stock, llm_config=told)
    older = vlmprobe.load(folder, device="cpu", dtype="float32")
    chat = [Conversation.build("What is this?", picture(width=150, height=60))]
    inputs = [probe.engine.adapter.encode(chat).inputs for probe in (newer, older)]
    assert torch.equal(inputs[0]["pixel_values"], inputs[1]["pixel_values"])
    assert inputs[0]["pixel_values"].shape[0] > 1
    assert torch.equal(inputs[0]["input_ids"], inputs[1]["input_ids"])
    with torch.no_grad():
        features = [
            probe.engine.adapter.model.model.image_features(each["pixel_values"])
            for probe, each in zip((newer, older), inputs, strict=True)
        ]
    assert torch.equal(*features)


def test_tied_embeddings_are_declared_in_llm_config(tmp_path):
    folder, stock = qwen3(tmp_path / "tied", tie_word_embeddings=True)
    probe = vlmprobe.load(folder, device="cpu", dtype="float32")
    model = probe.engine.adapter.model
    assert model.lm_head.weight is model.get_input_embeddings().weight
    ours, theirs = text_logits(probe, stock)
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(("bias", "qkv_bias"), [(True, True), (False, True), (True, False)])
def test_biases_of_internlm3(tmp_path, bias, qkv_bias):
    folder, stock = internlm3(tmp_path / "biased", bias=bias, qkv_bias=qkv_bias)
    probe = vlmprobe.load(folder, device="cpu", dtype="float32")
    ours, theirs = text_logits(probe, stock)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_internlm3_tokenizes_by_the_rule_of_internlm2(tmp_path):
    told = json.loads((GOLDEN / "internvl2-internlm2" / "golden.json").read_text())["scenarios"]
    adapter = vlmprobe.load(internlm3(tmp_path / "made")[0], device="cpu", dtype="float32").engine.adapter
    for scenario in told.values():
        assert adapter.tokenize(scenario["prompt"]) == scenario["input_ids"]


# -- prompts ---------------------------------------------------------------------------------------------


TURNS = [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]
CONVERSATION_PY = """\
import dataclasses

raise SystemExit("conversation.py ran")

register_conv_template(
    Conversation(
        name='Hermes-2',
        system_template='<|im_start|>system\\n{system_message}',
        # note: system_message='Not this.',
        system_message='Answer the questions.',
        roles=('<|im_start|>user\\n', '<|im_start|>assistant\\n'),
        sep='<|im_end|>',
    )
)
register_conv_template(Conversation('internlm2-chat', '<|im_start|>system\\n{system_message}', 'Positional \\d.'))
register_conv_template(Conversation(name='internvl_zh', system_template='', sep='</s>'))
"""


def prompt_of(config: dict[str, Any], folder: Path | None = None) -> str:
    conversation = Conversation.build([{"role": role, "content": text} for role, text in TURNS])
    return write_prompt(conversation, TEMPLATES[config["template"]], system_text(config, folder), [])


def test_the_prompt_of_gpt_oss():
    assert prompt_of({"template": "internvl3_5_gpt_oss"}) == (
        "<|start|>system<|message|>You are InternVL, a large language model trained by Shanghai AI Laboratory.\n"
        "Knowledge cutoff: 2024-06\nCurrent date: 2025-08-06\n\nReasoning: low\n\n"
        "# Valid channels: final. Channel must be included for every message.<|end|>"
        "<|start|>user<|message|>Hi<|end|><|start|>assistantHello<|end|><|start|>user<|message|>Bye<|end|>"
        "<|start|>assistant"
    )
    assert TEMPLATES["internvl3_5_gpt_oss"].end_token == "<|return|>"


@pytest.mark.parametrize(
    ("name", "template", "expected"),
    [
        ("OpenGVLab/InternVL-Chat-V1-2", "Hermes-2", "Answer the questions."),
        ("OpenGVLab/InternVL-Chat-V1-2-Plus", "Hermes-2", "Answer the questions."),
        ("OpenGVLab/InternVL-Chat-Chinese-V1-2", "Hermes-2", "Answer the questions."),
        ("OpenGVLab/InternVL-Chat-V1-5", "internlm2-chat", INTERNLM),
        ("OpenGVLab/InternVL-Chat-V1-5-Int8", "internlm2-chat", INTERNLM),
        ("OpenGVLab/Mini-InternVL-Chat-2B-V1-5", "internlm2-chat", INTERNLM),
        ("OpenGVLab/Mini-InternVL-Chat-4B-V1-5", "phi3-chat", "You are an AI assistant whose name is Phi-3."),
        ("./work_dirs/internvl_chat_v1_5_internlm2_20b_dynamic_res", "internlm2-chat", INTERNLM),
        ("OpenGVLab/InternVL-Chat-V1-1", "internvl_zh", ""),
        ("OpenGVLab/InternVL2-1B", "Hermes-2", SYSTEM_2),
        ("OpenGVLab/InternVL2-Llama3-76B", "Hermes-2", SYSTEM_2),
        ("OpenGVLab/InternVL2-4B", "phi3-chat", SYSTEM_2),
        ("OpenGVLab/InternVL2-26B", "internlm2-chat", SYSTEM_2),
        ("OpenGVLab/InternVL2_5-1B-MPO", "internvl2_5", SYSTEM_2_5),
        ("OpenGVLab/InternVL3_5-14B", "internvl2_5", SYSTEM_2_5),
    ],
)
def test_the_name_of_a_release_decides_its_system_text(tmp_path, name, template, expected):
    config = {"template": template}
    snapshot = tmp_path / f"models--{name.replace('/', '--')}" / "snapshots" / "0123abc"
    local = tmp_path / name.rpartition("/")[2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert system_text({**config, "_name_or_path": name}, tmp_path) == expected
        assert system_text(config, local) == expected
        if not name.startswith("."):
            assert system_text(config, snapshot) == expected


def test_the_prompts_of_1_x():
    named = {"_name_or_path": "OpenGVLab/InternVL-Chat-V1-2"}
    assert prompt_of({"template": "Hermes-2", **named}) == (
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\nHi<|im_end|>"
        "<|im_start|>assistant\nHello<|im_end|><|im_start|>user\nBye<|im_end|><|im_start|>assistant\n"
    )
    named = {"_name_or_path": "OpenGVLab/Mini-InternVL-Chat-4B-V1-5"}
    assert prompt_of({"template": "phi3-chat", **named}) == (
        "<|system|>\nYou are an AI assistant whose name is Phi-3.<|end|><|user|>\nHi<|end|><|assistant|>\nHello<|end|>"
        "<|user|>\nBye<|end|><|assistant|>\n"
    )
    assert prompt_of({"template": "internvl_zh"}) == " <human>: Hi <bot>: Hello</s><human>: Bye <bot>:"


def test_conversation_py_decides_before_names_and_never_runs(tmp_path):
    (tmp_path / "conversation.py").write_text(CONVERSATION_PY)
    named = {"_name_or_path": "OpenGVLab/InternVL2-8B"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert system_text({"template": "Hermes-2", **named}, tmp_path) == "Answer the questions."
        assert system_text({"template": "internlm2-chat", **named}, tmp_path) == "Positional \\d."
        assert system_text({"template": "internvl_zh"}, tmp_path) == ""
        # a template that the file does not have
        assert system_text({"template": "phi3-chat", **named}, tmp_path) == SYSTEM_2
        # config.json decides before the file, an empty text included; null is no text
        told = {"template": "Hermes-2", "system_message": "Be kind."}
        assert system_text(told, tmp_path) == "Be kind."
        assert system_text({**told, "system_message": ""}, tmp_path) == ""
        assert system_text({**told, "system_message": None}, tmp_path) == "Answer the questions."


def test_the_system_text_of_a_loaded_checkpoint_is_that_of_its_conversation_py(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "internvl2-qwen2", tmp_path / "internvl2-qwen2"))
    (folder / "conversation.py").write_text(CONVERSATION_PY)
    adapter = vlmprobe.load(folder, device="cpu", dtype="float32", check=False).engine.adapter
    text = adapter.encode([Conversation.build("Hi")]).prompts[0].text
    assert text.startswith("<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\nHi")


@pytest.mark.parametrize("template", ["Hermes-2", "internlm2-chat", "phi3-chat"])
def test_without_any_sign_the_text_of_2_0_is_used_with_a_warning(tmp_path, template):
    with pytest.warns(UserWarning, match=r"InternVL 1\.x or 2\.0.*That of 2\.0 is used"):
        assert system_text({"template": template, "_name_or_path": "someone/fine-tuned"}, tmp_path) == SYSTEM_2


def test_a_system_message_that_is_no_text_is_an_error():
    with pytest.raises(CheckpointError, match="system_message 3, which is not a text"):
        system_text({"template": "Hermes-2", "system_message": 3}, None)


HOSTILE = {
    "not Python": b"register_conv_template(Conversation(name='Hermes-2'",
    "not text": b"\xff\xfe\x00",
    "a null byte": b"a = 1\x00",
    "deep brackets": b"(" * 100_000,
    "deep signs": b"a = " + b"-" * 200_000 + b"1",
    "deep attributes": b"a" + b".b" * 100_000,
    "deep calls": b"a" + b"()" * 100_000,
    "deep sum": b"a = 1" + b" + 1" * 60_000,
    "another encoding": b"# -*- coding: rot13 -*-\nertvfgre_pbai_grzcyngr(",
    "too long": b"#" * (MOST_BYTES + 1),
    "a computed text": b"register_conv_template(Conversation(name='Hermes-2', system_message=open('text').read()))",
    "a formatted text": b"register_conv_template(Conversation(name='Hermes-2', system_message=f'{1}'))",
    "bytes": b"register_conv_template(Conversation(name='Hermes-2', system_message=b'text'))",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_conversation_py_is_told_and_ignored(tmp_path, kind):
    (tmp_path / "conversation.py").write_bytes(HOSTILE[kind])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        text = system_text({"template": "Hermes-2", "_name_or_path": "OpenGVLab/InternVL-Chat-V1-2"}, tmp_path)
    assert text == "Answer the questions."
    parses = kind.startswith("deep") and not told  # the parser's limits differ between versions of Python
    assert parses or "conversation.py" in str(told[0].message)


@pytest.mark.parametrize(
    "source",
    [
        "def unused():\n    register_conv_template(Conversation(name='Hermes-2', system_message='no'))\n",
        "if False:\n    register_conv_template(Conversation(name='Hermes-2', system_message='no'))\n",
        "register_conv_template(Conversation(name=NAME, system_message='no'))\n",
        "Conversation(name='Hermes-2', system_message='no')\n",
        "register_conv_template()\nregister_conv_template(template)\n",
        "",
    ],
)
def test_only_what_is_registered_at_module_level_counts(tmp_path, source):
    (tmp_path / "conversation.py").write_text(source)
    assert shipped_system_text(tmp_path, "Hermes-2") is None


# -- releases that are refused ---------------------------------------------------------------------------


FIRST = {
    "model_type": "llava",
    "architectures": ["LlavaLlamaForCausalLM"],
    "mm_vision_tower": "OpenGVLab/InternViT-6B-224px",
    "mm_hidden_size": 3200,
    "mm_projector_type": "mlp2x_gelu",
    "hidden_size": 4096,
}


def test_internvl_1_0_is_refused_by_its_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FIRST))
    with pytest.raises(CheckpointError, match=r"InternVL-Chat 1\.0.*LLaVA.*not supported"):
        vlmprobe.load(tmp_path)


def test_llava_itself_is_not_taken_for_internvl_1_0():
    for config in (
        {"model_type": "llava", "vision_config": {}, "text_config": {}},
        FIRST | {"mm_vision_tower": "openai/clip-vit-large-patch14"},
    ):
        assert registry.find(config) is not InternVL2


def test_mono_internvl_is_refused_by_its_name(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "internvl2-internlm2", tmp_path / "mono"))
    config = json.loads((folder / "config.json").read_text())
    config["llm_config"]["architectures"] = ["InternLM2VEForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"Mono-InternVL.*visual expert"):
        vlmprobe.load(folder)


def test_flash_is_refused_by_its_name():
    with pytest.raises(CheckpointError, match=r"InternVL3\.5-Flash"):
        require_supported({"model_type": "internvl_chat", "flash_relative_threshold": 0.5})
