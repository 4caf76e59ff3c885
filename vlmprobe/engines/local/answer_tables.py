"""Builds the tables of prompts and answers from one run of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, zip_longest

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from vlmprobe.adapter import EncodedPrompt
from vlmprobe.engines.base import Options
from vlmprobe.engines.local.capture import Head, RowsOf, States
from vlmprobe.engines.local.generation_config import end_ids
from vlmprobe.engines.local.row_stats import numpy_columns
from vlmprobe.engines.local.run_generate import Run
from vlmprobe.engines.local.teacher_forcing import preceded
from vlmprobe.engines.token_tables import prompt_rows, require_finite, token_kinds, token_table
from vlmprobe.results.detokenize import Detokenizer
from vlmprobe.results.row_files import RowFile, Slots
from vlmprobe.results.table import TokenTable

__all__ = ["Answers", "finish_reason", "prompt_table", "prompt_tables", "rows_of"]


class Answers:
    """The tables of a batch, built from a finished run."""

    def __init__(
        self, head: Head, detokenizer: Detokenizer, ran: Run, config: GenerationConfig, options: Options
    ) -> None:
        self.head = head
        self.detokenizer = detokenizer
        self.ran = ran
        self.config = config
        self.options = options
        self.columns = _step_columns(ran)
        self.made = ran.sequences[:, ran.length :].cpu().numpy()  # [N, T]

    def tables(
        self, prompts: Sequence[EncodedPrompt], files: Sequence[RowFile]
    ) -> list[tuple[TokenTable | None, TokenTable]]:
        """Prompt and answer tables of the N rows of the batch; full rows are written to ``files`` [N] if there are."""
        outputs = [self._output(row, *each) for row, each in enumerate(zip_longest(prompts, files))]
        before: list[TokenTable] = []
        if self.ran.prefill is not None and self.options.prompt:
            states = self.ran.prefill[:: self.config.num_beams or 1]
            starts = [self._start(each) for each in prompts]
            before = prompt_tables(self.head, self.detokenizer, prompts, states, starts, self.options, files)
        return [_with_logits(*each) for each in zip_longest(before, outputs, files)]

    def _start(self, prompt: EncodedPrompt) -> int:
        """Where a prompt begins after its padding, in the states of the prefill."""
        return self.ran.length - len(prompt.ids) - len(self.options.begin)

    def _output(self, row: int, prompt: EncodedPrompt, file: RowFile | None) -> TokenTable:
        ran, options = self.ran, self.options
        begin = len(options.begin)
        made = self.made[row]
        if ran.beam_indices is not None:
            made = made[: int((ran.beam_indices[row] >= 0).sum())]
        made = made[: _answer_length(made, self.config)]
        hidden = None
        if ran.decoded:
            source = [row] * len(made) if ran.beam_indices is None else ran.beam_indices[row].tolist()
            hidden = torch.stack([ran.decoded[step][source[step]] for step in range(len(made))])
        if ran.beam_indices is None:
            numbers = {name: values[: len(made), row] for name, values in self.columns.items()}
            apart = ("logits", "scores", "mass_allowed")
            more: dict[str, np.ndarray | None] = {name: numbers.pop(name, None) for name in apart}
        else:
            assert hidden is not None  # run() always keeps them with beams
            slots = file.at("output", range(begin, begin + len(made))) if file else None
            numbers, logits = head_columns(self.head, hidden, made, options, slots)
            more = {"logits": logits}
        more["hidden"] = _kept_hidden(hidden, options)
        if begin:
            first = np.array(options.begin, dtype=np.int64)
            assert ran.prefill is not None
            states = ran.prefill[row * (self.config.num_beams or 1), -begin - 1 : -1]
            slots = file.at("output", range(begin)) if file else None
            given, logits = head_columns(self.head, states, first, options, slots)
            made = np.concatenate([first, made])
            numbers = preceded(numbers, given)
            not_drawn = dict.fromkeys(("scores", "mass_allowed"), np.full(begin, np.nan, np.float32))
            more = preceded(more, {"logits": logits, "hidden": _kept_hidden(states, options), **not_drawn})
        require_finite(numbers["logsumexp"], [f"generated token {step}" for step in range(len(made))])
        return token_table(
            self.detokenizer,
            made,
            len(prompt.ids) + np.arange(len(made)),
            token_kinds(made, self.detokenizer.special),
            numbers,
            alternatives=options.alternatives,
            rows=more,
        )


def prompt_table(
    head: Head, detokenizer: Detokenizer, prompt: EncodedPrompt, states: Tensor, options: Options
) -> TokenTable:
    """The table of a prompt of S positions from its states [S, H] that enter the head; further rows are ignored."""
    return prompt_tables(head, detokenizer, [prompt], states.unsqueeze(0), [0], options)[0]


def prompt_tables(
    head: Head,
    detokenizer: Detokenizer,
    prompts: Sequence[EncodedPrompt],
    states: Tensor,
    starts: Sequence[int],
    options: Options,
    files: Sequence[RowFile] = (),
) -> list[TokenTable]:
    """The tables of N prompts. The head runs over the rows of all of them, a chunk at a time.

    Args:
        head, detokenizer, options: of the call.
        prompts: N.
        states: [N, S, H], those that enter the head.
        starts: [N]: where each prompt begins in them.
        files: [N], for full rows; none if they are not written.
    """
    # Full rows are large: of those that are kept, one prompt's are made at a time.
    if "logits" in options.keep and len(prompts) > 1:
        given = zip_longest(prompts, states.split(1), starts, files)
        return [
            prompt_tables(head, detokenizer, [prompt], own, [start], options, [file] if file else [])[0]
            for prompt, own, start, file in given
        ]
    rows = [prompt_rows(each.ids, each.spans, detokenizer.special) for each in prompts]
    scored = [each.scored for each in rows]
    places = [start + each.positions[at] - 1 for start, each, at in zip(starts, rows, scored, strict=True)]
    hidden = RowsOf(states, np.repeat(np.arange(len(rows)), list(map(len, scored))), np.concatenate(places))
    numbers: dict[str, np.ndarray] = {}
    logits = None
    if len(hidden):
        ids = np.concatenate([each.ids[at] for each, at in zip(rows, scored, strict=True)])
        slots = files[0].at("prompt", scored[0].tolist()) if files else None
        numbers, logits = head_columns(head, hidden, ids, options, slots)
    for file in files:
        file.blank("prompt", np.setdiff1d(np.arange(len(rows[0].ids)), scored[0]).tolist())
    stops = list(accumulate(map(len, scored)))
    keeps_hidden = "hidden" in options.keep
    found = []
    for prompt, listed, at, stop in zip(prompts, rows, scored, stops, strict=True):
        own = slice(stop - len(at), stop)
        if len(at):
            names = [f"prompt position {place}" for place in listed.positions[at]]
            require_finite(numbers["logsumexp"][own], names)
        found.append(
            token_table(
                detokenizer,
                listed.ids,
                listed.positions,
                listed.kinds,
                {name: values[own] for name, values in numbers.items()} if len(at) else {},
                at=at,
                alternatives=options.alternatives,
                spans=prompt.spans,
                rows={"logits": logits, "hidden": _kept_hidden(hidden[own], options) if keeps_hidden else None},
            )
        )
    return found


def rows_of(prompt: EncodedPrompt, detokenizer: Detokenizer, options: Options) -> dict[str, int]:
    """Row counts of a request's tables; 0 for the answer, whose length is not known yet."""
    before = {"prompt": len(prompt_rows(prompt.ids, prompt.spans, detokenizer.special).ids)} if options.prompt else {}
    return {**before, "output": 0}


