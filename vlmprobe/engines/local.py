"""The local engine: a transformers model in this process, with every number taken from the model's own arithmetic."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from vlmprobe.adapter import Adapter, EncodedPrompt
from vlmprobe.capture import Head, Steps
from vlmprobe.detokenize import Detokenizer
from vlmprobe.engines import Options
from vlmprobe.engines.decoding import generation_config
from vlmprobe.engines.forced import begun, preceded, score_ids
from vlmprobe.engines.images import ImageMemory, remembered
from vlmprobe.engines.layers import LayerColumns, layer_columns
from vlmprobe.engines.run import Run, alone, run, seeded, to_model
from vlmprobe.engines.scoring import score
from vlmprobe.engines.stream import Rows, Stream
from vlmprobe.engines.tables import (
    PromptRows,
    numpy_columns,
    prompt_rows,
    require_finite,
    token_kinds,
    token_table,
)
from vlmprobe.errors import GenerationOptionError, MessageError
from vlmprobe.images import thumbnail
from vlmprobe.measures import RowStats
from vlmprobe.messages import Conversation
from vlmprobe.result import Result, Scores
from vlmprobe.table import TokenTable

__all__ = ["LocalEngine"]

COUNT_PADDING = {  # option: its neutral value
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
}
THUMBNAIL = 512  # pixels of the longer side of the pictures that a result carries for display


class LocalEngine:
    """Runs an adapter's model. Safe to call from several threads; calls on one model take turns."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.head = Head(adapter.outer, adapter.backbone)
        self.detokenizer = Detokenizer(adapter.tokenizer)
        self.memory: ImageMemory | None = None  # where image features are looked for, in a session

    def remembering(self, images: int) -> LocalEngine:
        """The same engine with a memory of the features of that many pictures (or sets of pictures) met last."""
        engine = copy.copy(self)
        engine.memory = ImageMemory(images)
        return engine

    def check(self, conversations: Sequence[Conversation], options: Options) -> None:
        """Raise what is wrong with a request before anything runs."""
        for conversation in conversations:
            self.adapter.check(conversation)
        self._config(options)

    def batch_size(self, wanted: int, options: Options) -> int:
        """The largest batch up to ``wanted`` in which every request gives the numbers that it gives alone.

        That is one where padding is not invisible to the model, where draws of a seed would be shared, where an
        answer may end by something other than its end token, which only the whole batch's end would tell, and where
        an option, or a processor of the caller, counts padding as text.
        """
        config = self._config(options)
        ends = config.stop_strings or config.max_time
        drawn = options.seed is not None and config.do_sample
        counts = config.max_new_tokens is None or any(
            getattr(config, name, neutral) not in (None, neutral) for name, neutral in COUNT_PADDING.items()
        )
        counts = counts or bool(options.processors)
        return 1 if ends or drawn or counts or not self.adapter.capabilities.batching else wanted

    def generate(
        self,
        conversations: Sequence[Conversation],
        options: Options,
        listen: Callable[[Steps, Tensor], bool] | None = None,
    ) -> list[Result]:
        """Answer N conversations as one batch, in one run of the model, to which ``listen`` listens."""
        config = self._config(options)
        model = self.adapter.model
        clock = [time.perf_counter()]
        with (
            alone(model),
            seeded(model, options.seed),
            remembered(self.adapter, self.memory, conversations) as features,
        ):
            encoding = self.adapter.encode(conversations)
            clock.append(time.perf_counter())
            inputs = begun(self.adapter, encoding.inputs, options.begin)
            # The rows of a given beginning are read where those of the prompt are.
            kept = replace(options, prompt=True) if options.begin else options
            ran = run(self.adapter, to_model(model, inputs), config, kept, listen)
            clock.append(time.perf_counter())
            columns = _step_columns(ran)
            tables = [
                self._tables(prompt, row, ran, columns, config, options) for row, prompt in enumerate(encoding.prompts)
            ]
            clock.append(time.perf_counter())
        meta: dict[str, Any] = {
            "value_kind": "raw",
            "generation_config": _plain(config.to_diff_dict()),
            "seed": options.seed,
            "batch_size": len(conversations),
            "timings": dict(zip(("encode_s", "generate_s", "read_s"), np.diff(clock).tolist(), strict=True)),
        }
        if features is not None:
            meta["image_features"] = str(features)
        if options.processors:
            meta["logits_processor"] = [type(each).__name__ for each in options.processors]
        if options.begin:
            meta["begin"] = list(options.begin)
        return [
            Result(
                text=self.detokenizer.join(output.ids.tolist(), output.tokens),
                prompt=prompt_side,
                output=output,
                input_ids=prompt.ids,
                meta={**meta, "finish_reason": _finish_reason(output[len(options.begin) :], ran.length, config)},
                images=tuple(thumbnail(image, THUMBNAIL) for image in conversation.images),
            )
            for conversation, prompt, (prompt_side, output) in zip(conversations, encoding.prompts, tables, strict=True)
        ]

    def score(self, conversation: Conversation, candidates: Sequence[str], options: Options) -> Scores:
        """Score each candidate as the answer to the conversation."""
        started = time.perf_counter()
        memory = ImageMemory(images=1) if self.memory is None else self.memory
        with alone(self.adapter.model), remembered(self.adapter, memory, [conversation]) as features:
            tables, boundaries, prefix = score(
                self.adapter, self.head, self.detokenizer, conversation, candidates, options
            )
        meta = {"value_kind": "raw", "prefix": prefix, "timings": {"score_s": time.perf_counter() - started}}
        if features is not None:
            meta["image_features"] = str(features)
        images = tuple(thumbnail(image, THUMBNAIL) for image in conversation.images)
        return Scores(list(candidates), tables, boundaries, meta, images)

    def stream(self, conversation: Conversation, options: Options) -> Stream:
        """The answer to a conversation, token by token."""
        config = self._config(options)
        if (config.num_beams or 1) > 1:
            raise GenerationOptionError("Beams are known only at the end: stream with num_beams=1, or call generate.")

        def answer(listener: Callable[[TokenTable], bool]) -> Result:
            rows = Rows(self.detokenizer)
            closed = False

            def listen(steps: Steps, ids: Tensor) -> bool:
                nonlocal closed
                closed = listener(rows.of(steps, ids))
                return closed

            result = self.generate([conversation], options, listen)[0]
            ended = result.finish_reason == "length" or int(result.output.ids[-1]) in _ends(config)
            return result if ended or not closed else replace(result, meta={**result.meta, "finish_reason": "closed"})

        return Stream(answer)

    def score_ids(
        self, conversations: Sequence[Conversation], ids: Sequence[int], options: Options
    ) -> list[TokenTable]:
        """The tables of the same answer ids after each of the conversations, which have equally many images."""
        with alone(self.adapter.model), remembered(self.adapter, self.memory, conversations):
            encoding = self.adapter.encode(conversations)
            return score_ids(self.adapter, self.head, self.detokenizer, encoding, ids, options)

    def layers(
        self, conversation: Conversation, options: Options, **what: Any
    ) -> tuple[Result | None, TokenTable, LayerColumns]:
        """What each decoder layer says: see :func:`~vlmprobe.engines.layers.layer_columns`."""
        self._config(options)
        return layer_columns(self, conversation, options, **what)

    def answer_ids(self, conversation: Conversation, text: str) -> list[int]:
        """Ids of a text written right after the prompt of a conversation.

        Raises:
            MessageError: where the tokenizer merges the two, so that the answer has no tokens of its own.
        """
        prompt = self.adapter.encode([conversation]).prompts[0]
        found = self.adapter.continuation(prompt, text)
        if found.shared < len(prompt.ids):
            lost = self.detokenizer.decode(prompt.ids[found.shared :].tolist())
            raise MessageError(
                f"The answer {text!r} merges with the end of the prompt, {lost!r}: begin it otherwise, or give its ids."
            )
        return list(found.ids)

    def prompt_rows(self, prompt: EncodedPrompt) -> PromptRows:
        """Which rows the table of a prompt has."""
        return prompt_rows(prompt.ids, prompt.spans, self.detokenizer.special)

    def _config(self, options: Options) -> GenerationConfig:
        return generation_config(self.adapter.model.generation_config, options.generation, self.adapter.end_ids)

    def _tables(
        self,
        prompt: EncodedPrompt,
        row: int,
        ran: Run,
        columns: dict[str, np.ndarray],
        config: GenerationConfig,
        options: Options,
    ) -> tuple[TokenTable | None, TokenTable]:
        """The prompt's table and the answer's of one row of the batch."""
        output = self._output_table(prompt, row, ran, columns, config, options)
        if ran.prefill is None or not options.prompt:
            return None, output
        return self.prompt_table(prompt, self._prefill(prompt, row, ran, config, options), options), output

    @staticmethod
    def _prefill(prompt: EncodedPrompt, row: int, ran: Run, config: GenerationConfig, options: Options) -> Tensor:
        """States [S + B, H] of one row's prompt and the B tokens that its answer begins with, without padding."""
        assert ran.prefill is not None
        return ran.prefill[row * (config.num_beams or 1), ran.length - len(prompt.ids) - len(options.begin) :]

    def _output_table(
        self,
        prompt: EncodedPrompt,
        row: int,
        ran: Run,
        columns: dict[str, np.ndarray],
        config: GenerationConfig,
        options: Options,
    ) -> TokenTable:
        made = ran.sequences[row, ran.length :].cpu().numpy()
        if ran.beam_indices is not None:
            made = made[: int((ran.beam_indices[row] >= 0).sum())]
        made = made[: _answer_length(made, config)]
        hidden = None
        if ran.decoded:
            source = [row] * len(made) if ran.beam_indices is None else ran.beam_indices[row].tolist()
            hidden = torch.stack([ran.decoded[step][source[step]] for step in range(len(made))])
        if ran.beam_indices is None:
            numbers = {name: values[: len(made), row] for name, values in columns.items()}
            more: dict[str, np.ndarray | None] = {name: numbers.pop(name, None) for name in ("logits", "scores")}
        else:
            assert hidden is not None  # run() always keeps them with beams
            numbers, logits = self._head_columns(hidden, made, options)
            more = {"logits": logits}
        more["hidden"] = _kept_hidden(hidden, options)
        if options.begin:
            first = np.array(options.begin, dtype=np.int64)
            states = self._prefill(prompt, row, ran, config, options)[len(prompt.ids) - 1 : -1]
            given, logits = self._head_columns(states, first, options)
            no_scores = np.full(len(first), np.nan, np.float32)  # these tokens were drawn from nothing
            made = np.concatenate([first, made])
            numbers = preceded(numbers, given)
            more = preceded(more, {"logits": logits, "hidden": _kept_hidden(states, options), "scores": no_scores})
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

    def prompt_table(self, prompt: EncodedPrompt, states: Tensor, options: Options) -> TokenTable:
        """The table of a prompt of S positions from at least its S states [S, H] that enter the head."""
        rows = self.prompt_rows(prompt)
        at = rows.scored
        hidden = states[torch.as_tensor(rows.positions[at] - 1, device=states.device)]
        numbers, logits = self._head_columns(hidden, rows.ids[at], options) if len(at) else ({}, None)
        if numbers:
            require_finite(numbers["logsumexp"], [f"prompt position {place}" for place in rows.positions[at]])
        return token_table(
            self.detokenizer,
            rows.ids,
            rows.positions,
            rows.kinds,
            numbers,
            at=at,
            alternatives=options.alternatives,
            spans=prompt.spans,
            rows={"logits": logits, "hidden": _kept_hidden(hidden, options)},
        )

    def _head_columns(
        self, hidden: Tensor, ids: np.ndarray, options: Options
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Columns of the tokens ``ids`` [R] under the states [R, H], and the full rows where they are kept."""
        kept: list[Tensor] | None = [] if "logits" in options.keep else None
        stats = self.head.stats(hidden, torch.as_tensor(ids, device=hidden.device), options.alternatives, keep=kept)
        return numpy_columns(stats), torch.cat(kept).numpy() if kept else None


def _step_columns(ran: Run) -> dict[str, np.ndarray]:
    """The columns of every step as arrays [T, N, ...], brought to the CPU together; empty with beams."""
    if ran.beam_indices is not None:
        return {}
    steps = ran.steps
    names = RowStats.__dataclass_fields__
    columns = {name: torch.stack([getattr(stats, name) for stats in steps.stats]).cpu().numpy() for name in names}
    if steps.processed:
        columns["scores"] = torch.stack(steps.processed).cpu().numpy()
    if steps.logits:
        columns["logits"] = torch.stack(steps.logits).numpy()
    return columns


def _ends(config: GenerationConfig) -> list[int]:
    ends = config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _answer_length(made: np.ndarray, config: GenerationConfig) -> int:
    """How many of the generated ids belong to the answer: up to its end token, which belongs to it."""
    stops = np.flatnonzero(np.isin(made, _ends(config)))
    return int(stops[0]) + 1 if len(stops) else len(made)


def _finish_reason(output: TokenTable, prompt: int, config: GenerationConfig) -> str:
    if len(output) and int(output.ids[-1]) in _ends(config):
        return "stop"
    limit = config.max_new_tokens if config.max_new_tokens is not None else config.max_length - prompt
    return "length" if len(output) >= limit else "stop"


def _kept_hidden(hidden: Tensor | None, options: Options) -> np.ndarray | None:
    return hidden.float().cpu().numpy() if hidden is not None and "hidden" in options.keep else None


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """The JSON-ready part of a generation config."""
    return {key: value for key, value in config.items() if isinstance(value, (str, int, float, bool, list, type(None)))}
