"""Several sampled answers to one question, and how far they agree.

The log-probabilities are those of the raw logits. The estimates below are of the model's own distribution over answers
if the samples come from it: temperature 1, no filter and no penalty, the default of :meth:`Probe.sample`. Under other
options ``samples.pure`` is False, and the estimates mix two distributions: answers sampled from one, weighted by
another (as Kuhn et al. 2023 do with temperature 0.5).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from vlmprobe.display.overview import Kind, Overview, Viewed
from vlmprobe.display.view import nats, tiny
from vlmprobe.errors import GenerationOptionError, ResultError
from vlmprobe.results.result import Result

__all__ = ["PURE", "Estimator", "Samples", "group", "sample"]

Estimator = Literal["normalised", "discrete", "kuhn"]
# Options that sample from the model's own distribution, whatever the checkpoint's generation config says.
PURE: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}


def sample(
    generate: Callable[..., Result], question: Any, image: Any = None, *, n: int = 10, seed: int = 0, **options: Any
) -> Samples:
    """Sample n answers to one question; answer i is that of ``generate(..., seed=seed + i)``.

    Args:
        generate: the method of a :class:`vlmprobe.Probe`.
        question, image: as in :meth:`Probe.generate`.
        n: number of answers, at least 2.
        seed: of the first answer.
        **options: of :meth:`Probe.generate`. Sampling is pure (:data:`PURE`) except for what is given here.

    Raises:
        ResultError: for n below 2.
        GenerationOptionError: for options that do not sample, or that :meth:`Probe.generate` rejects.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 2:
        raise ResultError(f"n must be an integer of at least 2, the fewest answers that can agree, not {n!r}")
    if options.get("do_sample", True) is not True or (options.get("num_beams") or 1) != 1:
        raise GenerationOptionError("sample draws its answers: leave out do_sample and num_beams, or call generate")
    options = {**PURE, "prompt": False, **options, "do_sample": True}
    results = [generate(question, image=image, seed=seed + place, **options) for place in range(n)]
    return Samples(tuple(results))


