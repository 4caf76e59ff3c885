"""What HTML and terminal share: levels of confidence, formatting of numbers, alternatives."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmprobe.display.shown import ShownResult, ShownScores, ShownTable

__all__ = [
    "LEVELS",
    "LITTLE",
    "Alternative",
    "Row",
    "at_most",
    "counted",
    "figures",
    "held",
    "label",
    "least_sure",
    "level",
    "nats",
    "order",
    "percent",
    "plain",
    "positions",
    "provenance",
    "rows",
    "share",
    "short",
    "summed",
    "tiny",
]

LEVELS = (0.9, 0.7, 0.5, 0.3, 0.1, 0.03)  # level n holds the probabilities from LEVELS[n] up to LEVELS[n - 1]
LITTLE = 0.1  # of what a model would say: answers that hold less are not what it would say
PIECE = "◌"  # shown for a token without text of its own: part of a character, completed later
DASH = "–"

# Shown as text they would move the cursor, recolour a terminal, or reorder the words around them.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
LONG = 20  # tokens of an answer from which on several of its least sure ones are named
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Alternative:
    """A candidate token at one position."""

    label: str
    probability: float
    chosen: bool  # this is the chosen token


@dataclass(frozen=True)
class Row:
    """One token as displayed. Missing numbers are NaN."""

    index: int
    text: str  # for running text: safe characters, line breaks kept
    label: str  # for a table: white space and missing text made visible
    kind: str  # "text", "special" or "image"
    level: int | None  # 0 = sure ... len(LEVELS) = unsure; None without a probability; of a bound, if that is known
    probability: float
    logprob: float  # nats
    at_most: float  # nats: a bound of logprob where that is not known; NaN where it is, or nothing is
    first: bool  # of its sequence: there is no distribution before it
    rank: int  # 0 = the most likely token, -1 = undefined
    entropy: float  # nats
    score: float  # logprob after processors, nats; NaN where it is the same as logprob or unknown
    alternatives: tuple[Alternative, ...]  # likeliest first, the chosen token among them
    rest: float  # probability of everything that is not among the alternatives

    @property
    def bounded(self) -> bool:
        """Whether only a bound of the probability is known."""
        return math.isnan(self.logprob) and not math.isnan(self.at_most)

    @property
    def share(self) -> str:
        """The probability in percent, or its bound."""
        return at_most(math.exp(self.at_most)) if self.bounded else percent(self.probability)

    @property
    def nats(self) -> str:
        """The log-probability, or its bound."""
        return f"≤ {nats(self.at_most)}" if self.bounded else nats(self.logprob)


def counted(number: int, noun: str) -> str:
    """A number of things, of which the plural ends in s: ``1 token``, ``2,000 tokens``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def plain(text: str) -> str:
    """Text with control characters, bidirectional overrides and lone surrogates visible; breaks and tabs stay."""
    return UNSAFE.sub(_visible, text)


def label(text: str) -> str:
    """One line that names a token: outer spaces, line breaks and tabs made visible, never empty."""
    if not text:
        return PIECE
    inner = text.strip(" ")
    lead = len(text) - len(text.lstrip(" "))
    shown = "␣" * lead + inner + "␣" * (len(text) - lead - len(inner))
    return plain(shown.replace("\n", "↵").replace("\t", "⇥"))


def level(probability: float) -> int | None:
    """How unsure a probability is, from 0 (at least ``LEVELS[0]``) to ``len(LEVELS)``; None for NaN."""
    if math.isnan(probability):
        return None
    return next((place for place, bound in enumerate(LEVELS) if probability >= bound), len(LEVELS))


def percent(probability: float) -> str:
    """A probability in percent to one decimal; marked as inexact near 0 and 1."""
    if math.isnan(probability):
        return DASH
    if 0.9995 <= probability <= 1.0005:
        return ">99.9%"
    return "<0.1%" if probability < 0.0005 else f"{100 * probability:.1f}%"


def at_most(probability: float) -> str:
    """An upper bound of a probability, in percent."""
    return "≤ 100%" if probability >= 0.9995 else f"≤ {percent(probability).lstrip('<')}"


def nats(value: float) -> str:
    """A log-probability or entropy to about four digits, with a true minus sign and no negative zero."""
    if not math.isfinite(value):
        return DASH if math.isnan(value) else "∞" if value > 0 else "−∞"
    places = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    return f"{round(value, places) or 0.0:.{places}f}".replace("-", "−")


def tiny(logprob: float) -> str:
    """The probability ``exp(logprob)`` however small it is: in percent, or else as a power of ten."""
    if math.isnan(logprob) or logprob >= math.log(0.0005):
        return percent(math.exp(min(logprob, 0.0)))
    if math.isinf(logprob):
        return "0"
    exponent = math.floor(logprob / math.log(10))
    mantissa = f"{10 ** (logprob / math.log(10) - exponent):.1f}"
    if mantissa == "10.0":
        mantissa, exponent = "1.0", exponent + 1
    return f"{mantissa} × 10{str(exponent).translate(SUPERSCRIPTS)}"


def rows(table: ShownTable, alternatives: int = 5) -> list[Row]:
    """Every row of a table, ready to be shown, with at most ``alternatives`` likeliest tokens and the chosen one."""
    probabilities = np.exp(table.logprobs.astype(np.float64))
    tops = np.exp(table.top_logprobs[:, :alternatives].astype(np.float64))
    missing = np.full(len(table), np.nan)
    scores = missing if table.scores is None else table.scores
    bounds = missing if table.logprobs_at_most is None else table.logprobs_at_most
    shown = []
    for place, (token, kind) in enumerate(zip(table.tokens, table.kinds, strict=True)):
        probability = float(probabilities[place])
        choices = _alternatives(table, place, tops[place], probability)
        shown.append(
            Row(
                index=place,
                text=plain(token),
                label=label(token),
                kind=kind,
                level=level(float(np.exp(bounds[place])) if math.isnan(probability) else probability),
                probability=probability,
                logprob=float(table.logprobs[place]),
                at_most=float(bounds[place]),
                first=int(table.positions[place]) == 0,
                rank=int(table.ranks[place]),
                entropy=float(table.entropy[place]),
                score=float(scores[place]),
                alternatives=choices,
                rest=max(0.0, 1 - sum(each.probability for each in choices)) if choices else math.nan,
            )
        )
    return shown


