"""Typed answers of ``Probe.ask``: a choice, a rating on an ordered scale, and the answers to several questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from vlmprobe.display.overview import Overview, Viewed
from vlmprobe.display.view import percent
from vlmprobe.errors import ResultError
from vlmprobe.results.frame import DataFrame, data_frame
from vlmprobe.results.grouped import Answer, YesNo
from vlmprobe.results.saved import Saved
from vlmprobe.results.written import written

__all__ = ["Answer", "Answers", "Choice", "Rating", "YesNo"]


@dataclass(frozen=True, eq=False, repr=False)
class Choice(Answer):
    """Which of N options: ``candidates`` are the options, in the order given.

    Asked in several orders, ``logprobs`` are of the probabilities averaged over the orders, and ``spellings`` and
    ``tables`` those of the first order.
    """

    orders: list[list[int]] = field(kw_only=True, default_factory=list)  # [O][N] which option had which letter
    by_order: np.ndarray | None = field(kw_only=True, default=None)  # float64 [O, N], nats, of the options, in each

    def _summed(self) -> np.ndarray:
        if self.by_order is None:
            return super()._summed()
        masses = np.exp(np.logaddexp.reduce(self.by_order, axis=1))
        averaged: np.ndarray = np.log(self._shares.mean(axis=0)) + np.log(masses.mean())
        return averaged

    @property
    def _shares(self) -> np.ndarray:
        """float64 [O, N] probabilities among the options, in each order."""
        if self.by_order is None:
            return self.probabilities[None]
        return np.exp(self.by_order - np.logaddexp.reduce(self.by_order, axis=1)[:, None])

    @property
    def spread(self) -> np.ndarray:
        """float64 [N]: how far the probability of each option varies over the orders, greatest minus least.

        NaN if the options were asked in one order.
        """
        if self.by_order is None:
            return np.full(len(self.candidates), np.nan)
        return np.ptp(self._shares, axis=0)

    @property
    def _together(self) -> str:
        return f"the {len(self.candidates)} options together hold"

    @property
    def note(self) -> str:
        """One sentence if the options hold little of what the model would say, one if several orders were asked."""
        if self.by_order is None:
            return super().note
        told = f"Averaged over {len(self.by_order)} orders of the options, between which a probability varies by up to "
        return " ".join(filter(None, [super().note, f"{told}{np.nanmax(self.spread):.2f}."]))

    def to_pandas(self) -> DataFrame:
        """A ``pandas.DataFrame``, one row per option, in order: its log-probability (nats), its probability among the
        options, and its spread over the orders. ``spellings.to_pandas()`` has the spellings."""
        columns = {"logprob": self.logprobs, "probability": self.probabilities, "spread": self.spread}
        return data_frame({"option": self.candidates, **columns})

    def _more(self) -> dict[str, Any]:
        by_order = None if self.by_order is None else self.by_order.tolist()
        return super()._more() | {"orders": self.orders, "by_order": by_order}

    @classmethod
    def _read(cls, groups: dict[str, Any]) -> dict[str, Any]:
        by_order = groups["by_order"]
        shape = (len(groups["orders"]), len(groups["names"]))
        found = None if by_order is None else np.array(by_order, dtype=np.float64)
        if found is not None and found.shape != shape:
            raise ValueError("its orders do not fit its candidates")
        return super()._read(groups) | {"orders": groups["orders"], "by_order": found}


@dataclass(frozen=True, eq=False, repr=False)
class Rating(Choice):
    """How much, on an ordered scale of N levels: ``candidates`` are the levels, from one end to the other."""

    values: np.ndarray = field(kw_only=True)  # float64 [N], of the levels: numbers their own, texts 1 to N

    @property
    def expected(self) -> float:
        """The mean level: values weighted by the probabilities of the levels."""
        return float(np.nansum(self.probabilities * self.values))

    @property
    def std(self) -> float:
        """Standard deviation of the level."""
        return float(np.sqrt(np.nansum(self.probabilities * (self.values - self.expected) ** 2)))

    @property
    def mode(self) -> float:
        """Value of the likeliest level; ``best`` is its name."""
        return float(self.values[int(np.nanargmax(self.probabilities))])

    @property
    def said(self) -> str:
        """The mean level and its standard deviation: ``"3.4 of 5 (± 0.7)"``; of levels that are texts the likeliest
        one first."""
        low, high = float(self.values.min()), float(self.values.max())
        scale = f"of {high:g}" if low in (0, 1) else f"between {low:g} and {high:g}"
        mean = f"{_rounded(self.expected, high - low)} {scale} (± {_rounded(self.std, high - low)})"
        return mean if self._numbers else f"{self.best}, {mean}"

    @property
    def _numbers(self) -> bool:
        """Whether the levels are numbers."""
        return all(_reads_as(name, value) for name, value in zip(self.candidates, self.values.tolist(), strict=True))

    @property
    def _together(self) -> str:
        return f"the {len(self.candidates)} levels together hold"

    def plot(self, ax: Any = None, *, most: int = 26) -> Any:
        """Probability of each level as a bar, in the order of the scale. Returns the axes.

        Args:
            ax: axes to draw on.
            most: how many levels may be drawn.

        Raises:
            ResultError: for more levels.
        """
        from vlmprobe.display.plots.answers import draw_rating

        if len(self.candidates) > most:
            raise ResultError(f"{len(self.candidates)} levels do not fit: pass most= to draw them all the same")
        title = str(self.meta.get("question") or "")
        return draw_rating(self.candidates, self.probabilities, self.said, ax, title=title, mass=self.mass)

    def to_pandas(self) -> DataFrame:
        """A ``pandas.DataFrame`` as that of a choice, with the value of each level."""
        frame = super().to_pandas().rename(columns={"option": "level"})
        frame.insert(1, "value", self.values)
        return frame

    def _document(self) -> dict[str, Any]:
        figures = {"expected": self.expected, "std": self.std, "mode": self.mode, "values": self.values}
        return super()._document() | figures

    def _more(self) -> dict[str, Any]:
        return super()._more() | {"values": self.values.tolist()}

    @classmethod
    def _read(cls, groups: dict[str, Any]) -> dict[str, Any]:
        values = np.array(groups["values"], dtype=np.float64)
        if len(values) != len(groups["names"]):
            raise ValueError("its values do not fit its candidates")
        return super()._read(groups) | {"values": values}


KINDS: dict[str, type[Answer]] = {each.__name__: each for each in (YesNo, Choice, Rating)}


@dataclass(frozen=True, eq=False, repr=False)
class Answers(Viewed, Saved, Mapping[str, Answer]):
    """The answers to several questions by their names, in the order asked."""

    answers: Mapping[str, Answer]

    def __getitem__(self, name: str) -> Answer:
        try:
            return self.answers[name]
        except KeyError:
            raise KeyError(f"{name!r}; the questions are {', '.join(map(repr, self.answers))}") from None

    def __contains__(self, name: object) -> bool:
        return name in self.answers

    def __iter__(self) -> Iterator[str]:
        return iter(self.answers)

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def meta(self) -> dict[str, Any]:
        """``meta`` of the first answer, without its question, its name and its thought."""
        first = next(iter(self.values())).meta
        return {name: value for name, value in first.items() if name not in ("question", "id", "thought")}

    @property
    def images(self) -> tuple[Any, ...]:
        """The images of the first answer, downscaled for display."""
        return next(iter(self.values())).images

    def at(self, threshold: Any) -> dict[str, str]:
        """By question: the likeliest answer if its probability reaches a threshold, else ``"unsure"``."""
        return {name: each.at(threshold) for name, each in self.items()}

    def to_pandas(self) -> DataFrame:
        """A ``pandas.DataFrame``, one row per question: its name, the question, the kind of answer, the likeliest
        answer, its probability among the answers, mean and standard deviation of a rating, and mass; after thoughts
        also their tokens, the mean probability of these (geometric), and how they ended."""
        thoughtful = any(each.thought is not None for each in self.values())
        rows = [
            {
                "name": name,
                "question": each.meta.get("question"),
                "kind": type(each).__name__,
                "answer": each.best,
                "probability": _best_share(each),
                "expected": each.expected if isinstance(each, Rating) else np.nan,
                "std": each.std if isinstance(each, Rating) else np.nan,
                "mass": each.mass,
                **(_thought_of(each) if thoughtful else {}),
            }
            for name, each in self.items()
        ]
        return data_frame(rows)

    def plot(self, ax: Any = None) -> Any:
        """The probability of the likeliest answer to each question as a bar, beside what it says. Returns the axes.

        Args:
            ax: axes to draw on.
        """
        from vlmprobe.display.plots.answers import draw_answers

        names = [f"{name}: {_without_share(each)}" for name, each in self.items()]
        return draw_answers(names, np.array([_best_share(each) for each in self.values()]), ax)

    def _overview(self) -> Overview:
        rows = [
            [
                *(name, _without_share(each), _best_share(each), percent(each.mass)),
                *("" if each.thought is None else each.thought.told.removeprefix("thought of "), each.note),
            ]
            for name, each in self.items()
        ]
        columns = {"question": "text", "answer": "text", "probability": "share", "mass": "number"}
        columns |= {"thought": "text", "note": "text"}
        shown = [place for place in range(len(columns)) if place < 4 or any(row[place] for row in rows)]
        return Overview(
            {name: kind for place, (name, kind) in enumerate(columns.items()) if place in shown},  # type: ignore[misc]
            [[row[place] for place in shown] for row in rows],
            images=self.images,
        )

    @overload
    def to_html(self, path: None = ...) -> str: ...
    @overload
    def to_html(self, path: str | Path) -> Path: ...
    def to_html(self, path: str | Path | None = None) -> str | Path:
        """One self-contained HTML page of all answers, or the path of the file that it is written to.

        Raises:
            ResultError: for a ``path`` that holds something else than HTML.
        """
        from vlmprobe.display.html import page

        return written(page(list(self.values())), path, "html")

    def _document(self) -> dict[str, Any]:
        return {name: each.to_dict() for name, each in self.items()}

    def _parts(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays: dict[str, np.ndarray] = {}
        documents = []
        for place, (name, each) in enumerate(self.items()):
            own, document = each._parts()
            arrays |= {f"{place}/{key}": array for key, array in own.items()}
            documents.append(document | {"name": name, "type": type(each).__name__})
        return arrays, {"answers": documents, "meta": {}}

    @classmethod
    def _from_parts(cls, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> Answers:
        found: dict[str, Answer] = {}
        for place, each in enumerate(document["answers"]):
            head = f"{place}/"
            own = {key.removeprefix(head): array for key, array in arrays.items() if key.startswith(head)}
            found[each["name"]] = KINDS[each["type"]]._from_parts(own, each)  # type: ignore[assignment]
        if not found:
            raise ResultError("it has no answers")
        return cls(found)

    def __str__(self) -> str:
        return "\n".join(f"{name}: {each}" for name, each in self.items())

    def __repr__(self) -> str:
        return f"Answers({', '.join(f'{name}: {each}' for name, each in self.items())})"


def _best_share(answer: Answer) -> float:
    return float(np.nanmax(answer.probabilities))


def _thought_of(answer: Answer) -> dict[str, Any]:
    thought = answer.thought
    if thought is None:
        return {"thought_tokens": 0, "thought_confidence": np.nan, "thought_ended": None}
    return {
        "thought_tokens": len(thought),
        "thought_confidence": thought.mean_confidence,
        "thought_ended": thought.ended,
    }


def _without_share(answer: Answer) -> str:
    """What an answer says, where its probability stands beside it."""
    return answer.said if isinstance(answer, Rating) else answer.best


def _rounded(value: float, scale: float) -> str:
    """A number with as many decimals as its scale deserves: one, two if it is short, none if it is long."""
    return f"{value:.{0 if scale > 50 else 1 if scale > 2 else 2}f}"


def _reads_as(name: str, value: float) -> bool:
    try:
        return float(name) == value
    except ValueError:
        return False