@dataclass(frozen=True, eq=False)
class Samples(Viewed):
    """n answers to one question. Numbers are in nats, of raw log-probabilities, end tokens included."""

    results: tuple[Result, ...]  # [n]

    def __post_init__(self) -> None:
        if len(self.results) < 2:
            raise ResultError(f"Samples needs at least 2 answers, not {len(self.results)}")

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    @cached_property
    def texts(self) -> list[str]:
        """[n] the answers."""
        return [result.text for result in self.results]

    @cached_property
    def logprobs(self) -> np.ndarray:
        """float64 [n], nats: log-probability of each answer; NaN where an engine did not send that of every token."""
        return np.array([result.output.logprob for result in self.results])

    @cached_property
    def means(self) -> np.ndarray:
        """float64 [n], nats per token."""
        return self.logprobs / np.array([int(result.output.scored.sum()) for result in self.results])

    @property
    def pure(self) -> bool:
        """Whether the answers were sampled from the raw distribution, so that ``scores`` is None."""
        return all(result.output.scores is None for result in self.results)

    def groups(
        self,
        key: Callable[[str], Hashable] | None = None,
        *,
        same: Callable[[str, str], bool] | None = None,
    ) -> np.ndarray:
        """int64 [n]: the meaning of each answer, numbered in order of appearance. See :func:`group`."""
        return group(self.texts, key, same=same)

    def agreement(self, groups: Sequence[int] | np.ndarray | None = None) -> float:
        """Share of the answers that have the most common meaning (self-consistency: Wang et al. 2023).

        Args:
            groups: int [n], from :meth:`groups`; answers with the same text if None.
        """
        return Counter(self._labels(groups).tolist()).most_common(1)[0][1] / len(self)

    def most_common(self, groups: Sequence[int] | np.ndarray | None = None) -> Result:
        """The likeliest answer of the most common meaning; among tied meanings, the likeliest of all."""
        labels = self._labels(groups)
        counts = np.bincount(labels)
        at = np.flatnonzero(counts[labels] == counts.max())
        return self.results[int(at[np.argmax(np.nan_to_num(self.logprobs[at], nan=-np.inf))])]

    def predictive_entropy(self, *, normalised: bool = False) -> float:
        """Entropy of the distribution over whole answers, estimated as the mean of their surprisals, nats.

        The Monte Carlo estimate of Malinin & Gales 2021 and Kuhn et al. 2023; its standard error is
        :meth:`standard_error`.

        Args:
            normalised: divide each answer's surprisal by its number of tokens.
        """
        return float(-(self.means if normalised else self.logprobs).mean())

    def standard_error(self, *, normalised: bool = False) -> float:
        """Standard error of :meth:`predictive_entropy`, nats."""
        return float((self.means if normalised else self.logprobs).std(ddof=1) / np.sqrt(len(self)))

    def semantic_entropy(
        self,
        groups: Sequence[int] | np.ndarray | None = None,
        *,
        estimator: Estimator = "normalised",
        normalised: bool = False,
    ) -> float:
        """Entropy of the distribution over meanings, nats.

        NaN, except for ``"discrete"``, if the log-probability of an answer is not known.

        Args:
            groups: int [n], from :meth:`groups`; answers with the same text are one meaning if None.
            estimator: ``"normalised"`` sums the probabilities of the distinct answers of each meaning and normalises
                the sums (Farquhar et al. 2024); ``"discrete"`` uses the frequency of each meaning (same paper) and
                needs no probabilities; ``"kuhn"`` is the mean of ``-log p(meaning)`` over the meanings (Kuhn et al.
                2023, equation 5). An answer sampled twice counts once in a sum.
            normalised: use each answer's mean log-probability in place of its sum.
        """
        labels = self._labels(groups)
        if estimator == "discrete":
            return _entropy(np.bincount(labels) / len(self))
        if estimator not in ("normalised", "kuhn"):
            raise ResultError(f"estimator must be 'normalised', 'discrete' or 'kuhn', not {estimator!r}")
        values = self.means if normalised else self.logprobs
        if np.isnan(values).any():
            return float("nan")
        logs = self._logprobs_of(labels, values)
        if estimator == "kuhn":
            return float(-logs.mean())
        return _entropy(np.exp(logs - np.logaddexp.reduce(logs)))

    def mass(self) -> float:
        """Total probability of the distinct answers: how much of the distribution the samples cover."""
        known = not np.isnan(self.logprobs).any()
        return float(np.exp(np.logaddexp.reduce(self.logprobs[self._different()]))) if known else float("nan")

    def plot(self, ax: Any = None, *, groups: Sequence[int] | np.ndarray | None = None, most: int = 12) -> Any:
        """Frequency of each meaning as bars, beside the probability of its answers.

        The probability is that of the distinct sampled answers under the raw distribution: a part of all answers of
        the meaning. If the samples are pure, the bar estimates the whole.

        Args:
            ax: axes to draw on.
            groups: int [n], from :meth:`groups`; answers with the same text are one meaning if None.
            most: how many meanings to draw, the most common first; the others share one bar.

        Returns:
            The axes.
        """
        from vlmprobe.display.plots.samples import draw_samples

        answers, counts, logprobs = self._meanings(groups)
        return draw_samples(answers, counts, logprobs, ax, most=most, title=self._question)

    def _overview(self) -> Overview:
        """The different answers, the most common first, with how often each was drawn and how probable it is."""
        answers, counts, logprobs = self._meanings(None)
        rows = [
            [
                answers[at].strip() or "(nothing)",
                counts[at] / len(self),
                f"{counts[at]} of {len(self)}",
                tiny(logprobs[at]),
            ]
            for at in np.lexsort((-logprobs, -counts)).tolist()
        ]
        pure = "" if self.pure else "; not sampled from the model's own distribution, so this mixes two"
        figures = [
            ("agreement", f"{self.agreement():.2f}", "share of the most common answer"),
            ("semantic entropy", f"{nats(self.semantic_entropy())} nats", f"over answers of different text{pure}"),
            ("predictive entropy", f"{nats(self.predictive_entropy())} nats", f"over whole answers{pure}"),
            ("mass", tiny(float(np.log(self.mass()))), "probability of all these answers together"),
        ]
        columns: dict[str, Kind] = {"answer": "text", "share": "share", "samples": "number", "probability": "number"}
        return Overview(columns, rows, self._question, figures)

    @property
    def _question(self) -> str:
        return str(self.results[0].meta.get("question") or "")

    def _meanings(self, groups: Sequence[int] | np.ndarray | None) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Of each of G meanings: its likeliest text, int64 [G] count, and float64 [G] log-probability."""
        labels = self._labels(groups)
        places = range(int(labels.max()) + 1)
        likeliest = [max(np.flatnonzero(labels == each).tolist(), key=lambda at: self.logprobs[at]) for each in places]
        return [self.texts[at] for at in likeliest], np.bincount(labels), self._logprobs_of(labels, self.logprobs)

    def __repr__(self) -> str:
        common = Counter(self.texts).most_common(1)[0]
        return f"Samples({len(self)} answers, {common[1]} of them {common[0][:60]!r})"

    def _logprobs_of(self, labels: np.ndarray, values: np.ndarray) -> np.ndarray:
        """float64 [G], nats: of each meaning, summed over its distinct answers."""
        different = self._different()
        return np.array(
            [np.logaddexp.reduce(values[different & (labels == each)], initial=-np.inf) for each in np.unique(labels)]
        )

    def _different(self) -> np.ndarray:
        """bool [n]: the first occurrence of each token sequence."""
        seen: set[tuple[Any, ...]] = set()
        first = []
        for result in self.results:
            sequence = tuple(result.output.tokens if result.output.ids is None else result.output.ids.tolist())
            first.append(sequence not in seen)
            seen.add(sequence)
        return np.array(first)

    def _labels(self, groups: Sequence[int] | np.ndarray | None) -> np.ndarray:
        if groups is None:
            return self.groups()
        labels = np.asarray(groups)
        if labels.shape != (len(self),):
            raise ResultError(f"groups has shape {labels.shape}; give one label for each of the {len(self)} answers")
        return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def group(
    texts: Sequence[str],
    key: Callable[[str], Hashable] | None = None,
    *,
    same: Callable[[str, str], bool] | None = None,
) -> np.ndarray:
    """Group texts by meaning.

    Args:
        texts: [n].
        key: maps a text to its meaning, such as ``str.casefold`` or a function that extracts a number; texts with equal
            keys are one meaning. Without ``key`` and ``same``, the stripped text.
        same: whether two texts mean the same, such as bidirectional entailment by another model. Each text is compared
            with the first text of every meaning so far, and joins the first that matches (Kuhn et al. 2023).

    Returns:
        int64 [n], the meaning of each text, numbered in order of appearance.
    """
    if key is not None and same is not None:
        raise ResultError("give key= (equal keys are one meaning) or same= (a comparison of two texts), not both")
    labels: list[int] = []
    if same is None:
        found: dict[Hashable, int] = {}
        key = key or str.strip
        labels = [found.setdefault(key(text), len(found)) for text in texts]
    else:
        firsts: list[str] = []
        for text in texts:
            place = next((place for place, first in enumerate(firsts) if same(first, text)), len(firsts))
            if place == len(firsts):
                firsts.append(text)
            labels.append(place)
    return np.array(labels, dtype=np.int64)


def _entropy(probabilities: np.ndarray) -> float:
    held = probabilities[probabilities > 0]
    return float(-(held * np.log(held)).sum())
