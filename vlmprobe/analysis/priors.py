"""Priors of a model among listed answers: estimated from what says nothing about the right one, and taken off.

A model may favour an answer, a letter or a place in a list, whatever the image shows. Each function here estimates that
as a :class:`Prior`, float64 [G] over G candidates, which is then called with an answer: observed / prior, renormalised.
No labels are needed. What none can tell is a prior from a fact: where one answer is right more often than the others,
the prior of a batch holds that, too, and taking it off does harm. Check it on questions with known answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from PIL.Image import Image

from vlmprobe.analysis.confidences import CalibrationError, ListedAnswer, probabilities_of
from vlmprobe.analysis.failures import results_in, without_failures
from vlmprobe.analysis.image_variants import blank, exchanged, variant
from vlmprobe.errors import CapabilityError
from vlmprobe.inputs.messages import Prompt
from vlmprobe.inputs.prompt_format import PromptOptions
from vlmprobe.results.choices import read_only
from vlmprobe.results.failure import Failure
from vlmprobe.results.frame import DataFrame, data_frame
from vlmprobe.results.result import Scores

if TYPE_CHECKING:
    from vlmprobe.probe import Probe

__all__ = ["Adjusted", "Prior", "blank_answers", "from_batch", "from_blanks", "from_orders", "over_orders", "taken_off"]

GREY = (128, 128, 128)
LEAST = 1e-10  # below which a probability does not count, as in the code of Zheng et al.


@dataclass(frozen=True, eq=False, repr=False)
class Adjusted:
    """An answer among G candidates after a prior was taken off; it goes where scores go: confidences, gates, sets."""

    candidates: list[str]  # [G]
    probabilities: np.ndarray  # float64 [G], sum 1
    before: np.ndarray  # float64 [G], as observed
    prior: np.ndarray  # float64 [G], taken off
    meta: dict[str, Any] = field(default_factory=dict)  # of the answer

    @property
    def best(self) -> str:
        """The likeliest candidate."""
        return self.candidates[int(self.probabilities.argmax())]

    def to_pandas(self) -> DataFrame:
        """A ``pandas.DataFrame``, one row per candidate: its probability, that before, and its prior."""
        columns = {"probability": self.probabilities, "before": self.before, "prior": self.prior}
        return data_frame({"candidate": self.candidates, **columns})

    def plot(self, ax: Any = None) -> Any:
        """Probabilities as bars, the likeliest on top; marks are those before. Returns the axes."""
        from vlmprobe.display.plots.scores import draw_adjusted

        return draw_adjusted(self.candidates, self.probabilities, self.before, ax)

    def __repr__(self) -> str:
        return f"Adjusted({_listed(self.candidates, self.probabilities)}; before {self.before[_first(self)]:.3f})"


@dataclass(frozen=True, eq=False, repr=False)
class Prior:
    """What a model favours among G candidates, whatever it is asked about; calling it takes it off an answer."""

    candidates: list[str]  # [G]
    probabilities: np.ndarray  # float64 [G], sum 1
    answers: int  # that it was estimated from; questions, if each was asked in several orders
    source: str  # the method

    def __call__(self, answer: ListedAnswer) -> Adjusted:
        """The answer's distribution divided by the prior, and renormalised.

        Args:
            answer: among the candidates of the prior, in any order.

        Raises:
            CalibrationError: for other candidates, or one without a probability.
        """
        before = probabilities_of(answer)
        prior = self.probabilities[_places(self.candidates, answer.candidates, "the answer")]
        return Adjusted(
            candidates=list(answer.candidates),
            probabilities=read_only(taken_off(before, prior)),
            before=read_only(before.copy()),
            prior=read_only(prior),
            meta=getattr(answer, "meta", {}),
        )

    def to_pandas(self) -> DataFrame:
        """A ``pandas.DataFrame``, one row per candidate."""
        return data_frame({"candidate": self.candidates, "prior": self.probabilities})

    def plot(self, ax: Any = None) -> Any:
        """The prior as bars; marks are the uniform one, which changes nothing. Returns the axes."""
        from vlmprobe.display.plots.scores import draw_adjusted

        even = np.full(len(self.candidates), 1 / len(self.candidates))
        return draw_adjusted(self.candidates, self.probabilities, even, ax, label="prior", marks="an even one")

    def __repr__(self) -> str:
        return f"Prior({_listed(self.candidates, self.probabilities)}; {self.source}, {self.answers} answers)"


def from_blanks(answers: Iterable[ListedAnswer | Failure]) -> Prior:
    """Contextual calibration (Zhao, Wallace, Feng, Klein & Singh 2021, "Calibrate Before Use"): the mean of the answers
    to content-free inputs, which :func:`blank_answers` asks for.

    The authors divide by it and take the greatest; renormalising, as a :class:`Prior` does, keeps that order.

    Args:
        answers: of one question and the same candidates, without anything in the input that could answer it.

    Raises:
        CalibrationError: without an answer, or for one with other candidates, or without a probability for one.
    """
    return _mean(answers, "contextual calibration", "from_blanks")


def from_batch(answers: Iterable[ListedAnswer | Failure]) -> Prior:
    """Batch calibration (Zhou, Wan, Proleev, Mincu, Chen, Heller & Roy 2024): the mean of the answers to a batch.

    It supposes that every candidate is right about equally often in the batch.

    Args:
        answers: N answers among the same candidates, to one question about N images, say.

    Raises:
        CalibrationError: as :func:`from_blanks`.
    """
    return _mean(answers, "batch calibration", "from_batch")


def from_orders(probabilities: Any, ids: Sequence[str] | None = None) -> Prior:
    """PriDe (Zheng, Zhou, Meng, Zhou & Huang 2024, "Large Language Models Are Not Robust Multiple Choice Selectors"):
    the prior of option IDs (A, B, C), from a few questions asked with their options in every cyclic order.

    Over these orders each content stands once at each ID, so that in the mean log-probability of an ID only the prior
    is left; its softmax is the prior of one question, and their mean over K questions is that of the others. The K
    questions themselves need none: :func:`over_orders`.

    Args:
        probabilities: [K, R, G], or [R, G] of one question: of ID g where the options stand in order r; R is G for the
            cyclic orders, or the number of any orders in which each option stands at each ID equally often.
        ids: [G] the names of the IDs; letters if None.

    Raises:
        CalibrationError: for another shape, or what is no probability.
    """
    found = _orders(probabilities)
    logs = np.log(np.maximum(found, LEAST)).mean(axis=1)  # [K, G]
    each = np.exp(logs - logs.max(axis=1, keepdims=True))
    prior = (each / each.sum(axis=1, keepdims=True)).mean(axis=0)
    names = list(ascii_uppercase[: len(prior)] if ids is None else ids)
    if len(names) != len(prior):
        raise CalibrationError(f"there are {len(prior)} IDs, and {len(names)} names: {names}")
    return Prior(names, read_only(prior / prior.sum()), len(found), "PriDe")


def over_orders(probabilities: Any, orders: Sequence[Sequence[int]] | None = None) -> np.ndarray:
    """Mean probability of each option over the orders that it was asked in, float64 [K, G], or [G] of one question.

    Args:
        probabilities: [K, R, G] or [R, G], as in :func:`from_orders`.
        orders: [R, G] the option that stands at each ID: ``(1, 2, 0)`` puts option 1 first. None is the cyclic orders
            ``(0, 1, 2), (1, 2, 0), (2, 0, 1)``.

    Raises:
        CalibrationError: for another shape, or an order that is no permutation.
    """
    found = _orders(probabilities)
    rows, count = found.shape[1:]
    if orders is None and rows != count:
        raise CalibrationError(f"{count} options have {count} cyclic orders, not {rows}: pass orders=")
    cyclic = (np.arange(count)[:, None] + np.arange(count)) % count
    stands = cyclic if orders is None else np.asarray(orders)
    if stands.shape != (rows, count) or not (np.sort(stands, axis=1) == np.arange(count)).all():
        raise CalibrationError(f"orders must hold {rows} permutations of 0 to {count - 1}")
    mean = np.take_along_axis(found, np.argsort(stands, axis=1)[None], axis=2).mean(axis=1)
    return mean if np.ndim(probabilities) == 3 else mean[0]


def taken_off(probabilities: Any, prior: Any) -> np.ndarray:
    """Distributions [..., G] divided by a prior [G] and renormalised, float64 [..., G].

    Raises:
        CalibrationError: for a prior that gives nothing to a candidate, of which no answer could then be judged.
    """
    observed, favoured = np.asarray(probabilities, dtype=np.float64), np.asarray(prior, dtype=np.float64)
    if not (favoured > LEAST).all():
        raise CalibrationError(f"the prior gives candidate {int(favoured.argmin())} no probability: {favoured}")
    quotient = observed / favoured
    return quotient / quotient.sum(axis=-1, keepdims=True)


def blank_answers(
    probe: Probe,
    question: Prompt,
    candidates: Sequence[str] | Mapping[str, Sequence[str]],
    image: Any = None,
    *,
    against: Sequence[Any] = ("grey",),
    **prompt: Unpack[PromptOptions],
) -> list[Scores]:
    """Ask a question about images that show nothing: what the model answers to the text alone.

    Args:
        probe: to query.
        question, candidates, image: as in :meth:`Probe.score`.
        against: what takes the place of every image, one answer each: ``"grey"``, of the same size; ``"none"``, no
            image, if the model can do without; ``"noise"`` and the other names of
            :data:`vlmprobe.analysis.image_variants.VARIANTS`, of which those that keep colours (``"blank"``,
            ``"blur"``) are not free of content; or any image.
        **prompt: :class:`~vlmprobe.PromptOptions`.

    Raises:
        CapabilityError: without an image; for ``"none"`` with a model that needs one.
        MessageError: for an unknown name.
    """
    conversation = probe.conversation(question, image, **prompt)
    if not conversation.images:
        raise CapabilityError("There is no image to leave blank: pass image=, or messages with an image in them.")
    listed = [against] if isinstance(against, (str, Image)) else list(against)
    found = []
    for each in listed:
        put = {place: _blank(shown, each) for place, shown in enumerate(conversation.images)}
        asked: Any = exchanged(conversation, put)
        found.append(probe.score(asked, candidates, []))
    return found


def _blank(image: Image, wanted: Any) -> Image | None:
    return blank(image, GREY) if isinstance(wanted, str) and wanted == "grey" else variant(image, wanted)


def _mean(answers: Iterable[Any], source: str, caller: str) -> Prior:
    """The mean distribution of answers among the same candidates."""
    given = list(without_failures(results_in(answers, caller)))
    if not given:
        raise CalibrationError(f"{caller} needs at least one answer")
    names = list(given[0].candidates)
    rows = []
    for place, each in enumerate(given):
        found = probabilities_of(each, f"answer {place}")
        rows.append(found[_places(each.candidates, names, f"answer {place}")])
    mean = np.mean(rows, axis=0)
    return Prior(names, read_only(mean / mean.sum()), len(rows), source)


def _places(listed: Sequence[str], wanted: Sequence[str], where: str) -> list[int]:
    """Indices [G] of the wanted candidates among those listed."""
    if sorted(listed) != sorted(wanted):
        raise CalibrationError(f"{where} has other candidates: {list(wanted)} and {list(listed)}")
    return [list(listed).index(each) for each in wanted]


def _orders(probabilities: Any) -> np.ndarray:
    """float64 [K, R, G], each row with the sum 1."""
    found = np.asarray(probabilities, dtype=np.float64)
    found = found[None] if found.ndim == 2 else found
    if found.ndim != 3 or not found.size:
        raise CalibrationError(f"probabilities must be [questions, orders, IDs], not {np.shape(probabilities)}")
    if not (np.isfinite(found).all() and (found >= 0).all() and (found.sum(axis=2) > 0).all()):
        raise CalibrationError("probabilities must be numbers of at least 0, and not all 0 in any order")
    return found / found.sum(axis=2, keepdims=True)


def _first(answer: Adjusted) -> int:
    return int(answer.probabilities.argmax())


def _listed(candidates: Sequence[str], probabilities: np.ndarray) -> str:
    order = np.argsort(-probabilities, kind="stable")
    shown = ", ".join(f"{candidates[place]!r} {probabilities[place]:.3f}" for place in order[:3])
    return shown + (", ..." if len(candidates) > 3 else "")
