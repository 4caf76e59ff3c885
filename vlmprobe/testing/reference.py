"""References: what a model's original code computes for some conversations, recorded once, in a folder.

``reference.json`` is the manifest and ``reference.safetensors`` holds the numbers; docs/reference/reference-format.md
describes both. A folder is data from elsewhere: no path in it may lead out of it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.numpy import load_file

from vlmprobe.errors import ResultError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["FORMAT", "VERSION", "Reference", "Scenario", "read_reference"]

FORMAT, VERSION = "vlmprobe-reference", 1
MANIFESTS = {
    "reference.json": "reference.safetensors",
    "golden.json": "golden.safetensors",
}  # the latter has no version
PIXELS, LOGITS = 1e-6, 1e-3  # tolerances of a manifest that has none
MOST_BYTES = 64 * 2**20  # of a manifest


@dataclass(frozen=True)
class Scenario:
    """One conversation, and what the original code made of it."""

    name: str
    messages: list[dict[str, Any]]  # with absolute paths of images
    input_ids: list[int]  # [S]; below zero where an image stands and the id is of no matter
    prompt: str | None  # the text that was tokenised, if it was recorded
    gen_ids: list[int]  # of the greedy answer; empty if none was recorded
    tensors: Mapping[str, np.ndarray]  # by name: see the documentation of the format


@dataclass(frozen=True)
class Reference:
    """A folder of scenarios."""

    folder: Path
    source: Any  # where the numbers come from: code, commit, versions
    pixels: float  # greatest difference of a pixel
    logits: float  # of a logit
    scenarios: tuple[Scenario, ...]


def read_reference(folder: str | Path) -> Reference:
    """Read a reference folder.

    Raises:
        ResultError: there is no reference, or not one that can be read; it names the file and the scenario.
    """
    folder = Path(folder).expanduser()
    name = next((each for each in MANIFESTS if (folder / each).is_file()), None)
    if name is None:
        missing = "" if folder.is_dir() else " (there is no such folder)"
        raise ResultError(
            f"{folder} holds no reference{missing}: expected reference.json. The record_reference.py that vlmprobe "
            "new-adapter writes records one."
        )
    manifest = _manifest(folder / name)
    file = folder / MANIFESTS[name]
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ResultError(f"{file}: the numbers of the reference cannot be read: {error}") from error
    told = manifest.get("scenarios", manifest)
    if not isinstance(told, Mapping) or not told:
        raise ResultError(f"{folder / name} holds no scenarios.")
    allowed = manifest.get("tolerances") or {}
    return Reference(
        folder,
        manifest.get("source"),
        float(allowed.get("pixels", PIXELS)),
        float(allowed.get("logits", LOGITS)),
        tuple(_scenario(folder, name, str(each), held, tensors) for each, held in told.items()),
    )


def _manifest(file: Path) -> dict[str, Any]:
    if file.stat().st_size > MOST_BYTES:
        raise ResultError(f"{file} is larger than {MOST_BYTES:,} bytes: it is no manifest of a reference.")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise ResultError(f"{file} holds a JSON {type(manifest).__name__}, not an object.")
    if file.name == "reference.json":
        if manifest.get("format") != FORMAT:
            raise ResultError(f"{file} is not a reference: its format is {manifest.get('format')!r}, not {FORMAT!r}.")
        if not isinstance(version := manifest.get("version"), int) or version > VERSION:
            raise ResultError(f"{file} has version {version!r} of the format; this vlmprobe reads up to {VERSION}.")
    return manifest


def _scenario(folder: Path, file: str, name: str, held: Any, tensors: Mapping[str, np.ndarray]) -> Scenario:
    where = f"{folder / file}, scenario {name!r}"
    if not isinstance(held, Mapping) or not isinstance(held.get("messages"), list):
        raise ResultError(f"{where}: it has no list of messages.")
    if not _are_ids(ids := held.get("input_ids")) or not ids:
        raise ResultError(f"{where}: input_ids must be a list of integers.")
    made = held.get("gen_ids") or []
    if not _are_ids(made):
        raise ResultError(f"{where}: gen_ids must be a list of integers.")
    own = {key.removeprefix(f"{name}."): each for key, each in tensors.items() if key.startswith(f"{name}.")}
    if "logits" not in own:
        raise ResultError(f"{where}: its logits are missing from {MANIFESTS[file]}.")
    rows = len(own["positions"]) if "positions" in own else len(ids)
    if own["logits"].ndim != 2 or len(own["logits"]) != rows:
        raise ResultError(f"{where}: logits of shape {own['logits'].shape} for {rows} positions.")
    messages = copy.deepcopy(held["messages"])
    for part in _image_parts(messages):
        part["path"] = str(_inside(folder, part.get("path"), where))
    return Scenario(name, messages, ids, held.get("prompt"), made, own)


def _are_ids(ids: Any) -> bool:
    return isinstance(ids, list) and all(isinstance(each, int) and not isinstance(each, bool) for each in ids)


def _image_parts(messages: list[Any]) -> Iterator[dict[str, Any]]:
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") == "image":
                yield part


def _inside(folder: Path, name: Any, where: str) -> Path:
    """An image of the reference: a file below its folder, wherever links lead."""
    if not isinstance(name, str) or not name:
        raise ResultError(f"{where}: an image part needs a 'path' that is relative to the folder.")
    file = (folder / name).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ResultError(f"{where}: the image {name!r} lies outside the folder.")
    if not file.is_file():
        raise ResultError(f"{where}: there is no image {name!r} in the folder.")
    return file
