"""The fields of the released InternVL configurations that decide sizes and prompts, and how large the models are.

The sizes of the towers and language models are those of the models named in each model card. The vocabulary of 1.1's
language model, an internal one, follows from the size that its card gives. InternVL2.5-MPO is configured as 2.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["RELEASES", "Release"]


def _tower(**fields: Any) -> dict[str, Any]:
    return {"architectures": ["InternVisionModel"], "image_size": 448, "patch_size": 14, "hidden_act": "gelu", **fields}


VIT_300M = _tower(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    norm_type="layer_norm",
    qkv_bias=True,
    qk_normalization=False,
)
VIT_6B = _tower(
    hidden_size=3200,
    num_hidden_layers=45,
    num_attention_heads=25,
    intermediate_size=12800,
    norm_type="rms_norm",
    qkv_bias=False,
    qk_normalization=True,
)


def _language(architecture: str, size: str, vocabulary: int, **fields: Any) -> dict[str, Any]:
    """``size`` is hidden size / layers / heads / key-value heads / intermediate size."""
    hidden, layers, heads, groups, intermediate = (int(each) for each in size.split("/"))
    return {
        "architectures": [f"{architecture}ForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "intermediate_size": intermediate,
        "tie_word_embeddings": False,
        "attn_implementation": "flash_attention_2",
        **fields,
    }


def _internlm2(size: str) -> dict[str, Any]:
    rope = {"rope_theta": 1000000, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    return _language("InternLM2", size, 92553, bias=False, max_position_embeddings=32768, **rope)


def _qwen2(size: str, vocabulary: int = 151674) -> dict[str, Any]:
    rope = {"rope_theta": 1000000.0, "rope_scaling": {"type": "dynamic", "rope_type": "dynamic", "factor": 2.0}}
    return _language("Qwen2", size, vocabulary, max_position_embeddings=32768, use_sliding_window=False, **rope)


def _qwen3(size: str, architecture: str = "Qwen3", **fields: Any) -> dict[str, Any]:
    rope = {"rope_theta": 1000000, "rope_scaling": None, "max_position_embeddings": 40960}
    return _language(architecture, size, 151936, head_dim=128, attention_bias=False, **rope, **fields)


def _qwen3_moe(size: str, each: int) -> dict[str, Any]:
    experts = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": each, "norm_topk_prob": True}
    return _qwen3(size, "Qwen3Moe", decoder_sparse_step=1, mlp_only_layers=[], **experts)


PHI3 = _language(
    "Phi3",
    "3072/32/32/32/8192",
    32020,
    max_position_embeddings=131072,
    original_max_position_embeddings=4096,
    rope_scaling={"type": "su", "short_factor": [1.1] * 48, "long_factor": [2.2] * 48},
)
YI_34B = _language("Llama", "7168/60/56/8/20480", 64007, rope_theta=5000000.0)
INTERNLM3_8B = _language(
    "InternLM3",
    "4096/48/32/2/10240",
    128523,
    head_dim=128,
    bias=False,
    qkv_bias=False,
    rope_theta=50000000,
    rope_scaling={"factor": 6.0, "rope_type": "dynamic"},
)
GPT_OSS_20B = _language(
    "GptOss",
    "2880/24/64/8/2880",
    201088,
    head_dim=64,
    attention_bias=True,
    num_local_experts=32,
    num_experts_per_tok=4,
    sliding_window=128,
    swiglu_limit=7.0,
    rope_theta=150000,
    rope_scaling={
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
)


@dataclass(frozen=True)
class Release:
    """A released checkpoint."""

    name: str
    billions: str  # parameters, as its model card rounds them
    tower: dict[str, Any]
    language: dict[str, Any]
    template: str
    fields: dict[str, Any]

    def __str__(self) -> str:
        return self.name

    @property
    def config(self) -> dict[str, Any]:
        tiles = {"dynamic_image_size": True, "use_thumbnail": True, "min_dynamic_patch": 1, "max_dynamic_patch": 12}
        return {
            "model_type": "internvl_chat",
            "architectures": ["InternVLChatModel"],
            "template": self.template,
            "vision_config": self.tower,
            "llm_config": self.language,
            "force_image_size": 448,
            "downsample_ratio": 0.5,
            "select_layer": -1,
            "ps_version": "v2",
            **tiles,
            **self.fields,
        }


def _releases() -> list[Release]:
    found = []

    def add(name: str, billions: str, tower: dict[str, Any], language: dict[str, Any], template: str, **fields: Any):
        found.append(Release(name, billions, tower, language, template, fields))

    one_tile = {"dynamic_image_size": False, "use_thumbnail": False, "ps_version": "v1"}
    chinese = _language("Llama", "5120/40/40/40/13824", 42000)
    add(
        "InternVL-Chat-V1-1",
        "19.1",
        VIT_6B | {"num_hidden_layers": 48},
        chinese,
        "internvl_zh",
        **one_tile,
        select_layer=-4,
    )
    add("InternVL-Chat-V1-2", "40", VIT_6B, YI_34B, "Hermes-2", **one_tile)
    add("InternVL-Chat-V1-2-Plus", "40", VIT_6B, YI_34B, "Hermes-2", **one_tile)
    add("InternVL-Chat-V1-5", "25.5", VIT_6B, _internlm2("6144/48/48/8/16384"), "internlm2-chat")
    add("Mini-InternVL-Chat-2B-V1-5", "2.2", VIT_300M, _internlm2("2048/24/16/8/8192"), "internlm2-chat")
    add("Mini-InternVL-Chat-4B-V1-5", "4.15", VIT_300M, PHI3, "phi3-chat")
    add("InternVL2-1B", "0.9", VIT_300M, _qwen2("896/24/14/2/4864", 151655), "Hermes-2")
    add("InternVL2-2B", "2.2", VIT_300M, _internlm2("2048/24/16/8/8192"), "internlm2-chat")
    add("InternVL2-4B", "4.15", VIT_300M, PHI3, "phi3-chat")
    add("InternVL2-8B", "8.1", VIT_300M, _internlm2("4096/32/32/8/14336"), "internlm2-chat")
    add("InternVL2-26B", "25.5", VIT_6B, _internlm2("6144/48/48/8/16384"), "internlm2-chat")
    add("InternVL2-40B", "40.1", VIT_6B, YI_34B, "Hermes-2")
    llama3 = _language("Llama", "8192/80/64/8/28672", 128265, rope_theta=500000.0)
    add("InternVL2-Llama3-76B", "76.3", VIT_6B, llama3, "Hermes-2")
    add("InternVL2_5-1B", "0.94", VIT_300M, _qwen2("896/24/14/2/4864"), "internvl2_5")
    add("InternVL2_5-2B", "2.21", VIT_300M, _internlm2("2048/24/16/8/8192"), "internvl2_5")
    add("InternVL2_5-4B", "3.71", VIT_300M, _qwen2("2048/36/16/2/11008"), "internvl2_5")
    add("InternVL2_5-8B", "8.08", VIT_300M, _internlm2("4096/32/32/8/14336"), "internvl2_5")
    add("InternVL2_5-26B", "25.5", VIT_6B, _internlm2("6144/48/48/8/16384"), "internvl2_5")
    add("InternVL2_5-38B", "38.4", VIT_6B, _qwen2("5120/64/40/8/27648"), "internvl2_5")
    add("InternVL2_5-78B", "78.4", VIT_6B, _qwen2("8192/80/64/8/29568"), "internvl2_5")
    add("InternVL3-1B", "0.94", VIT_300M, _qwen2("896/24/14/2/4864"), "internvl2_5")
    add("InternVL3-2B", "2.09", VIT_300M, _qwen2("1536/28/12/2/8960"), "internvl2_5")
    add("InternVL3-8B", "7.94", VIT_300M, _qwen2("3584/28/28/4/18944"), "internvl2_5")
    add("InternVL3-9B", "9.14", VIT_300M, INTERNLM3_8B, "internvl2_5")
    add("InternVL3-14B", "15.1", VIT_300M, _qwen2("5120/48/40/8/13824"), "internvl2_5")
    add("InternVL3-38B", "38.4", VIT_6B, _qwen2("5120/64/40/8/27648"), "internvl2_5")
    add("InternVL3-78B", "78.4", VIT_6B, _qwen2("8192/80/64/8/29568"), "internvl2_5")
    add("InternVL3_5-1B", "1.06", VIT_300M, _qwen3("1024/28/16/8/3072"), "internvl2_5")
    add("InternVL3_5-2B", "2.35", VIT_300M, _qwen3("2048/28/16/8/6144"), "internvl2_5")
    add("InternVL3_5-4B", "4.73", VIT_300M, _qwen3("2560/36/32/8/9728"), "internvl2_5")
    add("InternVL3_5-8B", "8.53", VIT_300M, _qwen3("4096/36/32/8/12288"), "internvl2_5")
    add("InternVL3_5-14B", "15.12", VIT_300M, _qwen3("5120/40/40/8/17408"), "internvl2_5")
    add("InternVL3_5-38B", "38.4", VIT_6B, _qwen3("5120/64/64/8/25600"), "internvl2_5")
    add("InternVL3_5-GPT-OSS-20B-A4B-Preview", "21.2", VIT_300M, GPT_OSS_20B, "internvl3_5_gpt_oss")
    add("InternVL3_5-30B-A3B", "30.85", VIT_300M, _qwen3_moe("2048/48/32/4/6144", 768), "internvl2_5")
    add("InternVL3_5-241B-A28B", "240.70", VIT_6B, _qwen3_moe("4096/94/64/4/12288", 1536), "internvl2_5")
    return found


RELEASES = _releases()
