"""A real llama.cpp server in this process (``xllamacpp``), of a tiny checkpoint written as GGUF (``gguf``).

llama.cpp fixes the window of Qwen2.5-VL's vision tower at 112 pixels and scales images of fewer than 8 tokens, so the
checkpoint has that window, and tests use images of 112 x 112 and 112 x 84.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TEXT_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
IMAGE_NAMES = {
    "norm1": "ln1",
    "norm2": "ln2",
    "attn.proj": "attn_out",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "visual.merger.ln_q.weight": "v.post_ln.weight",
    **{f"visual.merger.mlp.{place}.{kind}": f"mm.{place}.{kind}" for place in (0, 2) for kind in ("weight", "bias")},
}
CONTEXT = 2048


@dataclass(frozen=True)
class LlamaCppServer:
    url: str
    folder: Path  # of the checkpoint that was converted


def start(folder: Path) -> tuple[LlamaCppServer, Any]:
    """A server of a fresh checkpoint in ``folder``, and the object that runs it: keep it as long as the server."""
    pytest.importorskip("xllamacpp", reason="needs xllamacpp, which has no wheel here")
    pytest.importorskip("gguf")
    import xllamacpp

    from vlmprobe.testing.tiny import build

    build("qwen2_5_vl", folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["vision_config"]["window_size"] = 112
    (folder / "config.json").write_text(json.dumps(settings))
    model, projector = write(folder)
    options = xllamacpp.CommonParams()
    options.model.path, options.mmproj.path = str(model), str(projector)
    options.n_ctx, options.n_parallel, options.kv_unified = CONTEXT, 1, True
    # Numbers to compare: exact attention and an exact cache.
    options.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
    options.warmup, options.fit_params, options.verbosity = False, False, 0
    running = xllamacpp.Server(options)
    return LlamaCppServer(running.listening_address, folder), running


def write(folder: Path) -> tuple[Path, Path]:
    """The model and its projector as GGUF files, beside the checkpoint that they are made of."""
    from safetensors.numpy import load_file

    tensors = load_file(folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())
    model, projector = folder / "model.gguf", folder / "mmproj.gguf"
    _write_text(model, folder, settings["text_config"], tensors)
    _write_images(projector, folder, settings["vision_config"], tensors)
    return model, projector


def _write_text(path: Path, folder: Path, text: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    from gguf import GGUFWriter, TokenType

    heads = text["num_attention_heads"]
    writer = GGUFWriter(path, "qwen2vl")
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_rope_freq_base(text["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_rope_dimension_sections([*text["rope_parameters"]["mrope_section"], 0])
    described = json.loads((folder / "tokenizer.json").read_text())
    names = {each: name for name, each in described["model"]["vocab"].items()}
    names |= {each["id"]: each["content"] for each in described["added_tokens"]}
    special = {each["id"] for each in described["added_tokens"] if each["special"]}
    count = text["vocab_size"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([names.get(each, f"[PAD{each}]") for each in range(count)])
    writer.add_token_types(
        [
            TokenType.UNUSED if each not in names else TokenType.CONTROL if each in special else TokenType.NORMAL
            for each in range(count)
        ]
    )
    merges = described["model"]["merges"]
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merges])
    writer.add_eos_token_id(text["eos_token_id"])
    writer.add_pad_token_id(text["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template((folder / "chat_template.jinja").read_text())
    for name, tensor in tensors.items():
        if not name.startswith("visual."):
            writer.add_tensor(_named(name, "model.layers.", "blk.", TEXT_NAMES), tensor)
    _close(writer)


def _write_images(path: Path, folder: Path, vision: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    from gguf import GGUFWriter

    images = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    writer = GGUFWriter(path, "clip")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("qwen2.5vl_merger")
    writer.add_vision_use_silu(True)
    writer.add_vision_projection_dim(vision["out_hidden_size"])
    writer.add_vision_image_size(560)
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_block_count(vision["depth"])
    writer.add_vision_head_count(vision["num_heads"])
    writer.add_vision_n_wa_pattern(vision["fullatt_block_indexes"][0] + 1)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_image_mean(images["image_mean"])
    writer.add_vision_image_std(images["image_std"])
    for name, tensor in tensors.items():
        if name == "visual.patch_embed.proj.weight":  # a convolution of two frames: one tensor for each
            writer.add_tensor("v.patch_embd.weight", np.ascontiguousarray(tensor[:, :, 0]))
            writer.add_tensor("v.patch_embd.weight.1", np.ascontiguousarray(tensor[:, :, 1]))
        elif ".attn.qkv." in name:
            for part, share in zip("qkv", np.split(tensor, 3), strict=True):
                outer, _, kind = name.partition(".attn.qkv.")
                writer.add_tensor(f"v.blk.{outer.split('.')[-1]}.attn_{part}.{kind}", np.ascontiguousarray(share))
        elif name.startswith("visual."):
            writer.add_tensor(_named(name, "visual.blocks.", "v.blk.", IMAGE_NAMES), tensor)
    _close(writer)


def _named(name: str, before: str, after: str, inner: dict[str, str]) -> str:
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    layer, _, rest = name.removeprefix(before).partition(".")
    module, _, kind = rest.rpartition(".")
    return f"{after}{layer}.{inner[module]}.{kind}"


def _close(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
