"""C1, C2, C11, C12: every row of logits is the model's own, however it was captured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin

from vlmprobe.results.table import TokenTable
from vlmprobe.testing.conformance.check import check
from vlmprobe.testing.conformance.hooks import last_hidden, replaced_output, tensor_of
from vlmprobe.testing.report import CheckFailure
from vlmprobe.testing.subject import GREEDY, NEW_TOKENS, Subject, text_rows
from vlmprobe.testing.tolerance import columns_of, require_numbers, require_rows

__all__ = ["captured_rows", "last_layer", "selected_rows", "teacher_forced_rows"]


@check(
    "C1",
    "captured logits match the model's own forward",
    "rows taken one position early or late: row t is the distribution that token t was drawn from",
    "the head called on its own, without the scaling or soft-capping that the model's forward applies",
    "model inputs dropped on the way: pass everything that the processor returns",
)
def captured_rows(subject: Subject) -> Sequence[str] | None:
    """Prompt rows and the first generated row, against a forward of the prompt alone."""
    result = subject.greedy
    table = subject.prompt_table(result)
    ids = subject.prompt().ids
    if not np.array_equal(result.input_ids, ids):
        raise CheckFailure(
            f"input_ids of the {len(ids)} positions that the adapter encodes", f"{len(result.input_ids)} other ids"
        )
    _require_inputs(subject)
    rows = text_rows(table)
    if table.logits is None or result.output.logits is None:
        raise CheckFailure('full rows with keep="logits"', "no logits in the result")
    came = np.concatenate([table.logits[rows], result.output.logits[:1]])
    names = [*subject.named(table, rows, "prompt row"), "generated token 0"]
    require_rows(
        came,
        subject.own_prompt,
        subject.tolerance("rows"),
        of="prompt rows and the first generated row",
        path="the model's own forward of the prompt",
        names=names,
        hints=lambda: _hints(came, subject.own_prompt),
    )
    return None


@check(
    "C2",
    "rows captured while generating match a forward over prompt and answer",
    "rows of another step, or of the processed scores instead of the raw logits",
    "extend() of the adapter: an input along the sequence was not extended as the model needs it",
    "positions after the prompt: rope deltas or position ids that belong to another call",
)
def teacher_forced_rows(subject: Subject) -> Sequence[str] | None:
    """Generated rows, against a forward without cache over the prompt followed by the generated ids."""
    output = subject.greedy.output
    if output.logits is None or len(output) != NEW_TOKENS:
        raise CheckFailure(f"{NEW_TOKENS} generated rows with full logits", f"{len(output)} rows")
    start = len(subject.prompt().ids)
    own = subject.own("main", np.arange(start - 1, start - 1 + len(output)), output.ids)
    require_rows(
        output.logits,
        own,
        subject.tolerance("paths"),
        of="generated rows",
        path="the model's own forward over prompt and answer",
        names=subject.named(output, what="generated token"),
        hints=lambda: _hints(output.logits, own),
    )
    return None


@check(
    "C11",
    "columns of selected rows, reduced on the device, match the full rows of the model's own forward",
    "the head called on selected rows without the model's scaling or soft-capping",
    "statistics in half precision: they must be float32 whatever the model's dtype",
    "rows of a chunk concatenated in the wrong order",
)
def selected_rows(subject: Subject) -> Sequence[str] | None:
    """The default call, which keeps no full rows, against float64 arithmetic on the forward's full rows."""
    result = subject.ask("main", max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, **GREEDY)
    table, output = subject.prompt_table(result), result.output
    later = np.arange(1, len(output))
    written = subject.own("main", len(subject.prompt().ids) - 1 + later, output.ids)
    for part, own, label, path in (
        (_cut(table, text_rows(table)), subject.own_prompt[:-1], "prompt row", "rows"),
        (_cut(output, np.arange(1)), subject.own_prompt[-1:], "generated row", "rows"),
        (_cut(output, later), written, "generated row", "paths"),
    ):
        tolerance = subject.tolerance(path)
        part["names"] = subject.named(part["table"], part["rows"], label)
        expected = columns_of(own, part["ids"], part["top_ids"])
        for column in ("logsumexp", "logprobs", "entropy"):
            require_numbers(
                part[column],
                expected[column],
                tolerance,
                of=f"{column} of each {label}",
                path="float64 arithmetic on the full rows of the model's own forward",
                names=part["names"],
            )
        require_rows(
            part["top_logprobs"],
            expected["top_logprobs"],
            tolerance,
            of=f"top_logprobs of each {label}",
            path="the same entries of the full rows",
            names=part["names"],
        )
        _require_order(part, own, tolerance, label)
    return None


