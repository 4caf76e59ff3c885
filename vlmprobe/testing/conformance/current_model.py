"""C16 to C19: numbers follow the model, its options and the caller as they are when a call runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlmprobe.errors import GenerationOptionError
from vlmprobe.results.result import Result
from vlmprobe.testing.conformance.check import check
from vlmprobe.testing.report import CheckFailure, SkipCheck
from vlmprobe.testing.subject import GREEDY, Subject, text_rows
from vlmprobe.testing.tolerance import log_softmax, require_numbers, require_rows

__all__ = ["cache_of_config", "fresh_state", "other_head", "processors_of_caller"]

PAIR = ["yes", "a tiger"]  # candidates
FEW = {"max_new_tokens": 2, **GREEDY}


@check(
    "C16",
    "another LM head that was put into the model is in prompt rows, answer rows and scores",
    "the head, or the modules around it, kept from when the probe was made",
)
def other_head(subject: Subject) -> Sequence[str] | None:
    """All rows against the model's own forward, while the head's logits are halved."""
    tolerance = subject.tolerance("rows")  # of the model's own scale
    with _halved_head(subject):
        result = subject.ask("main", keep="logits", **FEW)
        _require_own_rows(subject, result, tolerance)
        table = subject.score("main", PAIR[:1]).tables[0]
        last = int(table.positions[0]) - 1
        rows = subject.own("main", last + np.arange(len(table)), table.ids[:-1], len(subject.prompt().ids) - last - 1)
    wanted = log_softmax(rows)[np.arange(len(table)), table.ids]
    require_numbers(
        table.logprobs,
        wanted,
        tolerance,
        of="scores with another head",
        path="the model's own forward",
        names=subject.named(table),
    )
    return None


@check(
    "C17",
    "state that an earlier call left on the model does not reach the next one",
    "rope deltas, or other attributes that a forward writes, read by the next call",
    rerun=False,
)
def fresh_state(subject: Subject) -> Sequence[str] | None:
    """Scores before and after a run of the model itself on another image, to the last bit on a CPU."""
    exact = 0.0 if subject.model.device.type == "cpu" else subject.tolerance("rows")
    names = [name for name in ("text", "main") if subject.unavailable(name) is None]
    before = {name: subject.score(name, PAIR).logprobs for name in names}
    for name in names:
        with torch.no_grad():
            subject.model.generate(**subject.on_device(subject.encoding("wide").inputs), max_new_tokens=1, **GREEDY)
        require_numbers(
            subject.score(name, PAIR).logprobs,
            before[name],
            exact,
            of=f"scores of {name!r} after the model itself ran on another image",
            path="those before",
            names=[f"candidate {each!r}" for each in PAIR],
        )
    return None


@check(
    "C18",
    "the cache that the generation config names changes no score, and rows are those of the own generate",
    "a prompt's cache continued though it was made for one prompt alone, such as a static one",
)
def cache_of_config(subject: Subject) -> Sequence[str] | None:
    """With a static cache and with none: the same scores, and the rows of the model's own generate."""
    scores = subject.score("main", PAIR).logprobs
    notes = []
    for name, value in (("cache_implementation", "static"), ("use_cache", False)):
        with _configured(subject, name, value):
            require_numbers(
                subject.score("main", PAIR).logprobs,
                scores,
                subject.tolerance("rows"),
                of=f"scores with {name}={value!r}",
                path="those with the default cache",
                names=[f"candidate {each!r}" for each in PAIR],
            )
            try:
                own = _own_rows(subject)
            except Exception as error:  # noqa: BLE001 - the model fails without vlmprobe, with any exception
                reason = f"the model's own generate fails: {type(error).__name__}"
                notes.append(f"generation with {name}={value!r}: not checked ({reason})")
                continue
            try:
                made = subject.ask("main", keep="logits", **FEW)
            except GenerationOptionError as error:
                notes.append(f"generation with {name}={value!r}: refused ({str(error).partition(':')[0]})")
                continue
        require_rows(
            _rows(made)[: len(own)],
            own,
            subject.tolerance("paths"),
            of=f"generated rows with {name}={value!r}",
            path="those of the model's own generate",
            names=subject.named(made.output),
        )
    return notes


@check(
    "C19",
    "a logits processor of the caller acts, and its effect is in scores",
    "a generate of the model's own that drops logits_processor",
)
def processors_of_caller(subject: Subject) -> Sequence[str] | None:
    """The likeliest first token forbidden: the second is emitted, with its probability among the rest."""
    row = subject.own_prompt[-1]
    first, second = np.argsort(-row)[:2].tolist()
    result = subject.ask("main", max_new_tokens=1, logits_processor=[_Forbid(first)], **GREEDY)
    if (said := int(result.output.ids[0])) != second:
        raise CheckFailure(f"token {second}, the likeliest but for {first}, which is forbidden", f"token {said}")
    allowed = row.copy()
    allowed[first] = -np.inf
    if result.output.scores is None:
        raise CheckFailure("scores of the processed row", "none")
    require_numbers(
        result.output.scores,
        log_softmax(allowed[None])[0, [second]],
        subject.tolerance("rows"),
        of="score after the processor",
        path="the processed row of the model's own forward",
        names=["the first token"],
    )
    return None


class _Forbid:
    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, _: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self.token] = -torch.inf
        return scores


class _Halved(nn.Module):
    """A head with half the logits; everything else is asked of the head inside."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.__dict__["head"] = head

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.head(*args, **kwargs) / 2

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["head"], name)


@contextmanager
def _halved_head(subject: Subject) -> Iterator[None]:
    outer = subject.adapter.outer
    head = outer.get_output_embeddings()
    try:
        outer.set_output_embeddings(_Halved(head))
        if not isinstance(outer.get_output_embeddings(), _Halved):
            raise SkipCheck("set_output_embeddings does not replace the head of this model")
        yield
    finally:
        outer.set_output_embeddings(head)


@contextmanager
def _configured(subject: Subject, name: str, value: Any) -> Iterator[None]:
    config = subject.model.generation_config
    before = getattr(config, name, None)
    setattr(config, name, value)
    try:
        yield
    finally:
        setattr(config, name, before)


@torch.no_grad()
def _own_rows(subject: Subject) -> np.ndarray:
    """float64 [T, V]: raw logits of the model's own generate, with its config as it is."""
    inputs = subject.on_device(subject.encoding("main").inputs)
    output = subject.model.generate(**inputs, **FEW, output_logits=True, return_dict_in_generate=True)
    return torch.cat(list(output.logits)).double().cpu().numpy()


def _rows(result: Result) -> np.ndarray:
    if result.output.logits is None:
        raise CheckFailure("full rows of the answer", "none")
    return np.asarray(result.output.logits, dtype=np.float64)


def _require_own_rows(subject: Subject, result: Result, tolerance: float) -> None:
    prompt, output = subject.prompt_table(result), result.output
    at = text_rows(prompt)
    length = len(subject.prompt().ids)
    before = [*(prompt.positions[at] - 1), *(length - 1 + np.arange(len(output)))]
    if prompt.logits is None:
        raise CheckFailure("full rows of the prompt", "none")
    require_rows(
        np.concatenate([np.asarray(prompt.logits, dtype=np.float64)[at], _rows(result)]),
        subject.own("main", before, output.ids),
        tolerance,
        of="rows with another head",
        path="the model's own forward",
        names=[*subject.named(prompt, at), *subject.named(output)],
    )
