"""Teacher forcing: the rows of a given answer after one prompt or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlmprobe.adapter import Adapter, EncodedPrompt, Encoding
from vlmprobe.engines.base import Options
from vlmprobe.engines.local.capture import Head
from vlmprobe.engines.local.generation_config import prefill_config
from vlmprobe.engines.local.model_state import to_model
from vlmprobe.engines.local.row_stats import numpy_columns
from vlmprobe.engines.local.run_generate import Run, run
from vlmprobe.engines.token_tables import require_finite, token_kinds, token_table
from vlmprobe.errors import MessageError
from vlmprobe.results.detokenize import Detokenizer
from vlmprobe.results.table import TokenTable

__all__ = ["begun", "forced_run", "preceded", "score_ids"]


def score_ids(
    adapter: Adapter,
    head: Head,
    detokenizer: Detokenizer,
    encoding: Encoding,
    ids: Sequence[int],
    options: Options,
) -> list[TokenTable]:
    """The same T tokens as the answer to each of N prompts, in one batch and one forward.

    Args:
        adapter, head, detokenizer: of the engine.
        encoding: of the prompts.
        ids: of the answer, at least one.
        options: what to keep.

    Returns:
        N tables of T rows; every image is encoded once and every prompt runs once.
    """
    if not len(ids):
        raise MessageError("The answer to score has no tokens.")
    adapter.require_answer(ids)
    prompts = encoding.prompts
    ran = forced_run(adapter, encoding.inputs, ids)
    assert ran.prefill is not None  # requested by Options.prompt
    hidden = ran.prefill[:, -len(ids) :].flatten(0, 1)  # [N x T, H]
    made = np.array(ids, dtype=np.int64)
    rows: list[Tensor] | None = [] if "logits" in options.keep else None
    stats = head.stats(hidden, torch.as_tensor(made).repeat(len(prompts)), options.alternatives, keep=rows)
    numbers = numpy_columns(stats)
    require_finite(
        numbers["logsumexp"],
        [f"token {place} after prompt {each}" for each in range(len(prompts)) for place in range(len(ids))],
    )
    kept = {
        "logits": torch.cat(rows).numpy() if rows else None,
        "hidden": hidden.float().cpu().numpy() if "hidden" in options.keep else None,
    }
    return [
        _table(detokenizer, prompt, made, numbers, kept, slice(row * len(ids), (row + 1) * len(ids)), options)
        for row, prompt in enumerate(prompts)
    ]


def begun(adapter: Adapter, inputs: Mapping[str, Any], ids: Sequence[int]) -> dict[str, Any]:
    """Model inputs of N prompts, each followed by the same ids."""
    if not len(ids):
        return dict(inputs)
    return adapter.extend(inputs, torch.tensor([list(map(int, ids))] * len(inputs["input_ids"])))


def preceded(columns: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Columns with the rows of ``earlier`` prepended; those that are None stay None."""
    return {
        name: None if values is None else np.concatenate([earlier[name], values]) for name, values in columns.items()
    }


def forced_run(adapter: Adapter, inputs: Mapping[str, Any], ids: Sequence[int]) -> Run:
    """One forward over prompts and answer. The last T states of ``prefill`` are those that the T ids are drawn from."""
    config = prefill_config(adapter.model.generation_config)
    grown = begun(adapter, inputs, ids[:-1])  # what comes after the last token is not needed
    return run(adapter, to_model(adapter.model, grown), config, Options(alternatives=1))


def _table(
    detokenizer: Detokenizer,
    prompt: EncodedPrompt,
    ids: np.ndarray,
    numbers: Mapping[str, np.ndarray],
    kept: Mapping[str, np.ndarray | None],
    cut: slice,
    options: Options,
) -> TokenTable:
    return token_table(
        detokenizer,
        ids,
        len(prompt.ids) + np.arange(len(ids)),
        token_kinds(ids, detokenizer.special),
        {name: values[cut] for name, values in numbers.items()},
        alternatives=options.alternatives,
        rows={name: None if values is None else values[cut] for name, values in kept.items()},
    )
