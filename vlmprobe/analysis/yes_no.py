"""Yes/no questions: the probability of either answer, and the metrics of POPE over many questions.

POPE (Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models") asks whether an object is in
the image and parses the generated answer. Here the probabilities of all spellings of yes and of no are summed instead,
so the answer comes with its confidence, and one that hedges is still one of the two. The metrics can be computed from
either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vlmprobe.analysis.confidences import CalibrationError
from vlmprobe.analysis.failures import without_failures
from vlmprobe.display.overview import Overview, Viewed
from vlmprobe.display.progress import tracking
from vlmprobe.display.view import DASH
from vlmprobe.engines.base import RemembersImages
from vlmprobe.errors import MessageError, ResultError
from vlmprobe.inputs.messages import Prompt
from vlmprobe.probe.failure import naming
from vlmprobe.probe.request import Requests, carrying, id_of, request_of
from vlmprobe.probe.tables import rows_of
from vlmprobe.results.failure import Failure
from vlmprobe.results.frame import DataFrame, data_frame
from vlmprobe.results.grouped import NO, YES, YesNo
from vlmprobe.results.result import Result

if TYPE_CHECKING:
    from vlmprobe.probe import Probe

__all__ = ["NO", "YES", "YesNo", "YesNoReport", "frame", "reads_as_yes", "report", "reports", "yes_no", "yes_no_many"]


def yes_no(
    probe: Probe, question: Prompt, image: Any = None, *, yes: Sequence[str] = (), no: Sequence[str] = ()
) -> YesNo:
    """Ask a yes/no question. See :meth:`Probe.yes_no`."""
    return probe.yes_no(question, image, yes=yes, no=no)


def yes_no_many(
    probe: Probe,
    requests: Requests,
    *,
    yes: Sequence[str] = (),
    no: Sequence[str] = (),
    progress: bool | None = None,
) -> Iterator[YesNo]:
    """Ask many yes/no questions in sequence; an image shared by consecutive ones is encoded once.

    Args:
        probe: to query.
        requests: as for :meth:`Probe.generate_many`, without candidates; ``id`` and further columns are returned in
            ``meta``. An error names its request.
        yes, no: spellings of the two answers; the usual English ones if empty.
        progress: whether to show a progress bar; None shows one in a terminal and in Jupyter.
    """
    rows, total = rows_of(requests, "yes_no_many")
    remembers = isinstance(probe.engine, RemembersImages) and probe.engine.memory is None
    bar = tracking(progress, total, "questions", "questions")
    with bar as done, probe.session() if remembers else nullcontext(probe) as asked:
        for row, raw in enumerate(rows):
            with naming(row, id_of(raw)):
                request = request_of(raw)
                if request.candidates is not None:
                    raise MessageError("its candidates would not be scored, but yes= and no=: leave them out")
                said = asked.yes_no(request.question, request.image, yes=yes, no=no, **request.prompt_options)
                answer = carrying(said, request)
            yield answer
            done(1)


def reads_as_yes(text: str) -> bool:
    """How POPE parses a generated answer: no if its first sentence has the word no, No or not, else yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


@dataclass(frozen=True)
class YesNoReport(Viewed):
    """Confusion counts and metrics of N answers; yes is the positive class. Rates of nothing are NaN."""

    true_yes: int  # yes, and it is
    false_yes: int  # yes, and it is not: hallucinated
    true_no: int
    false_no: int
    auroc: float  # of the probability of yes against the labels; NaN without probabilities, or with one class only
    failed: int = 0  # requests that failed and are not among the N

    METRICS: ClassVar[tuple[str, ...]] = ("accuracy", "precision", "recall", "f1", "yes_rate", "auroc")

    @property
    def count(self) -> int:
        """N."""
        return self.true_yes + self.false_yes + self.true_no + self.false_no

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return _share(self.true_yes + self.true_no, self.count)

    @property
    def precision(self) -> float:
        """Share of yes answers that are right."""
        return _share(self.true_yes, self.true_yes + self.false_yes)

    @property
    def recall(self) -> float:
        """Share of the questions with label yes that are answered yes."""
        return _share(self.true_yes, self.true_yes + self.false_no)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return _share(2 * self.true_yes, 2 * self.true_yes + self.false_yes + self.false_no)

    @property
    def yes_rate(self) -> float:
        """Share of yes answers (POPE's yes ratio): far from the share of yes labels, the model is biased."""
        return _share(self.true_yes + self.false_yes, self.count)

    def metrics(self) -> dict[str, float]:
        """Every metric by its name."""
        return {name: float(getattr(self, name)) for name in self.METRICS}

    def plot(self, ax: Any = None) -> Any:
        """Every metric as a bar; marks are the share of yes labels, and the AUROC of chance.

        Returns the axes.
        """
        from vlmprobe.display.plots.yes_no import draw_poll

        marks = {"yes_rate": _share(self.true_yes + self.false_no, self.count), "auroc": 0.5}
        label = f"{self.count:,} questions\n◆ share whose answer is yes; AUROC of chance"
        return draw_poll(self.metrics(), marks, ax, label=label)

    def _overview(self) -> Overview:
        """Every metric, and the counts that they are computed from."""
        rows = [
            [name.replace("_", " "), DASH if np.isnan(value) else f"{value:.3f}"]
            for name, value in self.metrics().items()
        ]
        figures = [
            ("true yes", f"{self.true_yes:,}", "yes, and it is"),
            ("false yes", f"{self.false_yes:,}", "yes, and it is not"),
            ("true no", f"{self.true_no:,}", "no, and it is not"),
            ("false no", f"{self.false_no:,}", "no, and it is"),
        ]
        if self.failed:
            figures.append(("failed", f"{self.failed:,}", "requests that are not counted"))
        return Overview({f"{self.count:,} questions": "text", "": "number"}, rows, figures=figures)

    def __str__(self) -> str:
        named = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in self.metrics().items())
        return f"{self.count} questions{f' ({self.failed} failed)' if self.failed else ''}: {named}"


