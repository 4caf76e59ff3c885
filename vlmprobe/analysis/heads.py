"""Heads on the model's hidden states: linear probes, value heads, and the head of a reward model.

The states are those of ``keep="hidden"``: the input of the LM head, after the final norm. Row t of a table belongs to
the position that token t was drawn from, one before the token itself; so ``output.hidden[0]`` is the state at the end
of the prompt, and :func:`answer_states` also has the one after the last token, which reward models read.

A linear probe (Alain & Bengio 2016) shows what is linearly decodable from a state, not that the model uses it
(Belinkov 2022): compare with control states, such as those of another layer, prompt or image.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vlmprobe.analysis.failures import without_failures
from vlmprobe.analysis.linear_head import LinearHead, load_head
from vlmprobe.engines.answer_ids import answer_ids
from vlmprobe.engines.base import ONE_STEP, Options, ScoresIds, require
from vlmprobe.errors import MissingExtraError, ResultError
from vlmprobe.inputs.messages import Prompt
from vlmprobe.results.result import Result
from vlmprobe.results.table import TokenTable

if TYPE_CHECKING:
    from vlmprobe.probe import Probe
    from vlmprobe.probe.failure import Failure

__all__ = ["LinearHead", "answer_states", "fit_probe", "fit_values", "load_head", "states"]


def states(
    results: Iterable[Result | Failure],
    row: int | Callable[[Result], int] = 0,
    side: Literal["output", "prompt"] = "output",
) -> np.ndarray:
    """One state per result, to fit a head on or to apply one to.

    Args:
        results: N, generated with ``keep="hidden"``; failures are left out.
        row: of the table, from the end if negative; a function of the result if rows differ.
        side: which table.

    Returns:
        float32 [N, H].

    Raises:
        ResultError: if a result has no states, no such row, or no state in it (an image, the first token).
    """
    found = []
    for place, result in enumerate(without_failures(results)):
        table: TokenTable | None = getattr(result, side)
        if table is None or table.hidden is None:
            raise ResultError(f"Result {place} has no states of its {side}: pass keep='hidden'.")
        at = row(result) if callable(row) else row
        if not -len(table) <= at < len(table):
            raise ResultError(f"Result {place} has no row {at} in its {side}, which has {len(table)}.")
        if np.isnan(table.hidden[at]).any():
            raise ResultError(
                f"Row {at} of the {side} of result {place} has no state: it is an image or the first token."
            )
        found.append(table.hidden[at])
    if not found:
        raise ResultError("There are no results to take states from.")
    if len({len(each) for each in found}) > 1:
        raise ResultError("The results are of models with states of different widths.")
    return np.stack(found)


def answer_states(
    probe: Probe, question: Prompt, image: Any = None, *, answer: str | Result | Sequence[int]
) -> np.ndarray:
    """The states at the end of the prompt and at each token of an answer, in one forward.

    Args:
        probe: whose model is read.
        question, image: as in :meth:`Probe.generate`.
        answer: a text, a result of this question about these images, or token ids; T tokens.

    Returns:
        float32 [T + 1, H]: row t is the state after t tokens of the answer; the last is that of the whole answer.

    Raises:
        MessageError: for an answer that has no tokens, merges with the end of the prompt, or is a result of another
            prompt or of other images.
        CapabilityError: for an engine that cannot run a given answer.
    """
    conversation = probe.conversation(question, image)
    options = Options(keep=frozenset({"hidden"}), alternatives=1, generation=ONE_STEP)
    probe.engine.check([conversation], options)
    score_ids = require(probe.engine, ScoresIds).score_ids
    ids = answer_ids(probe.engine, conversation, answer)
    # A table has the state that each token is drawn from: one extra token yields the state after the last.
    table = score_ids([conversation], [*ids, ids[-1]], options)[0]
    return np.asarray(table.hidden)


def fit_probe(states: Any, labels: Iterable[Hashable], *, strength: float = 1.0) -> LinearHead:
    """A linear probe: multinomial logistic regression from states to labels (scikit-learn).

    States are standardised for the fit; the returned head takes raw states.

    Args:
        states: [N, H].
        labels: [N], of at least two classes.
        strength: of the L2 penalty; the inverse of scikit-learn's ``C``.

    Returns:
        A head with one output, a logit, per class, in sorted order; its ``probabilities`` are those of the regression.

    Raises:
        ResultError: for labels of a single class, labels of another length, or NaN states.
    """
    inputs, named = _rows(states), [str(each) for each in labels]
    if len(named) != len(inputs):
        raise ResultError(f"states and labels must have the same length, not {len(inputs)} and {len(named)}")
    if len(set(named)) < 2:
        raise ResultError("All labels are one class; a probe needs at least two.")
    linear_model, scaler = _sklearn()
    scaled = scaler.fit_transform(inputs)
    model = linear_model.LogisticRegression(C=1 / _positive(strength), max_iter=5000).fit(scaled, named)
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn gives the logit of the second class over the first
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    return _unscaled(weight, bias, scaler, tuple(map(str, model.classes_)), "probe", len(inputs))


def fit_values(states: Any, values: Any, *, strength: float = 1.0) -> LinearHead:
    """A value head: ridge regression from states to numbers (scikit-learn).

    Args:
        states: [N, H].
        values: [N] or [N, K].
        strength: of the L2 penalty on weights of standardised states; scikit-learn's ``alpha``.

    Returns:
        A head of K outputs.

    Raises:
        ResultError: for non-finite values, values of another length, or NaN states.
    """
    inputs, wanted = _rows(states), np.asarray(values)
    if wanted.dtype.kind not in "fiub" or wanted.ndim not in (1, 2) or not np.isfinite(wanted.astype(float)).all():
        raise ResultError("values must be finite numbers [N] or [N, K]")
    if len(wanted) != len(inputs):
        raise ResultError(f"states and values must have the same length, not {len(inputs)} and {len(wanted)}")
    linear_model, scaler = _sklearn()
    targets = wanted.astype(np.float64).reshape(len(wanted), -1)
    model = linear_model.Ridge(alpha=_positive(strength)).fit(scaler.fit_transform(inputs), targets)
    weight, bias = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
    return _unscaled(weight, bias, scaler, (), "value", len(inputs))


def _unscaled(
    weight: np.ndarray, bias: np.ndarray, scaler: Any, classes: tuple[str, ...], kind: str, count: int
) -> LinearHead:
    """Convert a head on standardised states to one on raw states."""
    inward = weight / scaler.scale_
    return LinearHead(inward, bias - inward @ scaler.mean_, classes, {"kind": kind, "fitted_on": count})


def _rows(states: Any) -> np.ndarray:
    inputs = np.asarray(states)
    if inputs.ndim != 2 or inputs.dtype.kind != "f" or not len(inputs):
        raise ResultError(f"states must be real numbers [N, H], not {inputs.dtype} of shape {inputs.shape}")
    if not np.isfinite(inputs).all():
        raise ResultError("Some states are NaN or infinite: leave out rows of images and the first token.")
    return inputs.astype(np.float64)


def _positive(strength: float) -> float:
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 < strength < float("inf"):
        raise ResultError(f"strength must be a number above 0, not {strength!r}")
    return float(strength)


def _sklearn() -> tuple[Any, Any]:
    try:
        from sklearn import linear_model
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "calibration") from error
    return linear_model, StandardScaler()
