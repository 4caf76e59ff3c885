"""The state that a call could change: hooks, modes, weights, configuration, random state."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["changes", "state_of"]

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")


def state_of(model: nn.Module, tokenizer: Any) -> dict[str, Any]:
    """A snapshot to compare with :func:`changes`."""
    modules = list(model.named_modules())
    random = [torch.get_rng_state().numpy().tobytes()]
    if torch.cuda.is_available():
        random += [each.cpu().numpy().tobytes() for each in torch.cuda.get_rng_state_all()]
    return {
        "hooks": {f"{name}.{held}": _count(getattr(module, held)) for name, module in modules for held in HOOKS},
        "global hooks": [_count(getattr(nn.modules.module, held)) for held in GLOBAL_HOOKS],
        "patched forwards": {name for name, module in modules if "forward" in vars(module)},
        "modules": [type(module).__name__ for _, module in modules],
        "training modes": {name: module.training for name, module in modules},
        "gradients": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "weights": {name: (each.data_ptr(), each._version) for name, each in model.named_parameters()},
        "configuration": model.config.to_dict(),  # type: ignore[operator,union-attr]
        "generation configuration": model.generation_config.to_dict(),  # type: ignore[operator,union-attr]
        "attention implementation": getattr(model.config, "_attn_implementation", None),
        "padding side": getattr(tokenizer, "padding_side", None),
        "truncation side": getattr(tokenizer, "truncation_side", None),
        "tokenizer length": len(tokenizer) if hasattr(tokenizer, "__len__") else None,
        "chat template": getattr(tokenizer, "chat_template", None),
        "random state": random,
        "gradient mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "torch threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "working directory": os.getcwd(),
    }


def _count(hooks: Mapping[int, Any]) -> int:
    """Number of hooks, without those that transformers installs at a model's first run and never removes."""
    return sum(not str(getattr(hook, "__module__", "")).startswith("transformers.") for hook in hooks.values())


def changes(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The differences between two snapshots, in words; empty if there are none."""
    told = []
    for name, old in before.items():
        new = after[name]
        if old == new:
            continue
        if isinstance(old, dict):
            keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
            shown = f"{keys[0]}: {str(old.get(keys[0]))[:60]} became {str(new.get(keys[0]))[:60]}"
            told.append(f"{name} ({shown}{f', and {len(keys) - 1} more' if len(keys) > 1 else ''})")
        elif name in ("random state", "chat template", "modules"):
            told.append(name)
        else:
            told.append(f"{name} ({old} became {new})")
    return "; ".join(told)
