"""The tables of docs/reference/engines.md that runs against real engines write: into the page that PARITY names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmprobe.testing import Report

ROW = re.compile(r"^\| (.+?) \| (.+?) \| (\d\S*) \|$", re.MULTILINE)
REASON = re.compile(r"- (.+), E(\d+): ")
ABSENT = "absent"


def _page() -> Path | None:
    named = os.environ.get("PARITY")
    return Path(named) if named else None


def _block(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {re.escape(name)}, written by make engine-test -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def _write(page: Path, name: str, lines: list[str]) -> None:
    text, table = page.read_text(encoding="utf-8"), "\n".join(lines)
    page.write_text(_block(name).sub(lambda block: f"{block[1]}\n{table}\n\n{block[3]}", text), encoding="utf-8")


def _held(page: Path, name: str) -> str:
    found = _block(name).search(page.read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{page} has no block <!-- {name}, written by make engine-test --> … <!-- end -->")
    return found[2]


@contextmanager
def parity(engine: str) -> Iterator[dict[tuple[str, str], float]]:
    """(model or server, what) -> largest difference in nats; written at the end into the block ``parity: engine``.

    Rows that this run has not measured stay, so that some tests alone can be run.
    """
    rows: dict[tuple[str, str], float] = {}
    yield rows
    page, name = _page(), f"parity: {engine}"
    if page is None or not rows:
        return
    held = {row[:2]: row[2] for row in ROW.findall(_held(page, name))}
    held |= {key: f"{value:.1e}" for key, value in rows.items()}
    head = ["| model, server | what | largest difference |", "|---|---|---|"]
    _write(page, name, [*head, *(f"| {model} | {what} | {value} |" for (model, what), value in held.items())])


def write_checks(engine: str, report: Report) -> None:
    """What E1 to E12 gave on an engine: its column of the block ``checks``, and the reasons below the table."""
    page = _page()
    if page is None:
        return
    held = _held(page, "checks")
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in held.splitlines() if line[:1] == "|"]
    columns = dict(zip(table[0], zip(*table[2:], strict=True), strict=True)) if len(table) > 2 else {}
    reasons = {line for line in held.splitlines() if (told := REASON.match(line)) and told[1] != engine}
    skipped = [each for each in report.results if each.status == "skipped"]
    reasons |= {f"- {engine}, {each.id}: {each.reason}" for each in skipped}
    names = [f"{each.id}: {each.statement}" for each in report.results]
    columns = {"check": tuple(names)} | {name: cells for name, cells in columns.items() if name != "check"}
    columns[engine] = tuple(ABSENT if each.status == "skipped" else each.status for each in report.results)
    lines = ["| " + " | ".join(row) + " |" for row in (tuple(columns), *zip(*columns.values(), strict=True))]
    lines.insert(1, "|" + "---|" * len(columns))
    _write(page, "checks", [*lines, "", *sorted(reasons, key=_place)])


def _place(reason: str) -> tuple[str, int]:
    engine, check = REASON.match(reason).groups()  # type: ignore[union-attr]
    return engine, int(check)