def positions(table: ShownTable, row: int) -> tuple[int, int, int]:
    """Of an image row: the index of its image, its number of positions, and of contiguous runs."""
    start = int(table.positions[row])
    image = next((span.image for span in table.image_spans if span.start == start), table.kinds[:row].count("image"))
    runs = [span for span in table.image_spans if span.image == image]
    return image, sum(span.stop - span.start for span in runs), len(runs)


def least_sure(table: ShownTable) -> list[tuple[int, str, str]]:
    """The tokens of least probability, the least first: their places, texts and probabilities.

    Three of a long answer, else one; none if no token has a probability. A bounded probability counts as its bound.
    """
    logprobs, bounds = table.logprobs, table.logprobs_at_most
    values = logprobs if bounds is None else np.where(np.isnan(logprobs), bounds, logprobs)
    ascending = np.argsort(values, kind="stable")[: int((~np.isnan(values)).sum())]  # NaN come last
    return [
        (
            place,
            label(table.tokens[place].strip() or table.tokens[place]),
            ("≤ " if np.isnan(logprobs[place]) else "") + tiny(float(values[place])),
        )
        for place in ascending[: 1 if len(table) < LONG else 3].tolist()
    ]


def figures(result: ShownResult) -> list[tuple[str, str, str]]:
    """Summary metrics of an answer: name, value, and meaning.

    Those of all its tokens together are a dash where one of them is only bounded: without it they would be too high.
    """
    output = result.output
    logprob, perplexity = output.logprob, output.perplexity
    entropy = output.entropy[~np.isnan(output.entropy)]
    summary = [
        ("confidence", tiny(logprob), "probability of the whole answer given the prompt"),
        ("per token", percent(1 / perplexity), "mean probability of a token (geometric)"),
        ("perplexity", short(perplexity), "exp of the mean negative log-probability per token"),
        (
            "mean entropy",
            f"{nats(float(entropy.mean(dtype=np.float64)))} nats" if entropy.size else DASH,
            "of the distributions that the tokens were drawn from",
        ),
    ]
    if output.mass_allowed is not None:
        mass = float(np.log(output.mass_allowed[~np.isnan(output.mass_allowed)].astype(np.float64)).sum())
        summary.append(("would have obeyed", tiny(mass), "probability of drawing only what the constraint allowed"))
    summary.append(("tokens", f"{len(output):,}", "generated, the end token included"))
    if "finish_reason" in result.meta:
        summary.append(("finish", label(str(result.meta["finish_reason"])), "stop: an end; length: cut at the limit"))
    if worst := least_sure(output):
        several = "s" if len(worst) > 1 else ""
        where = f"at place{several} {', '.join(str(place) for place, _, _ in worst)}"
        shown = " · ".join(f"{token} {probability}" for _, token, probability in worst)
        summary.append(("least sure", shown, f"the token{several} of least probability, {where}"))
    return summary


def provenance(meta: Mapping[str, Any]) -> list[str]:
    """Where the numbers come from: model, adapter, dtype, device, as far as ``meta`` says."""
    return [label(str(meta[name])) for name in ("model", "adapter", "dtype", "device") if meta.get(name)]


def order(scores: ShownScores) -> list[int]:
    """Candidates by descending log-probability; those without a number last."""
    return [int(place) for place in np.argsort(-np.nan_to_num(scores.logprobs, nan=-np.inf), kind="stable")]


def summed(scores: ShownScores, place: int) -> str:
    """The log-probability of a candidate in nats, or its bound."""
    value, most = float(scores.logprobs[place]), float(scores.logprob_bounds[place, 1])
    return f"≤ {nats(most)}" if math.isnan(value) and not math.isnan(most) else nats(value)


def share(scores: ShownScores, place: int) -> str:
    """The probability of a candidate among the others in percent, or its bound."""
    value, most = float(scores.probabilities[place]), float(scores.probability_bounds[place, 1])
    return at_most(most) if math.isnan(value) and not math.isnan(most) else percent(value)


def held(scores: ShownScores) -> str:
    """What the candidates hold together, in percent; at least, if some of them are only bounded."""
    return f"{'at least ' if scores.bounded else ''}{percent(scores.mass)}"


def _alternatives(
    table: ShownTable, place: int, probabilities: np.ndarray, probability: float
) -> tuple[Alternative, ...]:
    found = [
        Alternative(label(table.top_tokens[place][k]), float(value), _is_chosen(table, place, k))
        for k, value in enumerate(probabilities)
        if not math.isnan(value)
    ]
    if found and not math.isnan(probability) and not any(each.chosen for each in found):
        found.append(Alternative(label(table.tokens[place]), probability, chosen=True))
    return tuple(found)


def _is_chosen(table: ShownTable, place: int, k: int) -> bool:
    return bool(table.ranks[place] == k if table.ids is None else table.top_ids[place, k] == table.ids[place])


def short(value: float) -> str:
    """A positive number in three digits, or whole with separators from 1,000 on."""
    if not math.isfinite(value):
        return DASH if math.isnan(value) else "∞"
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    return f"‹U+{code:04X}›"
