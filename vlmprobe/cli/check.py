"""``vlmprobe check``: whether every number that an adapter gives matches the model's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmprobe.cli import options, output
from vlmprobe.cli.open_model import is_server, open_probe, open_server
from vlmprobe.cli.targets import lines_target
from vlmprobe.cli.terminal import FAILED, console, guarded, note, working, writing, wrong_usage

if TYPE_CHECKING:
    from vlmprobe.probe import Probe
    from vlmprobe.testing import Report

__all__ = ["check"]

TINY = 20_000_000  # parameters
READS_RIGHTLY = (
    "vlmprobe reads this model rightly. Whether it is the model of its authors, --against a reference of their code "
    "tells."
)


def check(
    model: options.Model,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="IDS", help="Checks to run, such as C1,C5; all by default.", show_default=False),
    ] = None,
    expect: Annotated[
        list[str] | None,
        typer.Option(
            "--expect",
            metavar="ID=REASON",
            help="A check that is expected to fail, and why. Repeatable.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="FOLDER",
            help="Compare with a reference of the model's original code instead: ids, pixels, logits, answers; or a "
            "server with the checkpoint (folder or hub id) that it serves.",
            show_default=False,
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            metavar="NATS",
            min=0.0,
            help="Of a server: how far log-probabilities may be off; 2e-5 by default.",
            show_default=False,
        ),
    ] = None,
    as_json: options.Json = False,
    matrix: Annotated[
        Path | None,
        typer.Option(
            "--matrix",
            metavar="FILE",
            help="Also append the record of this run to a file, as one line of JSON.",
            callback=lines_target,
            show_default=False,
        ),
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    adapter: options.Adapter = None,
    revision: options.Revision = None,
    ignore_weights: options.IgnoreWeights = None,
    debug: options.Debug = False,
) -> None:
    """Check an adapter on MODEL: every number against the model's own forward, and side effects of calls.

    --against FOLDER checks that the model is its authors': the folder holds what their code computed, recorded once.

    Of a server (MODEL is its URL), --against MODEL names its checkpoint, and both are asked the same.
    """
    if is_server(model):
        if against is None:
            raise typer.BadParameter(
                f"{model} is a server, and check compares with the model's own forward: --against MODEL names its "
                "checkpoint; vlmprobe doctor says what the server provides",
                param_hint="'MODEL'",
            )
        if only or expect:
            raise typer.BadParameter("--only and --expect are for the checks that run without --against")
        with guarded(debug):
            report = _served(model, str(against), tolerance, device, dtype, adapter, revision)
            _deliver(report, as_json, matrix)
        if not report.passed:
            raise typer.Exit(FAILED)
        return
    if tolerance is not None:
        raise typer.BadParameter("--tolerance is for a server that is compared --against a checkpoint")
    if against is not None and (only or expect):
        raise typer.BadParameter("--only and --expect are for the checks that run without --against")
    with guarded(debug):
        if against is not None:
            report = _against(against, model, device, dtype, adapter, revision)
            _deliver(report, as_json, matrix)
            if not report.passed:
                raise typer.Exit(FAILED)
            return
        expected = _expected(expect)
        wanted = None if only is None else [each.strip().upper() for each in only.split(",") if each.strip()]
        with working("Loading the checks"):
            from vlmprobe.testing import check_adapter, checks

            known = [each.id for each in checks()]
            if unknown := sorted({*(wanted or ()), *expected} - set(known)):
                raise typer.BadParameter(f"there is no check {unknown[0]!r}; there are {known[0]} to {known[-1]}")
        load = {"adapter": adapter, "revision": revision, "ignore_weights": ignore_weights or (), "check": False}
        probe = open_probe(model, device=device, dtype=dtype, **load)
        with _few_threads(probe), _progress(len(wanted or known)) as told:
            report = check_adapter(probe, expected_failures=expected, only=wanted, **told)
        _deliver(report, as_json, matrix)
    if not report.passed:
        raise typer.Exit(FAILED)
    if not as_json and not type(probe.model).__module__.startswith("transformers."):
        note(READS_RIGHTLY)


def _against(folder: Path, model: str, device: str, dtype: str, adapter: str | None, revision: str | None) -> Report:
    """Compare with a reference, in float32 unless another type is asked for: references are recorded in it."""
    with working("Loading the checks"), wrong_usage():
        from vlmprobe.testing import check_against
        from vlmprobe.testing.reference import read_reference

        read_reference(folder)  # before the model is loaded
    kind = "float32" if dtype == "auto" else dtype
    probe = open_probe(model, device=device, dtype=kind, adapter=adapter, revision=revision, check=False)
    with _few_threads(probe), _progress(4) as told:
        return check_against(probe, folder, **told)


def _served(
    url: str,
    checkpoint: str,
    tolerance: float | None,
    device: str,
    dtype: str,
    adapter: str | None,
    revision: str | None,
) -> Report:
    """Compare a server with its checkpoint, opened here in float32 unless another type is asked for."""
    from vlmprobe.testing.server_suite import TOLERANCE, check_server

    kind = "float32" if dtype == "auto" else dtype
    local = open_probe(checkpoint, device=device, dtype=kind, adapter=adapter, revision=revision, check=False)
    served = open_server(url, processor=local)
    with working(f"Comparing {url} with {checkpoint}"):
        return check_server(served, local, tolerance=TOLERANCE if tolerance is None else tolerance)


def _expected(given: list[str] | None) -> dict[str, str]:
    expected = {}
    for each in given or ():
        name, equals, reason = each.partition("=")
        if not equals or not reason.strip():
            raise typer.BadParameter(f"{each!r} is not of the form ID=REASON, such as C8=...", param_hint="'--expect'")
        expected[name.strip().upper()] = reason.strip()
    return expected


@contextmanager
def _few_threads(probe: Probe) -> Iterator[None]:
    """One thread for a tiny model on the CPU: more only add overhead."""
    import torch

    model, threads = probe.engine.adapter.model, torch.get_num_threads()  # type: ignore[attr-defined]
    if model.device.type == "cpu" and sum(each.numel() for each in model.parameters()) < TINY:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _progress(total: int) -> Iterator[dict[str, Any]]:
    """Callbacks of ``check_adapter`` that show progress in a terminal."""
    errors = console(error=True)
    if not errors.is_terminal:
        yield {}
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    what = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), what, BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
    with redirect_stdout(sys.stderr), Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task("", total=total)

        def start(check: Any) -> None:
            progress.update(task, description=f"{check.id} {check.statement}"[: max(20, errors.width - 50)])

        def result(result: Any) -> None:
            progress.advance(task)
            if result.status not in ("passed", "skipped"):
                progress.console.print(f"{result.id} {result.status}: {result.statement}", style="dim")

        yield {"on_start": start, "on_result": result}


def _deliver(report: Report, as_json: bool, matrix: Path | None) -> None:
    record = report.to_dict()
    if matrix is not None:
        from vlmprobe.results import document

        with writing(matrix):
            matrix.parent.mkdir(parents=True, exist_ok=True)
            with matrix.open("a", encoding="utf-8") as file:
                file.write(document.dumps(record) + "\n")
    if as_json:
        output.print_json(record)
    else:
        console().print(report)
    if matrix is not None:
        note(f"Record appended: {matrix}")
