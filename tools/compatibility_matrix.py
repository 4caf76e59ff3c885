"""Runs the conformance suite on every architecture and writes the compatibility matrix.

``python -m tools.compatibility_matrix`` builds a tiny random checkpoint of each architecture, runs every check on it
and writes ``docs/reference/compatibility.md``. That page is not edited by hand.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from tools.compatibility_page import page
from vlmprobe.testing.report import FORMAT

__all__ = ["check_architecture", "run"]

Record = Mapping[str, Any]
NOT_YET = "new in this version of transformers: no tiny checkpoint yet"


def check_architecture(name: str, folder: str | None = None) -> dict[str, Any]:
    """The record of one architecture: the suite's report, or the error that prevented the run.

    ``quick`` adds the findings of the quick checks at load. On a checkpoint that passes the suite there must be none,
    so any finding counts as a failure.

    Args:
        name: of a tiny checkpoint, or of the checkpoint in ``folder``.
        folder: an existing checkpoint.
    """
    import vlmprobe
    from vlmprobe.probe.load_checks import run as quick
    from vlmprobe.testing import check_adapter, tiny

    with TemporaryDirectory() as made:
        try:
            checkpoint = folder or str(tiny.build(name, Path(made) / name))
            probe = vlmprobe.load(checkpoint, device="cpu", dtype="float32", check=False)
            found = [str(finding) for finding in quick(probe.engine)]  # type: ignore[arg-type]
            record = check_adapter(probe).to_dict()
            record = {**record, "passed": record["passed"] and not found, "quick": found}
        except Exception as error:  # noqa: BLE001 - one failing architecture must not abort the matrix
            record = {"passed": False, "error": f"{type(error).__name__}: {error}"}
    return {**record, **_told(name, folder)}


def _told(name: str, folder: str | None) -> dict[str, Any]:
    return {"format": FORMAT, "architecture": name, "model": name, "source": "folder" if folder else "tiny"}


def run(
    names: Iterable[str],
    folders: Mapping[str, str] | None = None,
    *,
    jobs: int = 2,
    told: Callable[[Record], None] | None = None,
) -> list[dict[str, Any]]:
    """Check architectures in parallel single-threaded processes; records in the order of the names.

    Args:
        names: of tiny checkpoints.
        folders: name -> folder of further checkpoints.
        jobs: number of processes.
        told: called with each record as it completes.
    """
    asked: dict[str, str | None] = {**dict.fromkeys(names), **(folders or {})}
    found: dict[str, dict[str, Any]] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_prepare) as pool:
        pending = {pool.submit(check_architecture, name, folder): name for name, folder in asked.items()}
        for done in as_completed(pending):
            name = pending[done]
            try:
                found[name] = done.result()
            except BrokenProcessPool as error:
                found[name] = {**_told(name, asked[name]), "passed": False, "error": f"its process ended: {error}"}
            if told is not None:
                told(found[name])
    return [found[name] for name in asked]


def _prepare() -> None:
    """Initialise a worker: one thread, since more only slow tiny models down, and quiet libraries."""
    import warnings

    import torch

    torch.set_num_threads(1)
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")


def _checkpoints(folders: Iterable[Path]) -> Iterator[tuple[str, str]]:
    for folder in folders:
        for config in [folder / "config.json"] if (folder / "config.json").is_file() else folder.glob("*/config.json"):
            yield config.parent.name, str(config.parent)


def main(
    out: Annotated[Path | None, typer.Option(help="The page to write.")] = None,
    records: Annotated[Path | None, typer.Option(help="JSON Lines file to append the records to.")] = None,
    names: Annotated[str | None, typer.Option(help="Comma-separated architectures; all by default.")] = None,
    also: Annotated[list[Path] | None, typer.Option(help="Further checkpoint, or folder of them. Repeatable.")] = None,
    jobs: Annotated[int, typer.Option(help="Number of processes.", min=1)] = os.cpu_count() or 1,
) -> None:
    """Run the conformance suite on every architecture and write the compatibility matrix."""
    from rich.console import Console

    from vlmprobe.testing import tiny

    console = Console(markup=False, highlight=False)
    wanted = tiny.names() if names is None else [each.strip() for each in names.split(",") if each.strip()]
    for name in wanted:
        tiny.family(name)

    def tell(record: Record) -> None:
        console.print(_line(record), soft_wrap=True)
        if records is not None:
            with records.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    found = run(wanted, dict(sorted(_checkpoints(also or ()))), jobs=jobs, told=tell)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        left_out = {**dict.fromkeys(tiny.unlisted(), NOT_YET), **tiny.SKIPPED}
        out.write_text(page(found, left_out), encoding="utf-8")
    failed = sum(not record["passed"] for record in found)
    console.print(f"{len(found) - failed} of {len(found)} architectures pass")
    if failed:
        raise typer.Exit(1)


def _line(record: Record) -> str:
    if "error" in record:
        return f"{record['architecture']:<26} error: {record['error']}"
    failed: Sequence[str] = [each["id"] for each in record["checks"].values() if each["status"] == "failed"]
    verdict = f"fails {', '.join(failed)}" if failed else "warns at load" if record["quick"] else "passes"
    return f"{record['architecture']:<26} {verdict} in {record['seconds']:.1f} s ({record['adapter']})"


if __name__ == "__main__":
    typer.run(main)
