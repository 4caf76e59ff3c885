"""``run``: a probe over a data set, into a folder; the same call again goes on where the last one ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlmprobe.display.progress import Rows, tracking_rows
from vlmprobe.engines.base import AnswersConcurrently
from vlmprobe.engines.constraint import constraint_of
from vlmprobe.errors import GenerationOptionError, RunError
from vlmprobe.inputs.prompt_format import taken
from vlmprobe.probe.request import options_of
from vlmprobe.runs import description, limits, listing, records, remembered, shards
from vlmprobe.runs.asking import Question, answers
from vlmprobe.runs.block_keys import Keyed
from vlmprobe.runs.columns import Naming
from vlmprobe.runs.data import Data, data_of, require_arrow
from vlmprobe.runs.files import locked
from vlmprobe.runs.images import Images
from vlmprobe.runs.keys import Reader, Row
from vlmprobe.runs.on_ray import HandedOver, OnRay, ask_actors
from vlmprobe.runs.reading import blocks_of, rows_of
from vlmprobe.runs.shards import Part, Shards
from vlmprobe.runs.spent import Spent, duration, told
from vlmprobe.runs.verify import require_same_numbers
from vlmprobe.runs.writer import Clock, Writer

if TYPE_CHECKING:
    from vlmprobe.probe import Probe

__all__ = ["Run", "Summary", "run"]

UNFIT = {"keep", "logits_processor", "on_error", "prefix_allowed_tokens_fn", "prompt"}  # of generate_many
UNFIT_BECAUSE = "its answers are kept as columns of Parquet, and options are compared from one start to the next"
SHOWN_AFTER = 5.0  # seconds of asking, after which it is told how long the whole will take


@dataclass
class Summary:
    """What one call of :func:`run` did."""

    folder: Path
    rows: int = 0  # that were read, of this part
    asked: int = 0  # questions that were put to the model, or failed before
    failed: int = 0  # of them
    interrupted: bool = False  # by Ctrl-C: the same call again goes on
    seconds: Mapping[str, float] | None = None  # where the time went; see vlmprobe.runs.spent

    def __str__(self) -> str:
        counts = f"{self.rows:,} rows: {self.asked:,} asked, {self.failed:,} of them failed"
        spent = told(self.seconds or {})
        return f"{counts}{f' ({spent})' if spent else ''}"


def run(
    probe: Probe | OnRay,
    rows: Any,
    *,
    out: str | Path,
    question_template: str | None = None,
    question: str | None = None,
    image: str | None = None,
    candidates: str | None = None,
    answer: str | None = None,
    id: str | None = None,
    carry: Sequence[str] | None = None,
    root: str | Path | None = None,
    limit: int | None = None,
    part: str | tuple[int, int] = (0, 1),
    retry_failed: bool = False,
    samples: int | None = None,
    prompt_tokens: bool = False,
    alternatives: int | None = None,
    max_failed: str | float | None = None,
    verify: int = 0,
    seed: int | None = None,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool | None = None,
    tell: Callable[[str], None] | None = None,
    clock: Clock | None = None,
    **generation: Any,
) -> Summary:
    """Ask a probe about every row of a data set, and keep the answers in a folder.

    ::

        vlmprobe.run(probe, "questions.jsonl", out="answers")
        table = vlmprobe.open_run("answers").to_pandas()

    Called again, it asks only what is not answered yet, whatever ended it before: at most 30 s of finished work and
    the rows in flight are lost. Rows are known by what is asked (question, images by content, candidates, options of
    the row), not by their place, id or label. Another model or other options in the same folder are an error.

    Args:
        probe: that is asked; or :class:`~vlmprobe.runs.OnRay`, which opens it in several processes.
        rows: a path (.parquet, .jsonl, .csv, a folder that ``datasets`` saved, a folder of images), a pandas or
            polars frame, or any iterable of mappings or :class:`~vlmprobe.Request` objects.
        out: the folder.
        question_template: writes the question of each row from its columns: ``"Is there a {thing}?"``.
        question, image, candidates, answer, id: names of these columns; found by name if None.
        carry: columns to keep with the answers; all others if None.
        root: folder that image paths start from and must not leave; that of the data set if it is a file, and for rows
            from Python paths are taken as they are.
        limit: read only so many rows.
        part: ``"3/8"`` takes the rows whose number, divided by 8, leaves 3, so that several processes can share a
            folder.
        retry_failed: ask the rows again that failed before.
        samples: draw so many answers of each row, each with a seed that comes from the row.
        prompt_tokens: also keep the prompt's tokens.
        alternatives: as in :meth:`Probe.generate`.
        max_failed: end the run if more than this share fails, ``"5%"`` or 0.05, once 200 rows are asked.
        verify: first ask so many answered rows again, and stop if a log-probability has moved.
        seed, batch_size: as in :meth:`Probe.generate_many`.
        progress: whether to show a progress bar; None shows one in a terminal and in Jupyter.
        tell: called with lines about what happens.
        clock: of the writer.
        **generation: as in :meth:`Probe.generate`, without ``keep`` and ``logits_processor``; and
            :class:`~vlmprobe.PromptOptions`.

    Raises:
        RunError: if the folder holds another run or is in use; if results cannot be written; or if the model does not
            work any more. What is finished is kept.
        MessageError: for a data set that cannot be read, or has no questions.
        GenerationOptionError: for an invalid option.
        MissingExtraError: without pyarrow and filelock.
    """
    require_arrow()
    naming = Naming(question, image, candidates, answer, id, None if carry is None else tuple(carry), question_template)
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
        raise GenerationOptionError(f"samples must be an integer of at least 1, not {samples!r}")
    if samples is not None and (seed is not None or generation.get("do_sample") is False):
        raise GenerationOptionError("samples are drawn with seeds of their rows: leave out seed and do_sample")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise GenerationOptionError(f"limit must be an integer of at least 0, not {limit!r}")
    if unfit := sorted(UNFIT & set(generation)):
        raise GenerationOptionError(f"{unfit[0]} is no option of a run: {UNFIT_BECAUSE}")
    if (constraint := constraint_of(generation)) is not None:
        generation[constraint.name] = constraint.value  # run.json records what it says, not the path of a file
    prompted = taken(generation)
    if isinstance(probe, OnRay):
        probe = replace(probe, prompt={**probe.prompt, **prompted})
        if verify:
            raise GenerationOptionError("verify asks a model in this process: call run without Ray first")
    else:
        probe = replace(probe, format=probe.format.updated(prompted))
    wanted = {"alternatives": alternatives, "seed": seed, **({"prompt": True} if prompt_tokens else {}), **generation}
    options_of("stats", wanted.get("prompt"), alternatives, seed, generation)  # its errors, before anything is read
    data = data_of(rows, None if root is None else Path(root))
    this = Run(probe, Path(out), Part.read(part), wanted, samples, prompt_tokens, tell or (lambda line: None))
    return this.over(
        data, naming, limit, retry_failed, limits.share_of(max_failed), verify, batch_size, progress, clock
    )


class Run:
    """One call: its folder, what is there already, and what it has done."""

    def __init__(
        self,
        probe: Any,
        folder: Path,
        part: Part,
        options: Mapping[str, Any],
        samples: int | None,
        prompt_tokens: bool,
        tell: Callable[[str], None],
    ) -> None:
        self.probe, self.folder, self.part = probe, folder, part
        self.options, self.samples, self.prompt_tokens, self.tell = options, samples, prompt_tokens, tell
        self.summary = Summary(folder)
        self.known: dict[str, bool] = {}  # key of a record -> whether it is an answer
        self.seen: set[str] = set()  # keys of this call
        self.writer: Any = None  # takes records
        self.told = 0.0  # seconds of writing that the shards know of
        self.on_ray = isinstance(probe, OnRay)
        self.spent = Spent(self.on_ray or isinstance(probe.engine, AnswersConcurrently))

    def over(
        self,
        data: Data,
        naming: Naming,
        limit: int | None,
        retry_failed: bool,
        max_failed: float | None,
        verify: int,
        batch_size: Any,
        progress: bool | None,
        clock: Clock | None,
    ) -> Summary:
        """Ask what is not answered yet."""
        started, began = time.time(), time.perf_counter()
        with ExitStack() as stack:
            if self.on_ray:
                self.probe.require_cores()
            self.folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(
                locked(self.folder / f".lock-{self.part.name}", f"part {self.part.number}/{self.part.of}")
            )
            written = None if self.on_ray else self.begin()
            images = Images(data.root, remembered.read_known(self.folder / remembered.FOLDER))
            reader = Reader(naming, images, data.unkept)
            if data.names is not None:
                reader.columns(data.names)  # its errors
            self.known = shards.states(self.folder / shards.RESULTS)
            self.retry = retry_failed
            self.failures = limits.Failures(max_failed, None if self.on_ray else self.probe.meta.get("device"))
            rows: Iterator[Row | Keyed] = blocks_of(data, reader, self.part, limit)
            if verify and any(self.known.values()):
                rows = rows_of(data, reader, self.part, limit)
                rows = require_same_numbers(self.probe, rows, self.folder, verify, self.options, self.samples)
            self.writer = HandedOver() if written is None else Writer(partial(self._write, written), clock)
            stop = stack.enter_context(limits.stoppable())
            self.listing = listing.Listing(self.folder / listing.FOLDER, self.part)
            self.spent.add("start", time.perf_counter() - began)
            try:
                with tracking_rows(progress, _of_part(data.total, limit, self.part)) as self.bar:
                    questions = self._questions(rows, stop)
                    if self.on_ray:
                        ask_actors(self, self.spent.reading(questions), stop, batch_size)
                    else:
                        self._ask(questions, stop, batch_size)
                whole = not stop.asked and limit is None
                self._close(images, stop, lambda: self.listing.close(whole, started))
            except limits.Terminated:
                self._close(images, stop, self.listing.drop)
                self.summary.interrupted = True
                stack.close()
                os.kill(os.getpid(), signal.SIGTERM)
                raise SystemExit(128 + signal.SIGTERM) from None
            except BaseException as error:
                if isinstance(error, RunError):
                    error.begun = not self.on_ray or self.summary.asked > 0  # else no actor has begun
                self._close(images, stop, self.listing.drop)
                raise
            self.summary.interrupted = stop.asked
            spent = self.spent.so_far()
            other = time.perf_counter() - began - sum(spent.values())
            self.summary.seconds = {**spent, "other": max(0.0, other), "write": self.writer.seconds}
        return self.summary

    def begin(self) -> Shards:
        """Compare the run with the one in the folder, and open the shards of the part, whose lock the caller holds."""
        wanted = {**self.options, "prompt_tokens": self.prompt_tokens or None}
        wanted["samples"] = None if self.samples is None else True
        found = description.describe(self.probe, wanted)
        with locked(self.folder / ".lock-run", "the run", seconds=60):
            about = description.require_same(self.folder, found)
        meta = {**description.process(self.probe), "run": description.run_hash(about), "part": self.part.name}
        return Shards(self.folder / shards.RESULTS, self.part, meta)

    def asked(
        self, written: Shards, questions: list[Question], failed: list[Mapping[str, Any]], batch_size: Any
    ) -> Summary:
        """Ask a few questions, as an actor does, and write what became of them and of those that failed before."""
        self.summary, self.bar = Summary(self.folder), Rows(None, lambda *_: None)
        self.failures = limits.Failures(None, self.probe.meta.get("device"))
        self.writer = Writer(partial(self._write, written))
        try:
            for record in failed:
                self.writer.add(record)
            self._ask(iter(questions), limits.Stop(), batch_size)
        finally:
            self.writer.close()
        return self.summary

    def _unanswered(self, rows: Iterator[Row | Keyed], stop: limits.Stop) -> Iterator[Row]:
        """The rows of which something may be left to ask; all are listed and counted."""
        for read in rows:
            if stop.asked:
                return
            if isinstance(read, Row):
                self.listing.add(read)
                self.summary.rows += 1
                yield read
                continue
            self.listing.extend(read.numbers, read.keys, read.ids, read.carried)
            self.summary.rows += len(read.keys)
            answered = self.known if self.samples is None else {}  # a look that spares most rows the closer one
            left = [place for place, key in enumerate(read.keys) if not answered.get(key) and self._is_left(key)]
            self.bar.skipped(len(read.keys) - len(left))
            yield from map(read.row, left)

    def _is_left(self, key: str) -> bool:
        """Whether something of a row may have to be asked; cheaper than :meth:`_left`, which decides."""
        if self.samples is None:
            return self._is_unanswered(key)
        return any(self._is_unanswered(f"{key}-{sample}") for sample in range(self.samples))

    def _is_unanswered(self, key: str) -> bool:
        """Whether a record of earlier calls leaves a question to be asked."""
        answered = self.known.get(key)
        return answered is None or (not answered and self.retry)

    def _questions(self, rows: Iterator[Row | Keyed], stop: limits.Stop) -> Iterator[Question]:
        """What is to be asked; a row that cannot be asked is recorded here."""
        for row in self._unanswered(rows, stop):
            if stop.asked:
                return
            left = self._left(row.key)
            if not left:
                self.bar.skipped()
                continue
            try:
                request = row.request()
            except Exception as error:  # noqa: BLE001 - of the row
                for sample in left:
                    self._failed(row, row.key if sample is None else f"{row.key}-{sample}", error)
                continue
            for sample in left:
                yield Question(row, request, sample)

    def _left(self, key: str) -> list[int | None]:
        """The samples of a row that are to be asked; [None] for its one answer."""
        if self.samples is None:
            return [None] if self._is_open(key) else []
        return [sample for sample in range(self.samples) if self._is_open(f"{key}-{sample}")]

    def _is_open(self, key: str) -> bool:
        """Whether a question is to be asked: it has no answer, nor failed before, nor came before in this call."""
        if key in self.seen:
            return False
        self.seen.add(key)
        return self._is_unanswered(key)

    def _ask(self, questions: Iterator[Question], stop: limits.Stop, batch_size: Any) -> None:
        flying = [0]

        broken: list[Exception] = []  # what ended the rows: those before it are answered first

        def counted() -> Iterator[Question]:
            try:
                for question in self.spent.reading(questions):
                    flying[0] += 1
                    yield question
            except Exception as error:  # noqa: BLE001 - raised below
                broken.append(error)

        stop.on_first = lambda: self.tell(f"Finishing {flying[0]} rows that were begun; Ctrl-C again leaves at once.")
        began, shown = time.perf_counter(), False
        found = answers(self.probe, counted(), self.options, batch_size, self.samples is not None)
        for asked in self.spent.waiting(found):
            flying[0] -= 1
            row, key = asked.question.row, asked.question.key
            if asked.result is None or asked.error is not None:
                self._failed(row, key, asked.error or RunError("no answer"))
                continue
            self.writer.add(records.answered(row, key, asked.result, asked.scores, self.prompt_tokens))
            self.failures.answered()
            self.summary.asked += 1
            self.bar.answered()
            self.spent.count(asked.result, asked.scores)
            spent = time.perf_counter() - began
            if not shown and spent > SHOWN_AFTER and self.bar.left is not None:
                shown = True
                rate = self.summary.asked / spent
                self.tell(f"{rate:.3g} rows a second: {duration(self.bar.left / rate)} for the other {self.bar.left:,}")
        for error in broken:
            raise error

    def _failed(self, row: Row, key: str, error: Exception) -> None:
        self.summary.asked += 1
        self.summary.failed += 1
        if self.failures.recorded(error):
            self.writer.add(records.failed(row, key, error))
        self.bar.failed()
        self.failures.require_working(error)

    def _write(self, written: Shards, waiting: Sequence[Mapping[str, Any]]) -> None:
        """Called by the writer's thread."""
        seconds = {**self.spent.since(), "write": self.writer.seconds - self.told}
        self.told = self.writer.seconds
        written.write(records.table_of(waiting, self.prompt_tokens), seconds)

    def _close(self, images: Images, stop: limits.Stop, close_listing: Callable[[], None]) -> None:
        """Write what is finished, then what makes the next start quicker."""
        stop.closing = True
        self.writer.close()
        close_listing()
        if images.hashed:
            remembered.write_known(self.folder / remembered.FOLDER, self.part, images.known)


def _of_part(total: int | None, limit: int | None, part: Part) -> int | None:
    if total is None:
        return None if limit is None or part.of > 1 else limit
    total = total if limit is None else min(total, limit)
    return max(0, -(-(total - part.number) // part.of))
