"""Tiny random checkpoints in an original format: of any adapter that is an ``OriginalAdapter``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmprobe.testing.tiny.weights import randomise, silence

if TYPE_CHECKING:
    from vlmprobe.model_registry.original import OriginalAdapter

__all__ = ["write_original"]


def write_original(
    adapter: type[OriginalAdapter],
    folder: str | Path,
    *,
    config: Mapping[str, Any],
    tokenizer: Any,
    files: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> Path:
    """Write a checkpoint with random weights, under the names and in the layout of the original.

    The tokenizer's files are also read by the transformers 4 that the original code may need.

    Args:
        adapter: of the family.
        folder: where to write; it is created.
        config: the ``config.json`` of a release, with small sizes and the ``vocab_size`` of the tokenizer.
        tokenizer: its files are written into the folder.
        files: further JSON files by name, such as ``preprocessor_config.json``.
        seed: another seed gives other weights.
    """
    from vlmprobe.model_registry.original.checkpoint import name_weights

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    _for_transformers_4(folder)
    held = {"config.json": dict(config), **{name: dict(each) for name, each in (files or {}).items()}}
    for name, each in held.items():
        (folder / name).write_text(json.dumps(each, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    translated = adapter.translate(config, folder)
    translated.original = held
    model_class = adapter.model_class()
    model = model_class(translated)
    randomise(model, seed=seed)  # initial values give nearly uniform distributions, which hide mistakes
    if adapter.image_token:
        silence(model, [tokenizer.convert_tokens_to_ids(adapter.image_token)])
    name_weights(model_class, adapter.conversions())
    model.save_pretrained(folder)
    return folder


def _for_transformers_4(folder: Path) -> None:
    """Rewrite the tokenizer's files as releases have them, for the environment in which a reference is recorded."""
    if (file := folder / "tokenizer.json").is_file():
        held = json.loads(file.read_text(encoding="utf-8"))
        pairs = [each for each in held["model"].get("merges", ()) if not isinstance(each, str)]
        if pairs and not any(" " in piece for pair in pairs for piece in pair):
            held["model"]["merges"] = [" ".join(pair) for pair in pairs]
            file.write_text(json.dumps(held, ensure_ascii=False), encoding="utf-8")
    if (file := folder / "tokenizer_config.json").is_file():
        held = json.loads(file.read_text(encoding="utf-8"))
        if held.get("tokenizer_class") == "TokenizersBackend":
            held["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(held.get("extra_special_tokens"), list):
            held["additional_special_tokens"] = held.pop("extra_special_tokens")
        file.write_text(json.dumps(held, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
