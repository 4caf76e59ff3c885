"""Says what is wrong with a name that leads to no checkpoint, or with a checkpoint that no adapter handles."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vlmprobe.demo import BUNDLED
from vlmprobe.errors import CheckpointNotFoundError, HubError, RemoteCodeError, UnknownModelError, near
from vlmprobe.model_registry.model_kind import why_no_probe

__all__ = ["missing", "refused", "unknown"]

HELP = "See docs/extend/add-a-model.md on how to add an adapter."
EXAMPLE = "llava-hf/llava-1.5-7b-hf"
DEMO = "demo"
# The hub's first ids had no organisation. No new ones can be made, and none of these models reads images.
TEXT_ONLY_IDS = re.compile(
    r"(albert|bert|distilbert|roberta|t5|transfo-xl|xlm|xlnet)-[\w.-]+|gpt2(-\w+)?|camembert-base|ctrl|distilgpt2"
    r"|distilroberta-base|openai-gpt"
)


def missing(checkpoint: str) -> CheckpointNotFoundError:
    """The error for a name that is neither a folder nor a hub id.

    Args:
        checkpoint: the name, as it was given.
    """
    if TEXT_ONLY_IDS.fullmatch(checkpoint):
        return CheckpointNotFoundError(
            f"There is no folder {checkpoint!r}, and the hub id {checkpoint!r} is that of a text-only model: a probe "
            f"takes models that read images, such as {EXAMPLE!r}."
        )
    meant = near(checkpoint.lower(), [*BUNDLED]) or near(checkpoint, _folders_beside(checkpoint))
    return CheckpointNotFoundError(
        f"There is no folder {checkpoint!r}, and it is not a hub id such as {EXAMPLE!r}.{meant} "
        f"Pass an existing folder, a hub id, or {DEMO!r}."
    )


def refused(checkpoint: str, error: Exception) -> UnknownModelError:
    """The error for a hub id whose ``config.json`` the hub did not return.

    Args:
        checkpoint: the hub id.
        error: what huggingface_hub raised.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    absent = (HFValidationError, RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError)
    kind = CheckpointNotFoundError if isinstance(error, absent) and not isinstance(error, GatedRepoError) else HubError
    return kind(
        f"There is no folder {checkpoint!r} here, and the hub did not return its config.json "
        f"({type(error).__name__}: {str(error).partition(chr(10))[0]}).{near(checkpoint, _folders_beside(checkpoint))} "
        "Check the spelling, the connection, and for a gated model that you are logged in; without a network, "
        "HF_HUB_OFFLINE=1 avoids the wait."
    )


def _folders_beside(checkpoint: str) -> list[str]:
    """The folders that a misspelt last part of a path may have meant, as they would have been typed."""
    above, name = os.path.split(checkpoint.rstrip("/"))
    with suppress(OSError, ValueError):
        beside = Path(above or ".").expanduser()
        return [os.path.join(above, each.name) for each in beside.iterdir() if name and each.is_dir()]
    return []


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
