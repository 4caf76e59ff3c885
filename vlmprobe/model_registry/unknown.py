"""Says what is wrong with a name that leads to no checkpoint, or with a checkpoint that no adapter handles."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlmprobe.errors import CheckpointNotFoundError, HubError, RemoteCodeError, UnknownModelError, near

__all__ = ["missing", "refused", "unknown"]

HELP = "See docs/extend/add-a-model.md on how to add an adapter."
WRITES = ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "SPEECH_SEQ_2_SEQ", "MASKED_LM")
ENCODES = ("ZERO_SHOT_IMAGE_CLASSIFICATION", "IMAGE", "TEXT_ENCODING")
EXAMPLE = "llava-hf/llava-1.5-7b-hf"
DEMO = "demo"
# The hub's first ids had no organisation. No new ones can be made, and none of these models reads images.
TEXT_ONLY_IDS = re.compile(
    r"(albert|bert|distilbert|roberta|t5|transfo-xl|xlm|xlnet)-[\w.-]+|gpt2(-\w+)?|camembert-base|ctrl|distilgpt2"
    r"|distilroberta-base|openai-gpt"
)
OTHER_INPUTS = ("vision", "visual", "image", "audio")  # in names of keys of a configuration


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
    meant = near(checkpoint.lower(), [DEMO]) or near(checkpoint, _folders_beside(checkpoint))
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


def unknown(config: Mapping[str, Any], checkpoint: str, known: Iterable[str]) -> UnknownModelError:
    """The error for a checkpoint that no adapter handles.

    Args:
        config: its ``config.json``.
        checkpoint: its name.
        known: every ``model_type`` that is supported.
    """
    import transformers

    kind = str(config.get("model_type", "unknown"))
    named = config.get("architectures")
    classes = ", ".join(map(str, named)) if named and isinstance(named, list) else "none named"
    about = f"(model_type {kind!r}, architecture {classes})"
    of_transformers = not isinstance(named, list) or all(hasattr(transformers, str(each)) for each in named)
    if of_transformers and _is_text_only(config):
        return UnknownModelError(f"{checkpoint} is a text-only model {about}: a probe takes models that read images.")
    if of_transformers and (what := _without_head(kind)) is not None:
        return UnknownModelError(
            f"{checkpoint} is {what} without a language head {about}, so it has no logits of words to probe."
        )
    hint = "" if kind in transformers.CONFIG_MAPPING else near(kind, known)
    told = f"No adapter handles {checkpoint} {about}.{hint}"
    if config.get("auto_map"):
        return RemoteCodeError(
            f"{told} It asks to run Python code of its own, which vlmprobe never does. Look for a version of it that "
            f"is native to transformers (often ending in '-hf'), or write an adapter. {HELP}"
        )
    return UnknownModelError(f"{told} Newer models may need a newer transformers. {HELP}")


def _is_text_only(config: Mapping[str, Any]) -> bool:
    """Whether transformers has a language model for this configuration, which names no images and no sound."""
    if any(word in str(key) for key in config for word in OTHER_INPUTS):
        return False
    kind = str(config.get("model_type"))
    return _is_in(kind, WRITES[:2]) and not _is_in(kind, ("IMAGE_TEXT_TO_TEXT", "SPEECH_SEQ_2_SEQ"))


def _without_head(kind: str) -> str | None:
    """What a model type is that transformers knows and that predicts no words; None for any other."""
    import transformers

    if kind not in transformers.CONFIG_MAPPING or _is_in(kind, WRITES):
        return None
    if _is_in(kind, ENCODES):
        return "an encoder"
    return "a model" if transformers.CONFIG_MAPPING[kind] in transformers.MODEL_MAPPING else None


def _is_in(kind: str, tasks: Iterable[str]) -> bool:
    import transformers

    if kind not in transformers.CONFIG_MAPPING:
        return False
    config = transformers.CONFIG_MAPPING[kind]
    return any(config in getattr(transformers, f"MODEL_FOR_{task}_MAPPING") for task in tasks)
