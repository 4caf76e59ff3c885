"""A run whose model is opened by several actors on Ray.

The driver reads the data set and leaves out what is answered; blocks of questions go to the actors of a pool of Ray
Data. Each actor opens the model, compares the run with the one in the folder as any process does, and writes the
records of a block into shards of its own, under its own lock, before it says how many there are. So what is lost with
a driver, or an actor, is what they had begun.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from typing import Any, NoReturn

from vlmprobe.errors import GenerationOptionError, MissingExtraError, RunError, VlmprobeError
from vlmprobe.runs.asking import Question
from vlmprobe.runs.files import locked
from vlmprobe.runs.shards import Part

__all__ = ["HandedOver", "OnRay", "ask_actors", "cores"]

BLOCK = 64  # questions that an actor gets at once
LOST = "another actor writes there"


@dataclass(frozen=True)
class OnRay:
    """A model for :func:`vlmprobe.run` that several processes open: actors on Ray, on this machine or on a cluster.

    ::

        from vlmprobe.runs import OnRay

        probe = OnRay(functools.partial(vlmprobe.load, "./model"), actors=4)
        vlmprobe.run(probe, "questions.jsonl", out="answers")

    The engine may be another one that runs in a process: ``functools.partial(vlmprobe.load, "./model", engine="vllm",
    tensor_parallel_size=2)`` with ``parallel=2``, which gives each actor two GPUs.

    With ``RAY_ADDRESS`` set the actors run on that cluster, where the folders of the data set and of the answers must
    have the same paths.
    """

    open: Callable[[], Any]  # gives the probe; it is pickled
    actors: int
    gpus: float | None = None  # for each actor; as many as `parallel` if None and Ray knows of any
    prompt: Mapping[str, Any] = field(default_factory=dict)  # options of every prompt
    parallel: int = 1  # GPUs of one machine that the engine of an actor spreads a model over

    def require_cores(self) -> None:
        """Called before Ray starts.

        Raises:
            GenerationOptionError: if the actors leave no core for reading, for then Ray waits forever.
            MissingExtraError: without Ray.
        """
        if isinstance(self.actors, bool) or not isinstance(self.actors, int) or self.actors < 1:
            raise GenerationOptionError(f"the number of actors must be an integer of at least 1, not {self.actors!r}")
        if isinstance(self.parallel, bool) or not isinstance(self.parallel, int) or self.parallel < 1:
            raise GenerationOptionError(f"a model is spread over an integer number of GPUs, not {self.parallel!r}")
        _imported()
        if not os.environ.get("RAY_ADDRESS"):
            self._require_more_than(cores())

    def _require_more_than(self, known: float) -> None:
        if self.actors >= known:
            raise GenerationOptionError(
                f"{self.actors} actors leave none of {known:g} CPUs free to hand out the rows, and Ray would wait "
                f"forever: ask for {max(1, int(known) - 1)} at most" + (", or run without --ray" if known < 2 else "")
            )

    def _gpus(self, known: float) -> int:
        """How many an actor gets, of as many as Ray knows of; none where a GPU for each is not there."""
        needed = self.actors * self.parallel
        if self.parallel > 1 and 0 < known < needed:
            raise GenerationOptionError(
                f"{self.actors} actors that spread a model over {self.parallel} GPUs each need {needed}, and Ray knows "
                f"of {known:g}: ask for fewer actors"
            )
        return self.parallel if known >= needed else 0

    def results(self, blocks: list[Block], how: tuple[Any, ...]) -> Iterator[Done]:
        """What actors say of blocks of questions, in any order."""
        ray = _imported()
        began = not ray.is_initialized()
        if began:
            _start(ray)
        try:
            resources = ray.cluster_resources()
            self._require_more_than(resources.get("CPU", 0))
            gpus = self._gpus(resources.get("GPU", 0)) if self.gpus is None else self.gpus
            yield from _mapped(ray, self, blocks, how, gpus)
        finally:
            if began:
                ray.shutdown()


@dataclass(frozen=True)
class Block:
    """Questions for an actor, and records of rows that cannot be asked."""

    questions: list[Question]
    records: list[Mapping[str, Any]]


@dataclass(frozen=True)
class Done:
    """What became of a block."""

    asked: int = 0
    failed: int = 0
    error: str | None = None  # that ends the run


class HandedOver:
    """Takes the records of rows that cannot be asked, in the place of a writer; actors write them."""

    seconds = 0.0

    def __init__(self) -> None:
        self.records: list[Mapping[str, Any]] = []

    def add(self, record: Mapping[str, Any]) -> None:
        """Keep a record for the next block."""
        self.records.append(record)

    def taken(self) -> list[Mapping[str, Any]]:
        """Those that no block has yet."""
        found, self.records = self.records, []
        return found

    def close(self) -> None:
        """Nothing is written here."""


def cores() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ask_actors(run: Any, questions: Iterator[Question], stop: Any, batch_size: Any) -> None:
    """Let actors ask, and count what they say.

    Args:
        run: of ``running``, whose ``probe`` is an :class:`OnRay` and whose writer a :class:`HandedOver`.
        questions: all of them are read before the first is asked.
        stop: whether someone wants the run to stop.
        batch_size: of :meth:`Probe.generate_many`.

    Raises:
        RunError: if an actor cannot go on, or too many rows fail.
    """
    listed = []
    while several := list(islice(questions, BLOCK)):
        movable = [replace(each, row=replace(each.row, made=_made)) for each in several]
        listed.append(Block(movable, run.writer.taken()))
    if not listed or run.writer.records:  # an actor compares the run with the folder's in any case
        listed.append(Block([], run.writer.taken()))
    how = (type(run), run.folder.absolute(), run.part, run.options, run.samples, run.prompt_tokens, batch_size)
    for done in run.spent.waiting(run.probe.results(listed, how)):
        run.summary.asked += done.asked
        run.summary.failed += done.failed
        run.bar.several(done.asked, done.failed)
        run.failures.counted(done.asked, done.failed)
        if done.error is not None:
            raise RunError(done.error)
        if stop.asked:
            return


def _imported() -> Any:
    """The module ``ray``, set up to listen on loopback only, unless it was imported before or is to join a cluster.

    Raises:
        MissingExtraError: if it is not installed.
    """
    if not os.environ.get("RAY_ADDRESS"):  # Ray reads it when it is imported; a node address alone leaves ports open
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else it speaks of its own actors on standard error
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    return ray


def _start(ray: Any) -> None:
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        ray.init(num_cpus=cores(), include_dashboard=False, **quiet)


def _mapped(ray: Any, probe: OnRay, blocks: list[Block], how: tuple[Any, ...], gpus: float) -> Iterator[Done]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = [{"block": pickle.dumps(block)} for block in blocks]
    done = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        Actor,
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=min(probe.actors, len(items))),
        num_cpus=1,
        num_gpus=gpus,
        fn_constructor_args=(probe, how),
    )
    for row in done.iter_rows():
        yield pickle.loads(row["done"])


class Actor:
    """Opens the model, and asks one block of questions after the other."""

    def __init__(self, probe: OnRay, how: tuple[Any, ...]) -> None:
        """``how``: class of the run, folder, part, options, samples, prompt_tokens and batch_size of the run."""
        self._stack = ExitStack()  # what is locked stays so until the process ends
        self._error: str | None = None
        try:
            self._begin(probe, *how)
        except Exception as error:  # noqa: BLE001 - told by the driver
            self._error = _told(error)

    def _begin(
        self,
        probe: OnRay,
        kind: Callable[..., Any],
        folder: Path,
        part: Part,
        options: Mapping[str, Any],
        samples: int | None,
        prompt_tokens: bool,
        batch_size: Any,
    ) -> None:
        opened = probe.open()
        opened = replace(opened, format=opened.format.updated(probe.prompt))
        mine = self._locked_part(folder, part)
        self._run = kind(opened, folder, mine, options, samples, prompt_tokens, lambda line: None)
        self._written = self._run.begin()
        self._batch_size = batch_size

    def _locked_part(self, folder: Path, part: Part) -> Part:
        for number in count():
            mine = replace(part, actor=number)
            try:
                self._stack.enter_context(locked(folder / f".lock-{mine.name}", LOST))
            except RunError:
                continue
            return mine
        raise AssertionError("numbers do not end")

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        """What became of the blocks."""
        found = Done(error=self._error)
        for held in batch["block"] if self._error is None else ():
            block = pickle.loads(held)
            try:
                summary = self._run.asked(self._written, block.questions, block.records, self._batch_size)
                found = Done(summary.asked, summary.failed)
            except Exception as error:  # noqa: BLE001 - told by the driver
                self._error = _told(error)
                found = Done(self._run.summary.asked, self._run.summary.failed, self._error)
        return {"done": [pickle.dumps(found)]}


def _made() -> NoReturn:
    raise RuntimeError("the request of a row was made where the row was read")


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, VlmprobeError) else f"{type(error).__name__}: {error}"
