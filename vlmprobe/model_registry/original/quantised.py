"""Weights that are stored quantised: what config.json says of them, and the libraries that read them for transformers.

Which layers are quantised is read from the names of the stored weights, not from the lists in config.json: those name
modules of the checkpoint's own code, and some releases have no list.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vlmprobe.errors import CapabilityError, CheckpointError, near

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig
    from transformers.core_model_loading import WeightConverter, WeightRenaming

__all__ = ["check_savable", "prepare", "settle", "stored_quantisation"]

KEY = "quantization_config"
UNQUANTISED = f"Or load the unquantised checkpoint, and pass {KEY}= to quantise it."


@dataclass(frozen=True)
class Method:
    """A way to quantise, and how transformers reads it.

    Attributes:
        title: its name.
        libraries: that transformers needs for it, as they are imported, and what to install.
        stored: regular expression of what a quantised layer stores besides a weight of its name, or instead of it.
        splits: whether a layer that packs several others can be split as it is stored.
    """

    title: str
    libraries: Mapping[str, str]
    stored: str
    splits: bool = True


GPTQMODEL = {"gptqmodel": "gptqmodel>=7"}
METHODS = {
    "awq": Method("AWQ", GPTQMODEL, r"\.qweight$"),
    "bitsandbytes": Method(
        "bitsandbytes",
        {"bitsandbytes": "bitsandbytes>=0.49"},
        r"(\.weight\.quant_state\.\w+|\.SCB)$",
        splits=False,
    ),
    "gptq": Method("GPTQ", GPTQMODEL | {"optimum": "optimum>=2"}, r"\.qweight$"),
}
KERNELS = {"awq": "torch_awq", "gptq": "torch"}  # gptqmodel's plain ones


def stored_quantisation(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an original ``config.json`` says of quantised weights, itself or in the part of a component, or None."""
    for part in (config, *config.values()):
        if isinstance(part, Mapping) and part.get(KEY):
            return dict(part[KEY])
    return None


def check_savable(told: Any) -> None:
    """Refuse to save weights that the library rearranged when it loaded them.

    Raises:
        CapabilityError: for AWQ and GPTQ.
    """
    kind = (told or {}).get("quant_method")
    method = METHODS.get(str(getattr(kind, "value", kind)))  # an enumeration once transformers has read it
    if method is not None and GPTQMODEL.keys() <= method.libraries.keys():
        raise CapabilityError(
            f"The weights are quantised by {method.title}, and gptqmodel rearranges them for its kernels when it loads "
            "them: saved, they would mean something else. They cannot have changed, so copy the checkpoint's files."
        )


def prepare(
    translated: PreTrainedConfig,
    told: Mapping[str, Any],
    names: Iterable[str],
    conversions: Sequence[WeightRenaming | WeightConverter],
    checkpoint: str,
    *,
    on_cpu: bool,
) -> None:
    """Let transformers read the quantised weights of a checkpoint into the model of ``translated``.

    Args:
        translated: receives the quantisation, with the names of this model's modules.
        told: from :func:`stored_quantisation`.
        names: of all stored weights.
        conversions: what they become in the model.
        checkpoint: what errors call it.
        on_cpu: the model will run on a CPU, in gptqmodel's plain kernel: its fast ones are compiled for minutes, round
            to bfloat16, and do not take all sizes.

    Raises:
        CheckpointError: for another method, if no weight is quantised, for quantised layers that cannot be converted,
            and if the library that reads them is not installed.
    """
    kind = "bitsandbytes" if told.get("load_in_4bit") or told.get("load_in_8bit") else str(told.get("quant_method"))
    method = METHODS.get(kind)
    if method is None:
        raise CheckpointError(
            f"{checkpoint} has weights quantised by {kind}, which cannot be read from the original format; supported "
            f"are {', '.join(each.title for each in METHODS.values())}.{near(kind, METHODS)} {UNQUANTISED}"
        )
    quantised, plain = _layers(names, conversions, method)
    if not quantised:
        raise CheckpointError(
            f"config.json describes weights quantised by {method.title}, but no weight of {checkpoint} is quantised. "
            f"Take both from one checkpoint, or remove {KEY} from config.json."
        )
    if missing := [package for module, package in method.libraries.items() if find_spec(module) is None]:
        raise CheckpointError(
            f"{checkpoint} has weights quantised by {method.title}. transformers reads them through "
            f"{' and '.join(method.libraries)}; install with: pip install {' '.join(map(repr, missing))}. {UNQUANTISED}"
        )
    kernel = {"backend": KERNELS[kind]} if on_cpu and kind in KERNELS else {}
    translated.quantization_config = {**told, **_which(kind, quantised, plain), **kernel}


