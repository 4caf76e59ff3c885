"""Which release of InternVL a checkpoint is, where its configuration alone does not say."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmprobe.errors import CheckpointError, VlmprobeWarning, outside
from vlmprobe.model_registry.original.internvl2.prompt import Template, find_template
from vlmprobe.model_registry.original.internvl2.shipped_template import shipped_system_text

__all__ = ["is_first_release", "require_supported", "system_text"]

SYSTEM_1 = {  # template -> default system text of the releases 1.2 to 1.5; later releases share the templates
    "Hermes-2": "Answer the questions.",
    "internlm2-chat": "You are an AI assistant whose name is InternLM (书生·浦语).",
    "phi3-chat": "You are an AI assistant whose name is Phi-3.",
}
# "InternVL-Chat-V1-5", "Mini-InternVL-Chat-2B-V1-5", "internvl_chat_v1_2_plus"
NAME_1 = re.compile(r"internvl(?:.*[^\d.])?v?1[-_.]?[125](?![\db])", re.IGNORECASE)
NAME_LATER = re.compile(r"internvl[-_]?[2-9]", re.IGNORECASE)  # "InternVL2-8B", "InternVL2_5-1B-MPO"
MONO = "InternLM2VEForCausalLM"  # the language model of Mono-InternVL
TOWERS_1_0 = ("internvit", "intern_vit")


def is_first_release(original: Mapping[str, Any]) -> bool:
    """Whether this is InternVL-Chat 1.0: LLaVA's code, whose config.json has ``model_type`` llava, around InternViT."""
    tower = str(original.get("mm_vision_tower", "")).lower()
    return str(original.get("model_type", "")).startswith("llava") and any(name in tower for name in TOWERS_1_0)


def require_supported(original: Mapping[str, Any]) -> None:
    """Refuse the releases that are not supported, by name.

    Raises:
        CheckpointError: for InternVL-Chat 1.0, Mono-InternVL and InternVL3.5-Flash.
    """
    language = original.get("llm_config") or {}
    if is_first_release(original):
        raise CheckpointError(
            f"This is InternVL-Chat 1.0 (vision tower {original['mm_vision_tower']!r} in LLaVA's own code, of 2023), "
            "which is not supported: it has another layout of weights and other prompts than all later releases. "
            "Supported are InternVL-Chat 1.1 to 1.5 and InternVL 2 to 3.5."
        )
    if MONO in (language.get("architectures") or ()):
        raise CheckpointError(
            f"This is Mono-InternVL (language model {MONO}), which is not supported: each of its layers has a second "
            "feed-forward network for image positions, a visual expert. InternVL2-2B, whose language model is of the "
            "same size, is supported."
        )
    if any(str(name).startswith("flash_") for name in original):
        raise CheckpointError(
            "This is InternVL3.5-Flash, which is not supported: a router of its own compresses the tiles of an image. "
            "InternVL3.5 without Flash is supported."
        )


def system_text(original: Mapping[str, Any], folder: Path | None) -> str:
    """The system text of a conversation that has none of its own.

    config.json does not tell InternVL 1.x from 2.0, whose system texts differ. In this order: ``system_message`` of
    config.json; ``conversation.py`` in the folder; the release in the hub id, in ``_name_or_path`` or in the name of
    the folder; that of 2.0, with a warning.

    Args:
        original: the object in config.json.
        folder: of the checkpoint; None if there is none.

    Raises:
        CheckpointError: for an unknown template, or a ``system_message`` that is not a text.
    """
    template = find_template(original.get("template"))
    given = original.get("system_message")
    if given is not None:
        if not isinstance(given, str):
            raise CheckpointError(f"config.json has the system_message {given!r}, which is not a text.")
        return given
    if folder is not None:
        try:
            shipped = shipped_system_text(folder, template.name)
        except CheckpointError as error:
            warnings.warn(f"{error} It is ignored.", VlmprobeWarning, stacklevel=outside())
        else:
            if shipped is not None:
                return shipped
    return _by_name(original, folder, template)


def _by_name(original: Mapping[str, Any], folder: Path | None, template: Template) -> str:
    older = SYSTEM_1.get(template.name)
    if older is None:
        return template.system
    for name in (_hub_id(folder), str(original.get("_name_or_path") or ""), folder.name if folder else ""):
        if NAME_LATER.search(name):
            return template.system
        if NAME_1.search(name):
            return older
    warnings.warn(
        "Nothing says whether this checkpoint is InternVL 1.x or 2.0, which have different default system texts. "
        f"That of 2.0 is used: {template.system!r}; 1.x has {older!r}. Put the conversation.py of the release beside "
        "its weights, or a system_message into config.json, or a system message into each conversation.",
        VlmprobeWarning,
        stacklevel=outside(),
    )
    return template.system


def _hub_id(folder: Path | None) -> str:
    """The repository of a snapshot in the hub cache (``models--owner--name/snapshots/commit``), or nothing."""
    if folder is None or folder.parent.name != "snapshots":
        return ""
    return folder.parent.parent.name.removeprefix("models--").replace("--", "/")
