"""``run.json``: which model was asked, and how. It is written once; another run in the same folder is an error."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmprobe.errors import RunError
from vlmprobe.inputs.images import digest
from vlmprobe.probe.probe import Session
from vlmprobe.results.document import finite
from vlmprobe.runs.files import put_in_place
from vlmprobe.runs.fingerprint import fingerprint

__all__ = ["FILE", "describe", "process", "read_description", "require_same", "run_hash"]

FILE = "run.json"
FORMAT = 1
TOLD = ("versions", "device", "url", "engine_version")  # of each shard instead: they may change
CONTENT = ("weights", "config", "tokenizer", "template")  # if known, the model's name and revision need not agree


def describe(probe: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The model and the options of a run.

    Args:
        probe: that is asked.
        options: of the calls, and what is recorded.
    """
    found: dict[str, Any] = {"format": FORMAT}
    found |= {name: probe.meta.get(name) for name in ("model", "revision", "adapter", "dtype", "engine", "resize")}
    found |= {"ignore_weights": probe.meta.get("ignore_weights"), **fingerprint(probe)}
    if isinstance(probe, Session):
        found["session_images"] = [digest(image) for image in probe.images]
    found["options"] = {name: value for name, value in {**options, **probe.format.told}.items() if value is not None}
    return dict(json.loads(json.dumps(finite(found), default=str)))


def require_same(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The description in a folder, which is written if there is none; the caller holds the folder's lock.

    Raises:
        RunError: if another run was begun there; it names the fields that differ.
    """
    path = folder / FILE
    if not path.exists():
        text = json.dumps(wanted, indent=1, ensure_ascii=False)
        put_in_place(path, lambda unfinished: _write(unfinished, text))
    held = read_description(folder)
    if differences := _differences(held, wanted):
        raise RunError(
            f"{folder} holds another run: {'; '.join(differences)}. Ask as that run does, or name another folder."
        )
    return held


def read_description(folder: Path) -> dict[str, Any]:
    """The description of the run in a folder.

    Raises:
        RunError: if there is none, or one of a later vlmprobe.
    """
    try:
        held = json.loads((folder / FILE).read_text(encoding="utf-8"))
        layout = held["format"]
    except FileNotFoundError as error:
        raise RunError(f"{folder} holds no run: there is no {FILE} in it.") from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"{folder / FILE} cannot be read: {error}") from error
    if layout != FORMAT:
        raise RunError(f"{folder} has layout {layout!r} of runs, and this vlmprobe reads {FORMAT}: use a newer one.")
    return dict(held)


def run_hash(description: Mapping[str, Any]) -> str:
    """What shards name their run by."""
    text = json.dumps({name: description[name] for name in sorted(description)}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def process(probe: Any) -> dict[str, Any]:
    """What a shard says of the process that wrote it."""
    found = {name: probe.meta.get(name) for name in ("device", "versions", "url", "engine_version")}
    kept = {name: value for name, value in found.items() if value is not None}
    return {"format": 1, "host": platform.node(), "python": platform.python_version(), **kept}


def _differences(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    known = set(CONTENT) <= set(held) and set(CONTENT) <= set(wanted)
    names = [name for name in {**held, **wanted} if name not in ("options", "format")]
    found = {name for name in names if held.get(name) != wanted.get(name)}
    if known:
        found -= {"model", "revision"}
        if "dtype" in found:  # another dtype has other weights
            found -= {"weights"}
    told = [
        f"{name} is another one" if name in CONTENT else _change(name, held.get(name), wanted.get(name))
        for name in names
        if name in found
    ]
    before, now = held.get("options", {}), wanted.get("options", {})
    return told + [
        _change(name, before.get(name), now.get(name))
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]


def _change(name: str, before: Any, now: Any) -> str:
    return f"{name} is {before!r} there, and {now!r} now"


def _write(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")