def _layers(
    names: Iterable[str], conversions: Sequence[WeightRenaming | WeightConverter], method: Method
) -> tuple[set[str], set[str]]:
    """Modules of the model whose weights are stored quantised, and those whose weights are stored as they are."""
    from transformers import WeightConverter
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    # Copies: a conversion remembers that it was used, and saving any model of the class would apply it then.
    conversions = copy.deepcopy(list(conversions))
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    targets = {source: each.target_patterns for each in converters for source in each.source_patterns}
    quantised: set[str] = set()
    others: set[str] = set()
    for name in names:
        layer, found = re.subn(method.stored, "", name)
        if not found and not name.endswith(".weight"):
            continue
        renamed, source = rename_source_key(f"{layer.removesuffix('.weight')}.weight", renamings, converters)
        first, *more = targets[source] if source is not None else [""]
        if found and source is not None and not (more and method.splits):
            raise CheckpointError(
                f"The checkpoint stores {layer} quantised by {method.title}. Here it is split into several layers, or "
                f"merged with others, which its quantised weights cannot be. {UNQUANTISED}"
            )
        modules = {renamed, *(renamed.replace(first, each) for each in more)}
        (quantised if found else others).update(each.removesuffix(".weight") for each in modules)
    return quantised, others - quantised


def _which(kind: str, quantised: set[str], plain: set[str]) -> dict[str, Any]:
    """The fields of transformers that say which layers are quantised."""
    if kind == "awq":
        return {"modules_to_not_convert": sorted(plain)}
    if kind == "gptq":
        layer = re.compile(r"^(.*\.layers)\.\d+\.(.+)$")
        places = [found.groups() for name in sorted(quantised) if (found := layer.match(name))]
        return {
            "block_name_to_quantize": places[0][0],
            "modules_in_block_to_quantize": [sorted({inside for _, inside in places})],
        }
    return {"llm_int8_skip_modules": sorted(plain)}


def settle(model: Any) -> None:
    """Let a loaded quantised model compute on a CPU what it does on a GPU, and let it be saved.

    bitsandbytes has two faults on a CPU. Its fast kernel for AVX512-BF16 rounds scales to bfloat16 and raises
    AssertionError for layers whose sizes are no multiples of 32 and of the block size; its plain one is taken. And it
    begins a new block of weights with each row, so that layers whose inputs are no multiple of the block size (4304 in
    SigLIP) get wrong weights without an error; they are read as they are stored. transformers cannot reverse how it
    read the weights, and need not: bitsandbytes gives them as they are stored.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            state, layer = getattr(module.weight, "quant_state", None), module.__class__
            if state is not None and state.shape[-1] % state.blocksize:
                module.__class__ = _across_rows(layer)
    if getattr(model, "is_quantized", False):
        model._weight_conversions = [each for each in model._weight_conversions or () if _reverses(each)]


@cache
def _across_rows(layer: Any) -> Any:
    """A layer of bitsandbytes that on a CPU takes its weights as one row: blocks go on from row to row."""
    from bitsandbytes.functional import dequantize_4bit
    from torch.nn.functional import linear

    class Linear4bitAcrossRows(layer):
        def forward(self, inputs: Tensor) -> Tensor:
            if inputs.device.type != "cpu":
                return super().forward(inputs)
            state = copy.copy(self.weight.quant_state)
            shape, state.shape = state.shape, (1, state.shape.numel())
            dtype = self.compute_dtype or inputs.dtype
            weight = dequantize_4bit(self.weight.data, state).view(shape).to(dtype)
            bias = None if self.bias is None else self.bias.to(dtype)
            return linear(inputs.to(dtype), weight, bias).to(inputs.dtype)

    return Linear4bitAcrossRows


def _reverses(conversion: WeightRenaming | WeightConverter) -> bool:
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True
