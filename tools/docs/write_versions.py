"""Run the conformance suite with the oldest, the tested and the newest libraries, and write versions.md.

``python tools/docs/write_versions.py`` (``make versions``) is made to run on a schedule. It makes an environment for
each side from nothing, below ``outputs/versions``, unless it is given one:

- oldest: the lower bounds of pyproject.toml;
- tested: constraints.txt, as ``make test`` installs it;
- newest: what the package index has today.

A side whose libraries are those of another is not run again. It ends with 1 where an architecture fails on any side, or
is new in transformers. ``--resume`` goes on where a run was ended, with the environments that it made.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "data" / "golden"
PAGE = ROOT / "docs" / "reference" / "versions.md"
PROJECT = ROOT / "pyproject.toml"
CONSTRAINTS = ROOT / "constraints.txt"
PRIVATE = ROOT / "docs" / "reference" / "private_names.toml"
RAN = ROOT / "docs" / "reference" / "ran.toml"
SIDES = ("oldest", "tested", "newest")
CORE = ("vlmprobe", "transformers", "torch", "python")
BOUND = re.compile(r"([A-Za-z0-9._-]+)>=([0-9][0-9.]*)")
HEAD = """# Versions

This page is written by `make versions`: the conformance suite (`vlmprobe check`, C1 to C15) on a tiny random \
checkpoint of each architecture and on the original checkpoints of the tests, with three sets of libraries: the \
oldest that `pyproject.toml` allows, the tested set of `constraints.txt`, which `make test` installs, and the newest \
of the day.

Windows and Apple's MPS are untested.
"""
PRIVATE_HEAD = """## Private names

Names of other libraries that vlmprobe touches and that are private or undocumented there, so that any release may take
them away.
"""
# Run by each side's own Python: what its transformers lists, and what there is a tiny checkpoint of.
ASKED = """
import json
from vlmprobe.testing import tiny
print(json.dumps({"built": tiny.names(), "unlisted": tiny.unlisted(), "later": tiny.later()}))
"""
# The first distribution of a name is the one that is imported. pip only installs, and vlmprobe is the same everywhere.
LISTED = """
import json, platform, re
from importlib.metadata import distributions
found = {"python": platform.python_version()}
for each in distributions():
    found.setdefault(re.sub("[-_.]+", "-", each.name).lower(), each.version)
print(json.dumps({name: found[name] for name in sorted(found) if name not in ("pip", "vlm-logit-probe")}))
"""


@dataclass(frozen=True)
class Side:
    """What one environment gave."""

    records: Mapping[str, Mapping[str, Any]]  # architecture -> record of the suite
    unlisted: Sequence[str] = ()  # architectures of its transformers that vlmprobe knows nothing of
    later: Mapping[str, str] = field(default_factory=dict)  # those that it lacks, and what they wait for
    packages: Mapping[str, str] = field(default_factory=dict)  # distribution -> version, and that of Python

    @property
    def versions(self) -> Mapping[str, str]:
        """Of the libraries, as the records tell them."""
        return next((record["versions"] for record in self.records.values() if "versions" in record), {})

    def passing(self, source: str) -> str:
        """How many of the records from ``"tiny"`` checkpoints, or from a ``"folder"``, pass: ``76 of 76``."""
        found = [record for record in self.records.values() if record["source"] == source]
        return f"{sum(record['passed'] for record in found)} of {len(found)}"


def requirements() -> list[str]:
    """Of the package and of its extras, as ``pyproject.toml`` has them."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]


def lower_bounds(requirements: Iterable[str]) -> list[str]:
    """Constraints of pip that hold every requirement ``name>=X`` at ``X``."""
    found = (BOUND.match(requirement) for requirement in requirements)
    return sorted({f"{match[1]}=={match[2]}.*" for match in found if match})


