"""C3, C9, C10: what the numbers mean. Raw log-probabilities in nats of the tokens that were emitted."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlmprobe.results.result import Result
from vlmprobe.results.table import TokenTable
from vlmprobe.testing.conformance.check import check
from vlmprobe.testing.report import CheckFailure
from vlmprobe.testing.subject import BEAMS, NEW_TOKENS, Subject, text_rows
from vlmprobe.testing.tolerance import log_softmax, require_numbers, require_rows

__all__ = ["emitted_tokens", "own_loss", "raw_numbers"]

PROCESSED: dict[str, dict[str, Any]] = {
    "temperature=0.3, top_k=1": {"do_sample": True, "temperature": 0.3, "top_k": 1, "seed": 1},
    "repetition_penalty=1.8": {"do_sample": False, "repetition_penalty": 1.8},
    "no_repeat_ngram_size=1": {"do_sample": False, "no_repeat_ngram_size": 1},
}
SAMPLING = {"do_sample": True, "temperature": 1.5, "top_k": 0, "top_p": 1.0, "num_beams": 1}


@check(
    "C3",
    "log-probabilities sum to the model's own loss, and probabilities to 1",
    "a logarithm other than the natural one, or a mean reported as a sum",
    "probabilities over the kept alternatives instead of the vocabulary",
    "labels shifted twice: the model shifts them itself",
)
def own_loss(subject: Subject) -> Sequence[str] | None:
    """Sum of logprobs = -T x cross-entropy of the model's own loss with exactly the scored tokens as labels."""
    result = subject.greedy
    prompt, output = subject.prompt_table(result), result.output
    rows = text_rows(prompt)
    rows = rows[prompt.ids[rows] < subject.own_prompt.shape[-1]]  # some tokenizers have more ids than the head
    scored = np.concatenate([prompt.positions[rows], output.positions])
    logprobs = np.concatenate([prompt.logprobs[rows], output.logprobs]).astype(np.float64)
    inputs = subject.written("main", output.ids)
    labels = torch.full_like(inputs["input_ids"], -100)
    at = torch.as_tensor(scored, device=labels.device)
    labels[0, at] = inputs["input_ids"][0, at]
    loss, notes = _loss(subject, inputs, labels)
    mean = float(logprobs.mean())
    if not abs(mean + loss) <= subject.tolerance("rows"):
        raise CheckFailure(
            f"sum of {len(scored)} log-probabilities = -T x loss = {-len(scored) * loss:.6f} nats",
            f"{logprobs.sum():.6f} nats",
            f"prompt positions from {int(scored[0])} and {len(output)} generated tokens",
            difference=abs(mean + loss),
        )
    _require_probabilities(subject, result)
    return notes


@check(
    "C9",
    "raw numbers do not change with temperature, top_k or penalties",
    "the decoding loop's processed scores reported as logits",
    "a logits processor that modifies its input in place: keep a copy",
)
def raw_numbers(subject: Subject) -> Sequence[str] | None:
    """Rows under each processor, against a forward over the prompt and the tokens that were emitted."""
    start = len(subject.prompt().ids)
    for name, options in PROCESSED.items():
        result = subject.ask("main", keep="logits", max_new_tokens=3, **{"num_beams": 1, **options})
        output = result.output
        if output.logits is None:
            raise CheckFailure('full rows with keep="logits"', "no logits in the result", name)
        own = subject.own("main", np.arange(start - 1, start - 1 + len(output)), output.ids)
        require_rows(
            output.logits,
            own,
            subject.tolerance("paths"),
            of=f"raw rows generated with {name}",
            path="the model's own forward over prompt and answer",
            names=subject.named(output, what=f"{name}, generated token"),
        )
        require_numbers(
            output.logprobs,
            log_softmax(own)[np.arange(len(output)), output.ids],
            subject.tolerance("paths"),
            of=f"raw logprobs with {name}",
            path="log-softmax of the same forward",
            names=subject.named(output, what=f"{name}, generated token"),
        )
        prompt = subject.prompt_table(result)
        rows = text_rows(prompt)
        require_numbers(
            prompt.logprobs[rows],
            subject.prompt_table(subject.greedy).logprobs[rows],
            subject.tolerance("rows"),
            of=f"prompt logprobs with {name}",
            path="those without it",
            names=subject.named(prompt, rows),
        )
    return None