def report(answers: Iterable[YesNo | Result | Failure | str | bool], labels: Iterable[bool | str]) -> YesNoReport:
    """Compare N answers with their labels.

    Args:
        answers: of :func:`yes_no`, or generated ones, which are parsed as in POPE. Failures are left out and counted.
        labels: [N] booleans, or ``"yes"`` and ``"no"``.

    Raises:
        ResultError: for an invalid answer or label, or lists of different lengths.
    """
    said, right = list(answers), [_label(each) for each in labels]
    if len(said) != len(right):
        raise ResultError(f"answers and labels must have the same length, not {len(said)} and {len(right)}")
    given = len(said)
    answered = list(without_failures(said, right))
    said, right = [each for each, _ in answered], [label for _, label in answered]
    found = [_says_yes(each) for each in said]
    pairs = list(zip(found, right, strict=True))
    sure = np.array([each.probability if isinstance(each, YesNo) else np.nan for each in said])
    return YesNoReport(
        true_yes=pairs.count((True, True)),
        false_yes=pairs.count((True, False)),
        true_no=pairs.count((False, False)),
        false_no=pairs.count((False, True)),
        auroc=_auroc(sure, np.array(right, dtype=bool)),
        failed=given - len(said),
    )


def reports(
    answers: Iterable[YesNo | Result | Failure | str | bool], labels: Iterable[bool | str], groups: Iterable[str]
) -> dict[str, YesNoReport]:
    """One report for each group of questions (POPE's random, popular and adversarial ones), in order of appearance.

    Args:
        answers, labels: as in :func:`report`.
        groups: [N] the name of the group that each question belongs to.
    """
    said, right, names = list(answers), list(labels), list(groups)
    if not len(said) == len(right) == len(names):
        raise ResultError(
            f"answers, labels and groups must have the same length, not {len(said)}, {len(right)} and {len(names)}"
        )
    places = {name: [place for place, each in enumerate(names) if each == name] for name in dict.fromkeys(names)}
    return {name: report([said[place] for place in at], [right[place] for place in at]) for name, at in places.items()}


def frame(found: Mapping[str, YesNoReport]) -> DataFrame:
    """A ``pandas.DataFrame`` of reports by name: one row each, with its count and metrics."""
    rows = [{"count": each.count, **each.metrics()} for each in found.values()]
    return data_frame(rows, index=list(found), columns=["count", *YesNoReport.METRICS])


READERS: dict[type, Callable[[Any], bool]] = {
    YesNo: lambda answer: answer.says_yes,
    Result: lambda answer: reads_as_yes(answer.text),
    str: reads_as_yes,
    bool: bool,
    np.bool_: bool,
}


def _says_yes(answer: Any) -> bool:
    reader = next((read for kind, read in READERS.items() if isinstance(answer, kind)), None)
    if reader is None:
        raise ResultError(f"{answer!r} is not an answer: give what yes_no or generate returned, a text or a boolean")
    return reader(answer)


def _label(label: Any) -> bool:
    if isinstance(label, str) and label.strip().casefold() in ("yes", "no"):
        return label.strip().casefold() == "yes"
    if not isinstance(label, (bool, np.bool_)):
        raise ResultError(f"{label!r} is not a label: give booleans, or 'yes' and 'no'")
    return bool(label)


def _auroc(sure: np.ndarray, right: np.ndarray) -> float:
    from vlmprobe.analysis.calibration import auroc

    try:
        return float("nan") if np.isnan(sure).any() else auroc(sure, right)
    except CalibrationError:  # labels of one class only
        return float("nan")


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