def environment(side: str, folder: Path, *, anew: bool = True) -> Path:
    """Make an environment with vlmprobe from this folder and what its tests need, and return its Python.

    Args:
        side: one of ``SIDES``.
        folder: for environments.
        anew: from nothing; else an environment that is there keeps its libraries.

    Raises:
        subprocess.CalledProcessError: where pip fails; it has said why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / side / ("Scripts" if os.name == "nt" else "bin") / "python"
    complete = folder / f"{side}.installed"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-compile"]
    if complete.exists() and python.exists() and not anew:
        subprocess.run(
            [*install, "--no-deps", "--editable", str(ROOT)], check=True
        )  # its entry points may be others now
        return python
    complete.unlink(missing_ok=True)
    typer.echo(f"Installing the {side} libraries into {folder / side}; this takes a few minutes.")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / side)], check=True)
    if side == "oldest":
        bounds = folder / "oldest.txt"
        bounds.write_text("\n".join(lower_bounds(requirements())) + "\n", encoding="utf-8")
        held = ["--constraint", str(bounds)]
    elif side == "tested":
        held = ["--constraint", str(CONSTRAINTS)]
    else:
        held = ["--upgrade", "--upgrade-strategy", "eager"]
    subprocess.run([*install, "--upgrade", "pip", *held], check=True)  # the pip of a fresh Python knows no groups
    if side == "tested":
        held = ["--build-constraint", str(CONSTRAINTS), *held]
    subprocess.run([*install, "--editable", f"{ROOT}[all]", "--group", f"{PROJECT}:dev", *held], check=True)
    complete.touch()
    return python


def installed(python: Path) -> dict[str, str]:
    """Distribution -> version of an environment, without pip and vlmprobe, and ``python``'s own version."""
    asked = subprocess.run([str(python), "-c", LISTED], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(asked.stdout)


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
    facts = _facts(python)
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
    besides = (facts["unlisted"], facts["later"]) if names is None else ((), {})  # else only the named were asked for
    return Side({name: known[name] for name in wanted}, *besides, installed(python))


@cache
def _facts(python: Path) -> dict[str, Any]:
    """What this Python answers to ``ASKED``, which takes it seconds."""
    asked = subprocess.run([str(python), "-c", ASKED], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(asked.stdout.splitlines()[-1])


def _run_matrix(python: Path, missing: Mapping[str, Path | None], records: Path, jobs: int) -> int:
    """Run architectures, and folders where one stands beside the name; the exit code, 1 where one fails."""
    tiny = ",".join(name for name, folder in missing.items() if folder is None)
    command = [str(python), "-m", "tools.compatibility_matrix", "--names", tiny, "--jobs", str(jobs)]
    for folder in filter(None, missing.values()):
        command += ["--also", str(folder)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--records", str(records)], cwd=ROOT, env=variables, check=False)
    return done.returncode


def _read(records: Path) -> dict[str, Any]:
    """Architecture -> its record; of two, the later one."""
    lines = records.read_text(encoding="utf-8").splitlines() if records.is_file() else []
    return {record["architecture"]: record for record in map(json.loads, lines)}


def page(
    oldest: Side,
    tested: Side,
    newest: Side,
    *,
    private: Sequence[Mapping[str, Any]] = (),
    ran: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The page as Markdown.

    Args:
        oldest: what the lower bounds gave.
        tested: what constraints.txt gave.
        newest: what the newest libraries gave.
        private: private names that the package touches, as ``private_names.toml`` has them.
        ran: what was run otherwise, as ``ran.toml`` has it.
    """
    sides = dict(zip(SIDES, (oldest, tested, newest), strict=True))
    same = twins(sides)
    dates = [record["date"] for side in sides.values() for record in side.records.values() if "date" in record]
    parts = [HEAD, f"Written {max(dates, default='')[:10]}.\n", _table(("", *SIDES), _summary(sides.values()))]
    parts += [f"The {name} set is the {other} one, so it was run once for both.\n" for name, other in same.items()]
    if moved := _moved(tested, newest):
        parts.append(f"What the newest set has otherwise than the tested one: {moved}.\n")
    parts.append("## Differences\n")
    if found := differences(*sides.values()):
        parts.append("Architectures whose checks do not agree on all sides that have them.\n")
        parts.append(_table(("architecture", *SIDES), found))
    else:
        parts.append("None: every architecture gives the same in every check on all sides that have it.\n")
    if alike := _failing(sides, {row[0] for row in found}):
        parts.append("## Failing\n\nArchitectures that fail in the same way on every side that has them.\n")
        parts.append(_table(("architecture", "what fails"), alike))
    parts += _later(sides)
    for name, side in sides.items():
        if side.unlisted and name not in same:
            listed = ", ".join(f"`{each}`" for each in side.unlisted)
            parts.append(
                f"## Not looked at yet\n\nListed by the {name} transformers, without a tiny checkpoint: {listed}.\n"
            )
    parts.append("## Pythons\n\nWhat was run, and with which Python.\n")
    parts.append(_table(("python", "libraries", "what ran", "what came"), _pythons(sides, ran)))
    if private:
        parts += [PRIVATE_HEAD, _table(("name", "where", "why", "what would notice"), map(_private, private))]
    return "\n".join(parts)


def twins(sides: Mapping[str, Side]) -> dict[str, str]:
    """Side -> the first one before it with the very same libraries."""
    found: dict[str, str] = {}
    names = list(sides)
    for at, name in enumerate(names):
        for other in names[:at]:
            if sides[name].packages and sides[name].packages == sides[other].packages:
                found.setdefault(name, other)
    return found


def _later(sides: Mapping[str, Side]) -> list[str]:
    """What the libraries of a side are too old for; sides that lack the same share a section."""
    lacking: dict[str, list[str]] = {}
    for name, side in sides.items():
        if side.later:
            rows = [(f"`{each}`", reason) for each, reason in sorted(side.later.items())]
            lacking.setdefault(_table(("architecture", "what it waits for"), rows), []).append(name)
    return [f"## Not with the {' and the '.join(names)}\n\n{table}" for table, names in lacking.items()]


def _private(entry: Mapping[str, Any]) -> tuple[str, ...]:
    files = ", ".join(f"`{file}`" for file in entry["used_in"])
    return tuple(map(_escaped, (f"`{entry['name']}`", files, entry["why"], entry["notices"])))


def _moved(tested: Side, newest: Side) -> str:
    names = sorted({*tested.packages, *newest.packages} if tested.packages and newest.packages else ())
    versions = [(name, tested.packages.get(name, "none"), newest.packages.get(name, "none")) for name in names]
    return ", ".join(f"{name} {new} ({old})" for name, old, new in versions if old != new)


def differences(*sides: Side) -> list[tuple[str, ...]]:
    """Architecture, and what each side says of it, where those that have it do not say the same."""
    rows = []
    for name in dict.fromkeys(name for side in reversed(sides) for name in side.records):
        told = [_verdict(side.records[name]) if name in side.records else "" for side in sides]
        if len({*filter(None, told)}) > 1:
            rows.append((f"`{name}`", *(verdict or "not there" for verdict in told)))
    return rows


def _failing(sides: Mapping[str, Side], besides: Iterable[str]) -> list[tuple[str, str]]:
    """Architecture and what fails, of those that the table of differences does not list."""
    failed = {
        f"`{name}`": _verdict(record)
        for side in sides.values()
        for name, record in side.records.items()
        if not record["passed"]
    }
    return [row for row in failed.items() if row[0] not in besides]


def _pythons(sides: Mapping[str, Side], ran: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    rows = []
    for name, side in sides.items():
        came = f"{side.passing('tiny')} architectures and {side.passing('folder')} original formats pass"
        rows.append((side.versions.get("python", ""), name, "the conformance suite", came))
    return rows + [
        (each["python"], each["set"], f"{each['what']}, {each['date']}", _escaped(each["result"])) for each in ran
    ]


def _verdict(record: Mapping[str, Any]) -> str:
    if "error" in record:
        return _cell(f"does not run: {record['error']}")
    checks = list(record["checks"].values())
    parts = [f"fails {each['id']}: {each['failure']}" for each in checks if each["status"] == "failed"]
    parts += [f"warns at load: {finding}" for finding in record.get("quick", ())]
    notes = (note for each in checks for note in (each["reason"], *each["notes"]))
    parts += dict.fromkeys(note for note in notes if note and not note.startswith("noise: "))
    return _cell("; ".join(parts) or "passes")


def _summary(sides: Collection[Side]) -> list[tuple[str, ...]]:
    rows = [(name, *(side.versions.get(name, "") for side in sides)) for name in CORE]
    for title, source in (
        ("architectures of transformers that pass", "tiny"),
        ("original formats that pass", "folder"),
    ):
        rows.append((title, *(side.passing(source) for side in sides)))
    return rows


def _tables(file: Path, name: str) -> list[dict[str, Any]]:
    """The tables ``[[name]]`` of a file; none where there is no file."""
    return tomllib.loads(file.read_text(encoding="utf-8")).get(name, []) if file.is_file() else []


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _cell(text: str) -> str:
    text = _escaped(text)
    return text if len(text) <= 400 else f"{text[:397]}..."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def main(
    oldest: Annotated[Path | None, typer.Option(metavar="PYTHON", help="Of an environment that is there.")] = None,
    tested: Annotated[Path | None, typer.Option(metavar="PYTHON", help="Of an environment that is there.")] = None,
    newest: Annotated[Path | None, typer.Option(metavar="PYTHON", help="Of an environment that is there.")] = None,
    names: Annotated[
        str | None, typer.Option(help="Architectures, separated by commas; everything by default.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes.", min=1)] = os.cpu_count() or 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the environments and the records that are there.")
    ] = False,
    folder: Annotated[Path, typer.Option(help="For environments and records.")] = ROOT / "outputs" / "versions",
    out: Annotated[Path, typer.Option(help="The page to write.")] = PAGE,
) -> None:
    """Run the conformance suite with the oldest, the tested and the newest libraries, and write the page."""
    folder.mkdir(parents=True, exist_ok=True)
    sides: dict[str, Side] = {}
    for name, given in zip(SIDES, (oldest, tested, newest), strict=True):
        python = given or environment(name, folder, anew=not resume)
        records = folder / f"{name}.jsonl"
        packages = installed(python)
        twin = next((other for other, side in sides.items() if side.packages == packages), None)
        if twin:
            typer.echo(f"\nThe {name} libraries are the {twin} ones: not run again.")
            known = {**sides[twin].records, **(_read(records) if resume else {})}
            records.write_text("".join(f"{json.dumps(each)}\n" for each in known.values()), encoding="utf-8")
            sides[name] = replace(sides[twin], records={each: known[each] for each in sides[twin].records})
        else:
            typer.echo(f"\nThe {name} libraries, with {python}:")
            sides[name] = examine(python, records, names=names, jobs=jobs, resume=resume)
    text = page(*sides.values(), private=_tables(PRIVATE, "name"), ran=_tables(RAN, "ran"))
    out.write_text(text, encoding="utf-8")
    typer.echo(f"\nWritten: {out}")
    failed = [name for side in sides.values() for name, record in side.records.items() if not record["passed"]]
    if failed or sides["newest"].unlisted:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