@check(
    "C10",
    "the reported token is the emitted one, under sampling and under beam search",
    "the most likely token of a row reported instead of the sampled one",
    "reordered beams: a row belongs to the beam that the token came from",
    "raw scores, or processed logprobs: temperature and filters change the scores and not the logprobs",
)
def emitted_tokens(subject: Subject) -> Sequence[str] | None:
    """Tokens against the model's own generate with the same seed; their numbers against a forward over them."""
    notes, seed = [], 3
    for name, options in (("sampling", SAMPLING), ("beam search", BEAMS)):
        if name == "beam search" and subject.no_beams:
            notes.append(f"beam search: not checked ({subject.no_beams})")
            continue
        result = subject.ask("main", keep="logits", max_new_tokens=NEW_TOKENS, seed=seed, **options)
        emitted, processed = subject.own_generate(seed=seed, **options)
        if result.output.ids.tolist() != emitted:
            raise CheckFailure(
                f"the ids {emitted} that the model's own generate emits, with {name}", f"{result.output.ids.tolist()}"
            )
        start = len(subject.prompt().ids)
        own = subject.own("main", np.arange(start - 1, start - 1 + len(emitted)), emitted)
        require_numbers(
            result.output.logprobs,
            log_softmax(own)[np.arange(len(emitted)), emitted],
            subject.tolerance("paths"),
            of=f"logprobs of the tokens emitted by {name}",
            path="log-softmax of the model's own forward over prompt and answer",
            names=subject.named(result.output, what="generated token"),
        )
        if name == "sampling":
            _require_scores(subject, result.output, processed)
            if (own.argmax(axis=-1) == emitted).all():
                notes.append("every sampled token was the most likely one, so this could not tell sampling from greedy")
    return notes


def _require_scores(subject: Subject, output: TokenTable, processed: np.ndarray) -> None:
    """The column ``scores`` is the log-probability under the distribution that each token was drawn from."""
    if output.scores is None:
        raise CheckFailure(f"scores of {len(output)} tokens drawn at another temperature", "no scores in the result")
    require_numbers(
        output.scores,
        log_softmax(processed)[np.arange(len(output)), output.ids],
        subject.tolerance("paths"),
        of="scores of the sampled tokens",
        path="log-softmax of the processed scores of the model's own generate",
        names=subject.named(output, what="generated token"),
    )


def _loss(subject: Subject, inputs: dict[str, Any], labels: Tensor) -> tuple[float, list[str]]:
    """Mean cross-entropy over the labels: the model's own loss, or torch's on its logits if it has none."""
    if "labels" in inspect.signature(subject.model.forward).parameters:
        loss = subject.forward(inputs, labels=labels).loss
        if loss is not None:
            return float(loss), []
    logits = subject.forward(inputs).logits[0, :-1].double()
    loss = torch.nn.functional.cross_entropy(logits, labels[0, 1:].to(logits.device))
    return float(loss), ["the model has no loss of its own: torch's cross-entropy on its forward's logits instead"]


def _require_probabilities(subject: Subject, result: Result) -> None:
    for table, rows in (
        (subject.prompt_table(result), text_rows(subject.prompt_table(result))),
        (result.output, np.arange(len(result.output))),
    ):
        if table.logits is None:
            raise CheckFailure('full rows with keep="logits"', "no logits in the result")
        totals = np.exp(table.logits[rows].astype(np.float64) - table.logsumexp[rows, None]).sum(axis=-1)
        require_numbers(
            totals,
            np.ones(len(rows)),
            1e-4,
            of="sums of exp(logits - logsumexp)",
            path="one",
            names=subject.named(table, rows),
        )
        rows = rows[table.ids[rows] < table.logits.shape[-1]]
        chosen = table.logits[rows, table.ids[rows]] - table.logsumexp[rows]
        require_numbers(
            table.logprobs[rows],
            chosen,
            subject.tolerance("rows"),
            of="logprobs",
            path="raw logit of the token minus logsumexp",
            names=subject.named(table, rows),
        )
