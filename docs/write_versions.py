"""Run the conformance suite with the oldest supported and with the newest libraries, and write versions.md.

``python docs/write_versions.py`` (``make versions``) is made to run on a schedule. It makes an environment for each
side below ``outputs/versions``, unless it is given one. It ends with 1 where an architecture fails on either side, or
is new in transformers. ``--resume`` goes on where a run was ended.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import requires
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "data" / "golden"
PAGE = Path(__file__).with_name("versions.md")
SIDES = ("oldest", "newest")
CORE = ("vlmprobe", "transformers", "torch", "python")
BOUND = re.compile(r"([A-Za-z0-9._-]+)>=([0-9][0-9.]*)")
HEAD = """# Versions

This page is written by `make versions`: the conformance suite (`vlmprobe check`, C1 to C15) on a tiny random \
checkpoint of each architecture and on the original checkpoints of the tests, once with the oldest libraries that \
vlmprobe supports and once with the newest.
"""
FOUND = """## Why nothing older

What the suite found on 2026-11-21 with transformers 5.17 and timm 1.0.20, where 42 of 74 passed, and what moved the
lower bounds:

- In 17, beam search answered about another picture: the model's own `generate` repeated tiles for each beam where
  pictures should have been (InternVL, Aya Vision, Cohere2 Vision, Ovis2, Kimi K2.5, Llama 4 among them). Some still do
  with 5.18 and 5.19. vlmprobe refuses beams there, with an error that says why; the table of differences lists them.
- In 9, what encodes pictures returned another kind of output, so that features could not be remembered (C6): Idefics,
  Mistral 3, Gemma 4, Aria, GOT-OCR2 and others.
- Mllama: penalties on repetition read beyond the vocabulary, where its image id lies (C9).
- With timm 1.0.20, OmniLMM and Perception LM could not be loaded.
"""
# Run by each side's own Python: what its transformers lists, and what there is a tiny checkpoint of.
ASKED = """
import json
from vlmprobe.testing import tiny
print(json.dumps({"built": tiny.names(), "unlisted": tiny.unlisted(), "later": tiny.later()}))
"""


@dataclass(frozen=True)
class Side:
    """What one environment gave."""

    records: Mapping[str, Mapping[str, Any]]  # architecture -> record of the suite
    unlisted: Sequence[str] = ()  # architectures of its transformers that vlmprobe knows nothing of
    later: Mapping[str, str] = field(default_factory=dict)  # those that it lacks, and what they wait for

    @property
    def versions(self) -> Mapping[str, str]:
        """Of the libraries, as the records tell them."""
        return next((record["versions"] for record in self.records.values() if "versions" in record), {})

    def passing(self, source: str) -> str:
        """How many of the records from ``"tiny"`` checkpoints, or from a ``"folder"``, pass: ``76 of 76``."""
        found = [record for record in self.records.values() if record["source"] == source]
        return f"{sum(record['passed'] for record in found)} of {len(found)}"


def lower_bounds(requirements: Iterable[str]) -> list[str]:
    """Constraints of pip that hold every requirement ``name>=X`` at ``X``."""
    found = (BOUND.match(requirement) for requirement in requirements)
    return sorted({f"{match[1]}=={match[2]}.*" for match in found if match})


def environment(side: str, folder: Path) -> Path:
    """Make an environment with vlmprobe from this folder, and return its Python; one that is there is used again.

    Raises:
        subprocess.CalledProcessError: where pip fails; it has said why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / side / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / side)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--editable", f"{ROOT}[timm,sentencepiece]", "num2words"]
    if side == "oldest":
        constraints = folder / "oldest.txt"
        constraints.write_text("\n".join(lower_bounds(requires("vlm-logit-probe") or ())) + "\n", encoding="utf-8")
        install += ["--constraint", str(constraints)]
    else:
        install += ["--upgrade", "--upgrade-strategy", "eager"]
    typer.echo(f"Installing the {side} libraries into {folder / side}; this takes a few minutes.")
    subprocess.run(install, check=True)
    return python


