"""Says of a checkpoint that no adapter handles what it is, where transformers knows."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from vlmprobe.errors import RemoteCodeError, UnknownModelError
from vlmprobe.model_registry.model_kind import why_no_probe

__all__ = ["unknown"]

HELP = "See docs/extend/add-a-model.md on how to add an adapter."


def unknown(config: Mapping[str, Any], checkpoint: str, known: Mapping[str, str]) -> UnknownModelError:
    """The error for a checkpoint that no adapter handles.

    Args:
        config: its ``config.json``.
        checkpoint: its name.
        known: every ``model_type`` that is supported -> the adapter that handles it, empty for the generic one.
    """
    from transformers import CONFIG_MAPPING

    kind = str(config.get("model_type", "unknown"))
    named = config.get("architectures")
    classes = ", ".join(map(str, named)) if named and isinstance(named, list) else "none named"
    about = f"(model_type {kind!r}, architecture {classes})"
    if what := why_no_probe(config):
        return UnknownModelError(f"{checkpoint} {what.format(about)}")
    told = f"No adapter handles {checkpoint} {about}.{'' if kind in CONFIG_MAPPING else _similar(kind, known)}"
    if config.get("auto_map"):
        return RemoteCodeError(
            f"{told} It asks to run Python code of its own, which vlmprobe never does. Look for a version of it that "
            f"is native to transformers (often ending in '-hf'), or write an adapter. {HELP}"
        )
    return UnknownModelError(f"{told} Newer models may need a newer transformers. {HELP}")


def _similar(kind: str, known: Mapping[str, str]) -> str:
    """Supported model types of a similar name, and the installed adapters that handle them."""
    found = get_close_matches(kind, list(known), n=3, cutoff=0.7)
    adapters = dict.fromkeys(known[each] for each in found if known[each])
    trial = f" To try one: {' or '.join(f'adapter={each!r}' for each in adapters)}." if adapters else ""
    return f" Did you mean {', '.join(found)}?{trial}" if found else ""
