"""Reference cases with the weights of their language model stored quantised, and the same with what they stand for.

The packing is written from the formats' descriptions; bitsandbytes quantises with its own functions, and what its bytes
stand for is computed here.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import GOLDEN
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["AWQ_ORDER", "IN_ORDER", "dequantised", "pack", "quantise", "quantised_case", "stored", "unpack"]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight outputs is in which four bits, from the lowest
IN_ORDER = tuple(range(8))
LAYERS = re.compile(r"^(llm|language_model)\.model\.layers\..*\.(\w+_proj|wqkv|wo|w1|w2|w3)\.weight$")
ALSO_BITSANDBYTES = re.compile(r"^vpm\.encoder\..*\.([qkv]_proj|fc\d)\.weight$")  # MiniCPM's releases skip out_proj
BITSANDBYTES = {  # as in MiniCPM-V-2_6-int4, but for the type in which it computes
    "_load_in_4bit": True,
    "_load_in_8bit": False,
    "bnb_4bit_compute_dtype": "float32",
    "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "llm_int8_enable_fp32_cpu_offload": False,
    "llm_int8_has_fp16_weight": False,
    "llm_int8_skip_modules": ["out_proj", "kv_proj", "lm_head"],
    "llm_int8_threshold": 6.0,
    "load_in_4bit": True,
    "load_in_8bit": False,
    "quant_method": "bitsandbytes",
}


def told(method: str, group: int) -> dict[str, Any]:
    """``quantization_config`` as lmdeploy, AutoGPTQ and bitsandbytes write it."""
    return {
        "awq": {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": group, "zero_point": True},
        "gptq": {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False, "sym": False},
        "bitsandbytes": BITSANDBYTES,
    }[method]


def pack(values: Tensor, order: Sequence[int]) -> Tensor:
    """Integers below 16 [..., 8 n] as [..., n] int32."""
    eights = values.long().unflatten(-1, (-1, 8))
    packed = sum((eights[..., place] << 4 * bits for bits, place in enumerate(order)), torch.tensor(0))
    return torch.where(packed >= 2**31, packed - 2**32, packed).int()


def unpack(packed: Tensor, order: Sequence[int]) -> Tensor:
    """The reverse of :func:`pack`."""
    eights = torch.empty(*packed.shape, 8, dtype=torch.long)
    for bits, place in enumerate(order):
        eights[..., place] = packed.long() >> 4 * bits & 15
    return eights.flatten(-2)


def quantise(weight: Tensor, group: int, *, least: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Integers [out, in], zero points [out, in / group] and scales of a weight [out, in], to four bits.

    ``least`` is that of the zero points: GPTQ stores one less, and has no way to store 0.
    """
    grouped = weight.unflatten(1, (-1, group))
    low, high = grouped.amin(-1), grouped.amax(-1)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales).round().clamp(least, 15)
    return (grouped / scales[..., None] + zeros[..., None]).round().clamp(0, 15).flatten(1), zeros, scales


def stored(layer: str, weight: Tensor, method: str, group: int) -> tuple[dict[str, Tensor], Tensor]:
    """What a checkpoint stores of a layer, by name, and the weight that it stands for."""
    if method == "bitsandbytes":
        return _bitsandbytes(layer, weight)
    values, zeros, scales = quantise(weight, group, least=int(method == "gptq"))
    if method == "awq":
        held = {"qweight": pack(values.T, AWQ_ORDER), "qzeros": pack(zeros.T, AWQ_ORDER)}
    else:
        inputs = torch.arange(weight.shape[1], dtype=torch.int32) // group
        # This format stores one less than the zero point.
        held = {
            "qweight": pack(values, IN_ORDER).T,
            "qzeros": pack((zeros - 1).T.long() & 15, IN_ORDER),
            "g_idx": inputs,
        }
    held["scales"] = scales.T
    return {f"{layer}.{kind}": each.contiguous() for kind, each in held.items()}, dequantised(values, zeros, scales)


def dequantised(values: Tensor, zeros: Tensor, scales: Tensor) -> Tensor:
    """[out, in] of integers, zero points and scales of each group."""
    group = values.shape[1] // zeros.shape[1]
    return ((values.unflatten(1, (-1, group)) - zeros[..., None]) * scales.float()[..., None]).flatten(1)


def _bitsandbytes(layer: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    from bitsandbytes.functional import quantize_4bit

    data, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    held = {f"{layer}.weight": data}
    held |= {f"{layer}.weight.{name}": each for name, each in state.as_dict(packed=True).items()}
    codes = torch.stack([data >> 4, data & 15], dim=-1).flatten().long()
    outer = state.state2.absmax.repeat_interleave(256)[: len(state.absmax)]
    scales = state.state2.code[state.absmax.long()] * outer + state.offset
    return held, (state.code[codes].view(-1, 64) * scales[:, None]).view(weight.shape)


def quantised_case(folder: Path, case: str, method: str, *, group: int = 16) -> tuple[Path, Path]:
    """Write a reference case twice: with quantised weights, and with what they stand for.

    Args:
        folder: receives the two folders.
        case: a reference case whose layers have sizes that are multiples of ``group``.
        method: "awq", "gptq" or "bitsandbytes".
        group: inputs that share a scale.
    """
    weights = {
        name: each for file in (GOLDEN / case).glob("model*.safetensors") for name, each in load_file(file).items()
    }
    packed: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if LAYERS.match(name) or (method == "bitsandbytes" and ALSO_BITSANDBYTES.match(name)):
            held, plain[name] = stored(name.removesuffix(".weight"), weight.float(), method, group)
            packed |= held
        else:
            packed[name] = plain[name] = weight
    made = []
    for kind, held in (("quantised", packed), ("plain", plain)):
        target = folder / kind
        shutil.copytree(GOLDEN / case, target, ignore=shutil.ignore_patterns("model*.safetensors*", "golden.*"))
        save_file(held, target / "model.safetensors")
        made.append(target)
    config = json.loads((made[0] / "config.json").read_text(encoding="utf-8"))
    # lmdeploy quantises the language model inside InternVL, and writes so into its part of the file.
    config.get("llm_config", config)["quantization_config"] = told(method, group)
    (made[0] / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return made[0], made[1]
