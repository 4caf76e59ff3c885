"""PEFT adapters as they are at the time of a call: which are active, and whether their numbers can be had here.

Adapters that change layers (LoRA and its like) act wherever the layers run. Others act only in the forward of the PEFT
model: prompt tuning and p-tuning put virtual tokens before the prompt, which is done here too; the rest is refused.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor

from vlmprobe.adapter import Adapter
from vlmprobe.errors import CapabilityError

__all__ = ["active_adapters", "puts_virtual_tokens", "with_virtual_tokens"]

VIRTUAL_TOKENS = ("PROMPT_TUNING", "P_TUNING")


def active_adapters(adapter: Adapter) -> list[str]:
    """Names of the PEFT adapters that act on the model now, in alphabetical order.

    Raises:
        CapabilityError: if one of them acts in a way that a probe cannot follow.
    """
    if "peft" not in sys.modules:
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [each for each in adapter.model.modules() if isinstance(each, BaseTunerLayer)]
    names = {name for each in layers if not each.disable_adapters for name in each.active_adapters}
    names |= {name for each in layers for name in each.merged_adapters if not each.disable_adapters}
    held = (getattr(module, "peft_config", None) for module in (adapter.model, adapter.outer))
    configs: dict[str, Any] = dict(next(filter(None, held), {}))
    if puts_virtual_tokens(adapter):
        if adapter.outer is not adapter.model:
            raise CapabilityError(
                f"PEFT's virtual tokens cannot be followed: {adapter.name} runs {type(adapter.outer).__name__} inside "
                "another module, whose inputs they would change. Disable the adapter with model.disable_adapter()."
            )
        names |= set(adapter.peft.active_adapters)
        configs |= adapter.peft.peft_config
    for name, config in configs.items():
        # An X-LoRA model weighs experts that are active by names of their own.
        if name in names or (names and str(config.peft_type).endswith("XLORA")):
            _require_followed(name, config)
    return sorted(names)


def puts_virtual_tokens(adapter: Adapter) -> bool:
    """Whether the PEFT model around the model puts virtual tokens before the prompt, in embeddings or in the cache."""
    peft = adapter.peft
    if peft is None or not peft.active_peft_config.is_prompt_learning:
        return False
    return bool(peft.has_active_enabled_adapter)


def with_virtual_tokens(adapter: Adapter, model: Any) -> int:
    """Let ``model``, a copy of the adapter's, put the virtual tokens in while it generates; how many there are.

    As in the forward of the PEFT model: their embeddings come first, and positions count them. PEFT's own preparation
    for ``generate`` looks for the cache by a name that newer transformers do not use, and puts them in at every step.
    """
    if not puts_virtual_tokens(adapter):
        return 0
    count, prepare = int(adapter.peft.active_peft_config.num_virtual_tokens), model.prepare_inputs_for_generation

    @functools.wraps(prepare)  # generate reads its signature
    def prepared(input_ids: Tensor, *args: Any, **given: Any) -> dict[str, Any]:
        inputs = dict(prepare(input_ids, *args, **given))
        for name in ("position_ids", "token_type_ids", "mm_token_type_ids"):  # of the prompt alone: PEFT drops them too
            inputs.pop(name, None)
        if (mask := inputs.get("attention_mask")) is not None:  # None where there is no padding
            inputs["attention_mask"] = torch.cat([mask.new_ones(len(mask), count), mask], dim=1)
        if given.get("is_first_iteration") or given.get("use_cache") is False:  # the whole sequence runs
            embeds = model.get_input_embeddings()(input_ids)
            virtual = adapter.peft.get_prompt(batch_size=len(input_ids)).to(embeds)
            inputs |= {"input_ids": None, "inputs_embeds": torch.cat([virtual, embeds], dim=1)}
        return inputs

    model.prepare_inputs_for_generation = prepared
    return count


def _require_followed(name: str, config: Any) -> None:
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    reason = ""
    if config.is_prompt_learning and kind not in VIRTUAL_TOKENS:
        reason = "its learnt prompt is not a row of embeddings before the prompt"
    elif kind == "XLORA":
        reason = "it runs the model twice to weigh its experts"
    elif getattr(config, "alora_invocation_tokens", None):
        reason = "it acts from its invocation tokens on, which PEFT's own forward looks for"
    if reason:
        raise CapabilityError(
            f"The PEFT adapter {name!r} ({'aLoRA' if 'invocation' in reason else kind}) cannot be probed: {reason}. "
            "Merge it, or disable it with model.disable_adapter()."
        )
