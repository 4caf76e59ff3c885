"""The page of the compatibility matrix, from the records of its runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["page"]

Record = Mapping[str, Any]
HEAD = """# Compatibility

This page is written by `make matrix`: the conformance suite (`vlmprobe check`, C1 to C15) on a tiny random \
checkpoint of each architecture, in float32 on a CPU. A tiny checkpoint has the true architecture, processor and chat \
template of its family with small dimensions and random weights; what holds on it is that every number is the model's \
own, not that a released checkpoint was tried. An architecture passes where every check does and the quick checks at \
load find nothing.

"Not checked" stands for what a family refuses by itself, with an error that names the remedy; `vlmprobe check` gives \
its words.
"""


def page(records: Sequence[Record], skipped: Mapping[str, str]) -> str:
    """The page as Markdown.

    Args:
        records: of the architectures, as ``Report.to_dict`` gives them, each with ``architecture`` and
            ``source``: ``"tiny"`` or ``"folder"``.
        skipped: architecture without a checkpoint -> why.
    """
    parts = [HEAD, _made_with(records)]
    sorts = {
        "Architectures of transformers": [record for record in records if record["source"] == "tiny"],
        "Original checkpoint formats": [record for record in records if record["source"] == "folder"],
    }
    for name, sort in sorts.items():
        if sort:
            parts.append(f"**{name}: {sum(record['passed'] for record in sort)} of {len(sort)} pass.**\n")
    parts.append(_checks(records))
    for name, sort in sorts.items():
        if sort:
            parts.append(f"## {name}\n\n" + _table(("architecture", "verdict", "adapter", "notes"), map(_row, sort)))
    if failures := [_failures(record) for record in records if not record["passed"]]:
        parts.append("## What fails\n\n" + "\n".join(failures))
    if skipped:
        rows = [(f"`{name}`", reason) for name, reason in sorted(skipped.items())]
        parts.append(
            "## Left out\n\nArchitectures that transformers lists as image-text-to-text, and why they are not here.\n\n"
            + _table(("architecture", "reason"), rows)
        )
    return "\n".join(parts)


def _made_with(records: Sequence[Record]) -> str:
    versions: Mapping[str, str] = next((record["versions"] for record in records if "versions" in record), {})
    date = max((record["date"] for record in records if "date" in record), default="")[:10]
    return f"Written {date} with {', '.join(f'{name} {version}' for name, version in versions.items())}.\n"


def _checks(records: Sequence[Record]) -> str:
    checks: Mapping[str, Any] = next((record["checks"] for record in records if "checks" in record), {})
    rows = [(each["id"], each["statement"]) for each in checks.values()]
    return "## Checks\n\n" + _table(("", "what it verifies"), rows)


def _row(record: Record) -> tuple[str, str, str, str]:
    name = f"`{record['architecture']}`"
    if "error" in record:
        return name, "does not run", "", _cell(record["error"])
    checks = list(record["checks"].values())
    failed = [each["id"] for each in checks if each["status"] == "failed"]
    verdict = f"fails {', '.join(failed)}" if failed else f"passes {sum(c['status'] == 'passed' for c in checks)}"
    if record["quick"]:
        verdict += ", warns at load"
    notes = dict.fromkeys(  # one line for each, not one for each check that met it
        note for each in checks for note in (each["reason"], *map(_short, each["notes"])) if note
    )
    return name, verdict, f"`{record['adapter']}`", _cell("; ".join(notes))


def _failures(record: Record) -> str:
    if "error" in record:
        return f"### {record['architecture']}\n\n    {record['error']}\n"
    failed = [f"{each['id']}: {each['failure']}" for each in record["checks"].values() if each["status"] == "failed"]
    told = "\n\n".join("    " + each.replace("\n", "\n    ") for each in (*failed, *record["quick"]))
    return f"### {record['architecture']}\n\n{told}\n"


def _short(note: str) -> str:
    """A note without its figures and the processor's own message, which differ from check to check."""
    if note.startswith("noise: "):
        return "rounding ruled out in float64"
    return re.sub(r"(not checked) \(.*\)$", r"\1", note, flags=re.DOTALL)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"