@check(
    "C12",
    "final norm and head on the last decoder layer's output give the logits",
    "layers, final_norm or head of the adapter name another module (that of the vision tower?)",
    "an operation between the last layer and the norm that the adapter must include in final_norm",
)
def last_layer(subject: Subject) -> Sequence[str] | None:
    """The states that enter the head are replaced by final_norm(last layer's output); logits must not change."""
    adapter, inputs = subject.adapter, subject.written("main", ())
    ran: list[int] = []
    kept: dict[str, Any] = {}
    handles = [
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, layer in enumerate(adapter.layers)
    ]
    handles.append(adapter.layers[-1].register_forward_hook(lambda _, __, output: kept.update(last=tensor_of(output))))
    handles.append(adapter.head.register_forward_hook(lambda _, given, output: kept.update(head=(given[0], output))))
    try:
        subject.forward(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if ran != list(range(len(adapter.layers))) or len(set(adapter.layers)) < len(adapter.layers):
        raise CheckFailure(f"the {len(adapter.layers)} layers run once each, in order", f"they ran as {ran}")
    if "head" not in kept or kept["head"][1].shape[-1] < subject.own_prompt.shape[-1]:
        found = kept["head"][1].shape[-1] if "head" in kept else "nothing: it did not run"
        raise CheckFailure(f"a head that gives {subject.own_prompt.shape[-1]} logits", f"{found}")
    with torch.no_grad():
        normed = adapter.final_norm(kept["last"])
    states = last_hidden(adapter, subject, inputs)
    if normed.shape != states.shape:
        raise CheckFailure(f"states of shape {tuple(states.shape)} from final_norm", f"shape {tuple(normed.shape)}")
    with replaced_output(adapter.backbone, normed):
        came = subject.forward(inputs).logits[0]
    table = subject.prompt_table(subject.greedy)
    rows = text_rows(table)
    places = torch.as_tensor([*(table.positions[rows] - 1), len(subject.prompt().ids) - 1], device=came.device)
    names = [*subject.named(table, rows, "prompt row"), "generated token 0"]
    require_rows(
        came[places].double().cpu().numpy(),
        subject.own_prompt,
        subject.tolerance("rows"),
        of="logits from final_norm of the last layer's output",
        path="the model's own forward",
        names=names,
    )
    return None


def _require_inputs(subject: Subject) -> None:
    """The adapter passes everything that a transformers processor returns for the chat to the model."""
    processor = subject.adapter.processor
    if not isinstance(processor, ProcessorMixin):
        return  # a family with its own processor: nothing to compare with
    try:
        returned: Any = processor.apply_chat_template(
            subject.conversation("main").to_chat(),
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=dict(subject.adapter.processor_options),  # some determine which keys are returned
        )
    except (ValueError, TypeError, KeyError):
        return  # it needs arguments that only the adapter knows
    lost = {key for key, value in returned.items() if value is not None} - set(subject.encoding("main").inputs)
    if lost - {"labels"}:
        raise CheckFailure("every model input that the processor returns", f"none of {', '.join(sorted(lost))}")


def _cut(table: TokenTable, rows: np.ndarray) -> dict[str, Any]:
    columns = ("ids", "logprobs", "entropy", "logsumexp", "ranks", "top_ids", "top_logprobs")
    return {"table": table, "rows": rows, **{name: getattr(table, name)[rows] for name in columns}}


def _require_order(part: dict[str, Any], own: np.ndarray, tolerance: float, label: str) -> None:
    """Ranks and alternatives, where ties within the tolerance may be broken either way."""
    for row, (token, rank, top) in enumerate(zip(part["ids"], part["ranks"], part["top_ids"], strict=True)):
        where = part["names"][row]
        if token < own.shape[-1]:
            value = own[row, token]
            least = int((own[row] > value + tolerance).sum())
            most = int((own[row] > value - tolerance).sum()) - 1  # the token itself is not above itself
        else:
            least = most = -1  # some tokenizers have more ids than the head
        if not least <= rank <= most:
            raise CheckFailure(f"rank {least} of the token in its {label}", f"rank {rank}", where)
        outside = np.delete(own[row], top)
        if outside.size and own[row, top].min() < outside.max() - 2 * tolerance:
            raise CheckFailure(f"the {len(top)} most likely tokens of the {label}", f"{top.tolist()}", where)
        if (np.diff(part["top_logprobs"][row]) > 0).any():
            raise CheckFailure("alternatives best first", f"{part['top_logprobs'][row].tolist()}", where)


def _hints(came: np.ndarray | None, expected: np.ndarray) -> list[str]:
    """Hints from the wrong rows themselves: shifted by one, or off by a constant factor."""
    if came is None or came.shape != expected.shape:
        return []
    came = came.astype(np.float64)
    for shift, name in ((1, "later"), (-1, "earlier")):
        inner = slice(max(shift, 0), len(came) + min(shift, 0))
        shifted = slice(max(-shift, 0), len(came) + min(-shift, 0))
        told = ~np.isnan(came[shifted]).any(axis=-1)  # rows of images and of the first token are NaN in a table
        alike = np.isclose(came[shifted][told], expected[inner][told], atol=1e-3).all(axis=-1)
        if len(alike) > 1 and alike.mean() > 0.5:
            return [f"most rows are those expected one row {name}: off by one"]
    usable = (np.abs(expected) > 1e-3) & (np.abs(expected) < 1e30)
    ratios = came[usable] / expected[usable]
    if usable.any() and np.std(ratios) < 1e-3 * abs(np.mean(ratios)):
        return [f"every logit is {np.mean(ratios):.4g} times the expected one: a scaling was lost or applied twice"]
    return []
