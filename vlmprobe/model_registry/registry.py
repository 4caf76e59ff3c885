"""Find the adapter for a checkpoint. Adapters are entry points of ``vlmprobe.adapters``, built-in ones included."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from vlmprobe.adapter import Adapter
from vlmprobe.errors import (
    AdapterError,
    CheckpointError,
    UnknownModelError,
    near,
)
from vlmprobe.model_registry.unknown import missing, refused, unknown
from vlmprobe.plugins import is_ours, load

__all__ = [
    "adapter_names",
    "adapters",
    "clear",
    "config_and_commit",
    "find",
    "is_native",
    "known_model_types",
    "read_config",
    "require_adapter",
]

GROUP = "vlmprobe.adapters"
OLD_ID = re.compile(r"\w[\w.-]{0,95}", re.ASCII)  # of the hub, such as gpt2


@lru_cache(maxsize=1)
def adapters() -> dict[str, type[Adapter]]:
    """Every installed adapter by name. A plug-in that cannot be imported is skipped with a warning that names it."""
    return load(entry_points(group=GROUP), Adapter, "adapter")


def adapter_names() -> list[str]:
    """Names of the installed adapters, without importing any."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def clear() -> None:
    """Clear the cache, so that the next call searches again (after an installation, and in tests)."""
    adapters.cache_clear()


def find(config: Mapping[str, Any], *, name: str | None = None, checkpoint: str = "the checkpoint") -> type[Adapter]:
    """The adapter for a checkpoint with this configuration.

    Order: the adapter requested by name; built-in specific ones; third-party ones; the generic one for models
    native to transformers.

    Raises:
        UnknownModelError: if nothing handles it; suggests similar names.
        RemoteCodeError: if nothing handles it and the checkpoint would run code of its own.
        AdapterError: if several adapters of the same rank claim it.
    """
    if name is not None:
        return require_adapter(name)
    known = adapters()
    claims = [adapter for adapter in known.values() if not adapter.generic and _handles(adapter, config)]
    ours = [adapter for adapter in claims if _is_built_in(adapter)]
    theirs = [adapter for adapter in claims if not _is_built_in(adapter)]
    if ours and theirs:
        warnings.warn(
            f"{checkpoint} is also claimed by {', '.join(repr(adapter.name) for adapter in theirs)}; the built-in "
            f"{ours[0].name!r} is used. Choose with adapter={theirs[0].name!r}.",
            stacklevel=3,
        )
    if len(ours) > 1 or (not ours and len(theirs) > 1):
        names = ", ".join(repr(adapter.name) for adapter in (ours or theirs))
        raise AdapterError(f"{checkpoint} is claimed by {names}: choose one with adapter=.")
    for adapter in (*ours, *theirs, *(each for each in known.values() if each.generic and _handles(each, config))):
        return adapter
    handled = dict.fromkeys(known_model_types(), "")
    for adapter in known.values():
        handled |= dict.fromkeys(() if isinstance(adapter.model_types, str) else adapter.model_types, adapter.name)
    raise unknown(config, checkpoint, handled)


def require_adapter(name: str) -> type[Adapter]:
    """The adapter of this name; raises :class:`UnknownModelError` if none is installed."""
    known = adapters()
    if name not in known:
        raise UnknownModelError(
            f"No adapter is named {name!r}.{near(str(name), known)} Installed: {', '.join(sorted(known))}."
        )
    return known[name]


def _handles(adapter: type[Adapter], config: Mapping[str, Any]) -> bool:
    try:
        return adapter.handles(config)
    except Exception as error:  # a plug-in may fail in any way and must not break the others
        if _is_built_in(adapter):
            raise
        warnings.warn(f"adapter {adapter.name!r} is broken and left out: {error!r}", stacklevel=4)
        return False


def read_config(checkpoint: str | Path, revision: str | None = None) -> dict[str, Any]:
    """``config.json`` of a local folder or a hub checkpoint; nothing else is read or run.

    Raises:
        CheckpointNotFoundError: if there is no such folder or hub checkpoint.
        HubError: if the hub cannot be reached, or wants a login.
        CheckpointError: if the folder has no readable ``config.json``.
    """
    return config_and_commit(checkpoint, revision)[0]


def config_and_commit(checkpoint: str | Path, revision: str | None = None) -> tuple[dict[str, Any], str | None]:
    """As :func:`read_config`, plus the hub commit of the file; None for a folder outside the hub cache."""
    folder = Path(checkpoint)
    if os.path.isfile(folder):
        raise CheckpointError(f"{checkpoint} is a file: pass the folder with config.json and the weights.")
    if str(checkpoint) and os.path.isdir(folder):
        file = folder / "config.json"
        if not file.is_file():
            lora = (
                " It holds a LoRA adapter: load its base model and use vlmprobe.wrap."
                if (folder / "adapter_config.json").is_file()
                else ""
            )
            raise CheckpointError(f"{checkpoint} has no config.json, so it is not a checkpoint folder.{lora}")
    else:
        file = _from_hub(str(checkpoint), revision)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"config.json of {checkpoint} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type", ""), str):
        raise CheckpointError(f"config.json of {checkpoint} is not the configuration of a model.")
    place = file.parent.absolute()
    return config, place.name if place.parent.name == "snapshots" else None  # the hub cache names snapshots by commit


def _from_hub(checkpoint: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    # The old ids without an organisation are read from the cache only: no such id is that of a model of images.
    old = OLD_ID.fullmatch(checkpoint) is not None
    if not old and (checkpoint.count("/") != 1 or checkpoint.startswith((".", "/", "~"))):
        raise missing(checkpoint)
    try:
        return Path(hf_hub_download(checkpoint, "config.json", revision=revision, local_files_only=old))
    except (OSError, ValueError, HFValidationError) as error:
        raise (missing(checkpoint) if old else refused(checkpoint, error)) from error


def is_native(model_type: Any) -> bool:
    """Whether the installed transformers loads checkpoints of a ``model_type`` as image-text-to-text models."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    known = isinstance(model_type, str) and model_type in CONFIG_MAPPING
    return known and CONFIG_MAPPING[model_type] in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def known_model_types() -> list[str]:
    """Every ``model_type`` that the installed transformers lists as an image-text-to-text model."""
    # The public mapping imports the configuration of every architecture first, which takes several seconds.
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def _is_built_in(adapter: type[Adapter]) -> bool:
    return any(is_ours(point) and point.name == adapter.name for point in entry_points(group=GROUP))
