"""Results as lm-polygraph statistics, for use with its sixty estimators.

lm-polygraph (Fadeeva et al. 2023) computes an uncertainty from a mapping of named statistics:
``Perplexity()(stats)``. :func:`statistics` fills those that a probe provides; vlmprobe does not need the package. Names
and layouts are those of lm-polygraph 0.5 and its development version of August 2026.

Filled always: ``greedy_texts``, ``greedy_tokens``, ``greedy_log_likelihoods``, ``greedy_tokens_alternatives``,
``entropy``, ``input_texts``, ``input_tokens``. With full rows (``keep="logits"``): ``greedy_log_probs``. With samples:
``sample_texts``, ``sample_tokens``, ``sample_log_probs``, ``sample_log_likelihoods``; with their groups too:
``semantic_classes_entail``. With the same answers scored without their condition: ``greedy_lm_log_likelihoods``.

Not filled: what other models compute (``semantic_matrix_*``, ``*_similarity``, claims), ``embeddings``, attention maps,
training statistics, and ensembles. An estimator that needs them raises ``KeyError``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmprobe.analysis.failures import without_failures
from vlmprobe.errors import ResultError
from vlmprobe.probe.sample import Samples
from vlmprobe.results.failure import Failure
from vlmprobe.results.result import Result
from vlmprobe.results.table import TokenTable

__all__ = ["statistics"]


def statistics(
    results: Sequence[Result | Failure],
    samples: Sequence[Samples] | None = None,
    groups: Sequence[np.ndarray] | None = None,
    without: Sequence[TokenTable] | None = None,
) -> dict[str, Any]:
    """Statistics of N answers under lm-polygraph's names.

    Args:
        results: [N] greedy answers. Failures are left out, with what the other lists have for them.
        samples: [N] sampled answers to the same questions, for the sampling-based estimators.
        groups: [N] meanings of the samples, from :meth:`Samples.groups`, for the semantic ones.
        without: [N] tables of the same tokens scored without their condition (no question, or no image), for the
            estimators of pointwise mutual information.

    Raises:
        ResultError: if the lists do not match.
    """
    given = list(results)
    _same_length("samples", samples, given)
    _same_length("groups", groups, given)
    _same_length("without", without, given)
    kept = [place for _, place in without_failures(given, range(len(given)))]
    answers: list[Result] = [given[place] for place in kept]
    samples, groups, without = (
        None if values is None else [values[place] for place in kept] for values in (samples, groups, without)
    )
    stats: dict[str, Any] = {
        "input_texts": [str(result.meta.get("question", "")) for result in answers],
        "input_tokens": [result.input_ids.tolist() for result in answers],
        "greedy_texts": [result.text for result in answers],
        "greedy_tokens": [result.output.ids.tolist() for result in answers],
        "greedy_log_likelihoods": [result.output.logprobs.tolist() for result in answers],
        "greedy_tokens_alternatives": [_alternatives(result.output) for result in answers],
        "entropy": [result.output.entropy.tolist() for result in answers],
    }
    if all(result.output.logits is not None for result in answers):
        stats["greedy_log_probs"] = [_log_softmax(result.output) for result in answers]
    if samples is not None:
        stats |= {
            "sample_texts": [each.texts for each in samples],
            "sample_tokens": [[result.output.ids.tolist() for result in each] for each in samples],
            "sample_log_probs": [each.logprobs.tolist() for each in samples],
            "sample_log_likelihoods": [[result.output.logprobs.tolist() for result in each] for each in samples],
        }
    if groups is not None:
        if samples is None:
            raise ResultError("groups are meanings of samples: pass samples= too")
        stats["semantic_classes_entail"] = {
            "sample_to_class": {at: dict(enumerate(map(int, labels))) for at, labels in enumerate(groups)},
            "class_to_sample": {
                at: [np.flatnonzero(np.asarray(labels) == label).tolist() for label in range(int(max(labels)) + 1)]
                for at, labels in enumerate(groups)
            },
        }
    if without is not None:
        for at, (table, result) in enumerate(zip(without, answers, strict=True)):
            if not np.array_equal(table.ids, result.output.ids):
                raise ResultError(f"without[{at}] has other tokens than the answer of result {at}")
        stats["greedy_lm_log_likelihoods"] = [table.logprobs.tolist() for table in without]
    return stats


def _same_length(name: str, values: Sequence[Any] | None, results: Sequence[Any]) -> None:
    if values is not None and len(values) != len(results):
        raise ResultError(f"{name} has {len(values)} entries for {len(results)} results")


def _alternatives(table: TokenTable) -> list[list[tuple[int, float]]]:
    """For each token the likeliest ids with their log-probabilities, the token itself first."""
    listed = []
    rows = zip(table.ids, table.logprobs, table.top_ids, table.top_logprobs, strict=True)
    for chosen, logprob, ids, logprobs in rows:
        others = [(int(each), float(value)) for each, value in zip(ids, logprobs, strict=True) if each != chosen]
        # As many as the table holds, as lm-polygraph does; a sampled token outside of them replaces the last.
        listed.append([(int(chosen), float(logprob)), *others][: len(ids)])
    return listed


def _log_softmax(table: TokenTable) -> np.ndarray:
    assert table.logits is not None
    return np.asarray(table.logits, dtype=np.float32) - table.logsumexp[:, None]