def head_columns(
    head: Head, hidden: States, ids: np.ndarray, options: Options, slots: Slots | None
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Columns of the tokens ``ids`` [R] given the states [R, H], and the full rows if they are kept in memory."""
    held: list[Tensor] = []
    kept = (slots or held) if "logits" in options.keep else None
    stats = head.stats(hidden, torch.as_tensor(ids, device=hidden.device), options.alternatives, keep=kept)
    return numpy_columns(stats), torch.cat(held).numpy() if held else None


def finish_reason(made: np.ndarray, prompt: int, config: GenerationConfig) -> str:
    """Why an answer of the ids ``made``, those that were generated, to a prompt of ``prompt`` positions ended."""
    if len(made) and int(made[-1]) in end_ids(config):
        return "stop"
    limit = config.max_new_tokens if config.max_new_tokens is not None else config.max_length - prompt
    return "length" if len(made) >= limit else "stop"


def _answer_length(made: np.ndarray, config: GenerationConfig) -> int:
    """How many of the generated ids belong to the answer: up to and including its end token."""
    ends = set(end_ids(config))
    return next((place for place, each in enumerate(made.tolist(), 1) if each in ends), len(made))


def _step_columns(ran: Run) -> dict[str, np.ndarray]:
    """The columns of every step as arrays [T, N, ...], copied to the CPU at once; empty with beams."""
    if ran.beam_indices is not None:
        return {}
    steps = ran.steps
    columns = {name: values.cpu().numpy() for name, values in steps.columns().items()}
    if isinstance(steps.logits, list) and steps.logits:
        columns["logits"] = torch.stack(steps.logits).numpy()
    return columns


def _with_logits(
    before: TokenTable | None, output: TokenTable, file: RowFile | None
) -> tuple[TokenTable | None, TokenTable]:
    """The tables with their full rows in the file, if there is one; it is closed."""
    if file is None:
        return before, output
    mapped = file.close({"output": len(output)})
    return before and replace(before, logits=mapped["prompt"]), replace(output, logits=mapped["output"])


def _kept_hidden(hidden: Tensor | None, options: Options) -> np.ndarray | None:
    return hidden.float().cpu().numpy() if hidden is not None and "hidden" in options.keep else None