def examine(python: Path, records: Path, *, names: str | None, jobs: int, resume: bool = False) -> Side:
    """Run the matrix with this Python.

    Args:
        python: of an environment with vlmprobe.
        records: where they are written, a line of JSON each, as they come.
        names: architectures, separated by commas; all and the original formats where None.
        jobs: processes.
        resume: leave out what ``records`` holds already.

    Raises:
        SystemExit: where it does not get to an end.
    """
    asked = subprocess.run([str(python), "-c", ASKED], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    facts = json.loads(asked.stdout.splitlines()[-1])
    wanted = dict.fromkeys(facts["built"])
    if names is None:
        wanted |= {each.parent.name: each.parent for each in sorted(GOLDEN.glob("*/config.json"))}
    else:
        wanted = {name: None for name in names.split(",") if name in wanted}
    if not resume:
        records.unlink(missing_ok=True)
    known = _read(records)
    if missing := {name: folder for name, folder in wanted.items() if name not in known}:
        code = _run_matrix(python, missing, records, jobs)
        known = _read(records)
        if lost := [name for name in missing if name not in known]:
            sys.exit(f"{python} ended with {code} before {', '.join(lost)}; --resume goes on there.")
    later = facts["later"] if names is None else {}
    return Side({name: known[name] for name in wanted}, facts["unlisted"], later)


def _run_matrix(python: Path, missing: Mapping[str, Path | None], records: Path, jobs: int) -> int:
    """Run architectures, and folders where one stands beside the name; the exit code, 1 where one fails."""
    tiny = ",".join(name for name, folder in missing.items() if folder is None)
    command = [str(python), "-m", "vlmprobe.testing.matrix", "--names", tiny, "--jobs", str(jobs)]
    for folder in filter(None, missing.values()):
        command += ["--also", str(folder)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--records", str(records)], cwd=ROOT, env=variables, check=False)
    return done.returncode


def _read(records: Path) -> dict[str, Any]:
    """Architecture -> its record; of two, the later one."""
    lines = records.read_text(encoding="utf-8").splitlines() if records.is_file() else []
    return {record["architecture"]: record for record in map(json.loads, lines)}


def page(oldest: Side, newest: Side) -> str:
    """The page as Markdown."""
    dates = [record["date"] for side in (oldest, newest) for record in side.records.values() if "date" in record]
    parts = [HEAD, f"Written {max(dates, default='')[:10]}.\n", _table(("", *SIDES), _summary(oldest, newest))]
    parts.append("## Differences\n")
    if found := differences(oldest, newest):
        parts.append("Architectures of both sides whose checks do not agree.\n")
        parts.append(_table(("architecture", *SIDES), found))
    else:
        parts.append("None: every architecture that both sides have gives the same in every check.\n")
    if oldest.later:
        parts.append("## Not with the oldest\n")
        rows = [(f"`{name}`", reason) for name, reason in sorted(oldest.later.items())]
        parts.append(_table(("architecture", "what it waits for"), rows))
    for name, side in zip(SIDES, (oldest, newest), strict=True):
        if side.unlisted:
            listed = ", ".join(f"`{each}`" for each in side.unlisted)
            parts.append(
                f"## Not looked at yet\n\nListed by the {name} transformers, without a tiny checkpoint: {listed}.\n"
            )
    return "\n".join(parts)


def differences(oldest: Side, newest: Side) -> list[tuple[str, str, str]]:
    """Architecture, and what each side says of it, where the two do not say the same."""
    both = [name for name in newest.records if name in oldest.records]
    told = [(f"`{name}`", *(_verdict(side.records[name]) for side in (oldest, newest))) for name in both]
    return [row for row in told if row[1] != row[2]]


def _verdict(record: Mapping[str, Any]) -> str:
    if "error" in record:
        return _cell(f"does not run: {record['error']}")
    checks = list(record["checks"].values())
    parts = [f"fails {each['id']}: {each['failure']}" for each in checks if each["status"] == "failed"]
    parts += [f"warns at load: {finding}" for finding in record.get("quick", ())]
    notes = (note for each in checks for note in (each["reason"], *each["notes"]))
    parts += dict.fromkeys(note for note in notes if note and not note.startswith("noise: "))
    return _cell("; ".join(parts) or "passes")


def _summary(oldest: Side, newest: Side) -> list[tuple[str, ...]]:
    rows = [(name, *(side.versions.get(name, "") for side in (oldest, newest))) for name in CORE]
    for title, source in (
        ("architectures of transformers that pass", "tiny"),
        ("original formats that pass", "folder"),
    ):
        rows.append((title, *(side.passing(source) for side in (oldest, newest))))
    return rows


def _cell(text: str) -> str:
    text = " ".join(text.replace("|", "\\|").split())
    return text if len(text) <= 400 else f"{text[:397]}..."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def main(
    oldest: Annotated[Path | None, typer.Option(metavar="PYTHON", help="Of an environment that is there.")] = None,
    newest: Annotated[Path | None, typer.Option(metavar="PYTHON", help="Of an environment that is there.")] = None,
    names: Annotated[
        str | None, typer.Option(help="Architectures, separated by commas; everything by default.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes.", min=1)] = os.cpu_count() or 1,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the records that are there.")] = False,
    folder: Annotated[Path, typer.Option(help="For environments and records.")] = ROOT / "outputs" / "versions",
    out: Annotated[Path, typer.Option(help="The page to write.")] = PAGE,
) -> None:
    """Run the conformance suite with the oldest supported and the newest libraries, and write the page."""
    folder.mkdir(parents=True, exist_ok=True)
    sides = []
    for name, given in zip(SIDES, (oldest, newest), strict=True):
        python = given or environment(name, folder)
        typer.echo(f"\nThe {name} libraries, with {python}:")
        sides.append(examine(python, folder / f"{name}.jsonl", names=names, jobs=jobs, resume=resume))
    out.write_text(page(*sides), encoding="utf-8")
    typer.echo(f"\nWritten: {out}")
    failed = [name for side in sides for name, record in side.records.items() if not record["passed"]]
    if failed or sides[1].unlisted:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
