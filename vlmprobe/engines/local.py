"""The local engine: a transformers model in this process, with every number taken from the model's own arithmetic."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.stopping_criteria import StopStringCriteria
from transformers.generation.utils import GENERATION_MODES_MAPPING

from vlmprobe.adapter import Adapter, Continuation, EncodedPrompt, Encoding
from vlmprobe.capture import Head, Steps, watch_backbone
from vlmprobe.detokenize import Detokenizer
from vlmprobe.engines import Options
from vlmprobe.engines.candidates import Path, SharedPrefix, why_not_shared
from vlmprobe.engines.decoding import generation_config
from vlmprobe.engines.tables import PromptRows, prompt_rows, token_table
from vlmprobe.errors import GenerationOptionError, NonFiniteLogitsError
from vlmprobe.images import thumbnail
from vlmprobe.measures import RowStats
from vlmprobe.messages import Conversation
from vlmprobe.result import Result, Scores
from vlmprobe.table import TokenTable

__all__ = ["LocalEngine"]

THUMBNAIL = 512  # pixels of the longer side of the pictures that a result carries for display
MODES = ("greedy_search", "sample", "beam_search", "beam_sample")
# Hooks and state on a model (rope deltas, adapters' scratch) belong to one call at a time, whoever holds the model.
_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_RNG = threading.RLock()  # torch has one global generator per device


@dataclass
class _Seen:
    """What the hooks of one generate call saw, for a batch of N (times the number of beams)."""

    steps: Steps
    prefill: list[Tensor]  # hidden states [N, s, H] that cover the S prompt positions
    decoded: list[Tensor]  # [T] hidden states [N, H] that each step's logits came from; empty where not wanted


class LocalEngine:
    """Runs an adapter's model. Safe to call from several threads; calls on one model take turns."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.head = Head(adapter.outer, adapter.backbone)
        self.detokenizer = Detokenizer(adapter.tokenizer)
        self._lock = _LOCKS.setdefault(adapter.model, threading.RLock())

    # -- generating --------------------------------------------------------------------------------

    def check(self, conversations: Sequence[Conversation], options: Options) -> None:
        """Raise what is wrong with a request before anything runs."""
        for conversation in conversations:
            self.adapter.check(conversation)
        self._config(options)

    def generate(self, conversations: Sequence[Conversation], options: Options) -> list[Result]:
        """Answer N conversations as one batch, in one run of the model."""
        config = self._config(options)
        started = time.perf_counter()
        with self._lock, _evaluating(self.adapter.model), _seeded(self.adapter.model, options.seed):
            encoding = self.adapter.encode(conversations)
            encoded = time.perf_counter()
            output, seen = self._run(encoding, config, options)
            generated = time.perf_counter()
            answers = [self._answer(encoding, row, output, seen, config, options) for row in range(len(conversations))]
        timings = {
            "encode_s": encoded - started,
            "generate_s": generated - encoded,
            "read_s": time.perf_counter() - generated,
        }
        results = []
        for row, (text, prompt, table, reason) in enumerate(answers):
            meta = {
                "finish_reason": reason,
                "generation_config": _plain(config.to_diff_dict()),
                "seed": options.seed,
                "value_kind": "raw",
                "batch_size": len(conversations),
                "timings": timings,
            }
            images = tuple(thumbnail(image, THUMBNAIL) for image in conversations[row].images)
            results.append(Result(text, prompt, table, encoding.prompts[row].ids, meta, images))
        return results

    def _config(self, options: Options) -> GenerationConfig:
        config = generation_config(self.adapter.model.generation_config, options.generation)
        config.eos_token_id = (
            sorted(self.adapter.end_ids) if "eos_token_id" not in options.generation else config.eos_token_id
        )
        if config.pad_token_id is None and config.eos_token_id:
            ends = config.eos_token_id
            config.pad_token_id = ends if isinstance(ends, int) else ends[0]
        mode = config.get_generation_mode().value
        if mode not in MODES:
            raise GenerationOptionError(f"These options ask for {mode}; a probe reads {', '.join(MODES)}.")
        return config

    def _run(self, encoding: Encoding, config: GenerationConfig, options: Options) -> tuple[Any, _Seen]:
        model = self.adapter.model
        beams = (config.num_beams or 1) > 1
        length = encoding.inputs["input_ids"].shape[1]
        wants_prompt = options.prompt
        wants_steps = beams or "hidden" in options.keep
        seen = _Seen(Steps(options.alternatives, keep_logits="logits" in options.keep and not beams), [], [])
        covered = 0

        def look(hidden: Tensor) -> None:
            nonlocal covered
            covered += hidden.shape[1]
            if covered <= length and wants_prompt:
                seen.prefill.append(hidden)
            if covered >= length and wants_steps:
                seen.decoded.append(hidden[:, -1].clone())

        def decode(model: Any, input_ids: Tensor, logits_processor: LogitsProcessorList, **rest: Any) -> Any:
            if not beams:  # beam search hands log-softmax to its processors, and rows change places
                logits_processor = seen.steps.around(logits_processor)
            loop = getattr(type(model), GENERATION_MODES_MAPPING[rest["generation_config"].get_generation_mode()])
            return loop(model, input_ids, logits_processor=logits_processor, **rest)

        inputs = self._to_model(encoding.inputs)
        criteria = StoppingCriteriaList()
        stop_strings, config.stop_strings = config.stop_strings, None
        if stop_strings:  # generate gives its tokenizer to no custom decoding function
            criteria.append(StopStringCriteria(self.adapter.tokenizer, stop_strings))
        with watch_backbone(self.adapter.backbone, look):
            try:
                output = model.generate(
                    **inputs, generation_config=config, custom_generate=decode, stopping_criteria=criteria
                )
            except RuntimeError as error:
                self._explain_non_finite(seen.steps, error)
                raise
        config.stop_strings = stop_strings
        steps_run = len(seen.steps.stats)
        made = output.sequences.shape[1] - length
        if not beams and steps_run < made:
            seen.steps.finish(output.sequences[:, length + steps_run])
        return output, seen

    def _to_model(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs on the model's device, real numbers in its dtype."""
        model = self.adapter.model
        return {
            key: value.to(model.device, model.dtype if value.is_floating_point() else None)
            if isinstance(value, Tensor)
            else value
            for key, value in inputs.items()
        }

    @staticmethod
    def _explain_non_finite(steps: Steps, error: RuntimeError) -> None:
        bad = [step for step, stats in enumerate(steps.stats) if not stats.logsumexp.isfinite().all()]
        if bad or steps.pending_is_bad():
            step = bad[0] if bad else len(steps.stats)
            raise NonFiniteLogitsError(_non_finite(f"generated token {step}")) from error

    def _answer(
        self, encoding: Encoding, row: int, output: Any, seen: _Seen, config: GenerationConfig, options: Options
    ) -> tuple[str, TokenTable | None, TokenTable, str]:
        prompt = encoding.prompts[row]
        padded = encoding.inputs["input_ids"].shape[1]
        made = output.sequences[row, padded:].cpu().numpy()
        beams = config.num_beams or 1
        if beams > 1:
            made = made[: int((output.beam_indices[row] >= 0).sum())]
        count, reason = _length(made, config)
        made = made[:count]
        numbers, extra = self._output_columns(output, seen, row, made, beams, options)
        _require_finite(numbers["logsumexp"], [f"generated token {step}" for step in range(count)])
        positions = len(prompt.ids) + np.arange(count)
        table = token_table(
            self.detokenizer, made, positions, self._kinds(made), numbers, alternatives=options.alternatives, **extra
        )
        prompt_table = None
        if options.prompt:
            rows = prompt_rows(prompt.ids, prompt.spans, self.detokenizer.special)
            states = torch.cat([part[row * beams] for part in seen.prefill])[padded - len(prompt.ids) :]
            prompt_table = self._rows_table(rows, rows.scored, states, options, spans=prompt.spans)
        return self.detokenizer.join(made.tolist(), table.tokens), prompt_table, table, reason

    def _output_columns(
        self, output: Any, seen: _Seen, row: int, made: np.ndarray, beams: int, options: Options
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray | None]]:
        steps, count = seen.steps, len(made)
        hidden = None
        if seen.decoded:
            source = output.beam_indices[row].tolist() if beams > 1 else [row] * count
            hidden = torch.stack([seen.decoded[step][source[step]] for step in range(count)])
        if beams > 1:
            kept: list[Tensor] | None = [] if "logits" in options.keep else None
            ids = torch.as_tensor(made, device=hidden.device)
            numbers = _numpy(self.head.stats(hidden, ids, options.alternatives, keep=kept))
            logits = torch.cat(kept).numpy() if kept else None
            scores = None
        else:
            parts = [stats.rows(slice(row, row + 1)) for stats in steps.stats[:count]]
            numbers = _numpy(RowStats.join(parts))
            logits = torch.stack([rows[row] for rows in steps.logits[:count]]).numpy() if steps.logits else None
            scores = (
                torch.stack([part[row] for part in steps.processed[:count]]).cpu().numpy() if steps.processed else None
            )
        kept_hidden = hidden.float().cpu().numpy() if "hidden" in options.keep and hidden is not None else None
        return numbers, {"logits": logits, "scores": scores, "hidden": kept_hidden}

    def _rows_table(
        self, rows: PromptRows, at: np.ndarray, states: Tensor, options: Options, **more: Any
    ) -> TokenTable:
        """The table of ``rows``, numbers for those in ``at`` from ``states`` [S, H], the hidden states of the sequence."""
        hidden = states[torch.as_tensor(rows.positions[at] - 1, device=states.device)]
        kept: list[Tensor] | None = [] if "logits" in options.keep else None
        numbers: dict[str, np.ndarray] = {}
        if len(at):
            ids = torch.as_tensor(rows.ids[at], device=states.device)
            numbers = _numpy(self.head.stats(hidden, ids, options.alternatives, keep=kept))
            _require_finite(numbers["logsumexp"], [f"prompt position {rows.positions[row]}" for row in at])
        return token_table(
            self.detokenizer,
            rows.ids,
            rows.positions,
            rows.kinds,
            numbers,
            at=at,
            alternatives=options.alternatives,
            logits=torch.cat(kept).numpy() if kept else None,
            hidden=hidden.float().cpu().numpy() if "hidden" in options.keep else None,
            **more,
        )

    # -- scoring -----------------------------------------------------------------------------------

    def score(self, conversation: Conversation, candidates: Sequence[str], options: Options) -> Scores:
        """Score candidates on one prefill of the prompt; where its cache cannot be continued, by a full forward each."""
        started = time.perf_counter()
        with self._lock, _evaluating(self.adapter.model):
            encoding = self.adapter.encode([conversation])
            prompt = encoding.prompts[0]
            continuations = [self.adapter.continuation(prompt, text) for text in candidates]
            whole = [each for each in continuations if each.shared == len(prompt.ids)]
            states, reason = self._shared_states(encoding, whole) if whole else ({}, None)
            if reason or len(whole) < len(continuations):
                apart = continuations if reason else [each for each in continuations if each not in whole]
                states |= {key: rows for each in apart for key, rows in self._forward_states(encoding, each).items()}
            tables = self._candidate_tables(prompt, continuations, states, options)
        meta = {
            "value_kind": "raw",
            "prefix": reason or "shared",
            "timings": {"score_s": time.perf_counter() - started},
        }
        images = tuple(thumbnail(image, THUMBNAIL) for image in conversation.images)
        boundaries = [self._boundary(prompt, each) for each in continuations]
        return Scores(list(candidates), tables, boundaries, meta, images)

    def _shared_states(
        self, encoding: Encoding, candidates: Sequence[Continuation]
    ) -> tuple[dict[tuple[int, Path], Tensor], str | None]:
        """The state [H] from which each candidate token is drawn, by (shared, ids before it), from one prefill."""
        output, seen = self._run(encoding, self._one_step(), Options(alternatives=1))
        if reason := why_not_shared(self.adapter, output.past_key_values):
            return {}, reason
        inputs = self._to_model(encoding.inputs)
        prefix = SharedPrefix(
            self.adapter, inputs, output.past_key_values, torch.cat([part[0] for part in seen.prefill])[-1]
        )
        found = prefix.states([each.ids[:-1] for each in candidates])
        return {(candidates[0].shared, path): state for path, state in found.items()}, None

    def _forward_states(self, encoding: Encoding, candidate: Continuation) -> dict[tuple[int, Path], Tensor]:
        """The same for one candidate, from a forward of prompt and candidate."""
        drop = len(encoding.prompts[0].ids) - candidate.shared
        inputs = self.adapter.extend(encoding.inputs, torch.tensor([candidate.ids]), drop)
        _, seen = self._run(Encoding(inputs, encoding.prompts), self._one_step(), Options(alternatives=1))
        states = torch.cat([part[0] for part in seen.prefill])[candidate.shared - 1 :]
        return {(candidate.shared, candidate.ids[:place]): states[place] for place in range(len(candidate.ids))}

    def _one_step(self) -> GenerationConfig:
        return generation_config(
            self.adapter.model.generation_config, {"max_new_tokens": 1, "do_sample": False, "num_beams": 1}
        )

    def _candidate_tables(
        self,
        prompt: EncodedPrompt,
        candidates: Sequence[Continuation],
        states: dict[tuple[int, Path], Tensor],
        options: Options,
    ) -> list[TokenTable]:
        wanted = [
            (each.shared, each.ids[:place], each.ids[place]) for each in candidates for place in range(len(each.ids))
        ]
        sources = list(dict.fromkeys((shared, path) for shared, path, _ in wanted))
        row_of = {source: row for row, source in enumerate(sources)}
        of = torch.tensor([row_of[shared, path] for shared, path, _ in wanted])
        order = torch.argsort(of, stable=True)
        hidden = torch.stack([states[source] for source in sources])
        kept: list[Tensor] | None = [] if "logits" in options.keep else None
        ids = torch.tensor([token for _, _, token in wanted])
        stats = self.head.stats(hidden, ids[order], options.alternatives, of=of[order], keep=kept)
        numbers = _numpy(stats.rows(torch.argsort(order).to(stats.ranks.device)))
        _require_finite(
            numbers["logsumexp"], [f"candidate token {token} after {list(path)}" for _, path, token in wanted]
        )
        rows = torch.cat(kept).numpy() if kept else None
        inner = hidden.float().cpu().numpy() if "hidden" in options.keep else None
        tables, start = [], 0
        for each in candidates:
            cut = slice(start, start + len(each.ids))
            start = cut.stop
            made = np.array(each.ids, dtype=np.int64)
            tables.append(
                token_table(
                    self.detokenizer,
                    made,
                    each.shared + np.arange(len(made)),
                    self._kinds(made),
                    {name: values[cut] for name, values in numbers.items()},
                    alternatives=options.alternatives,
                    context=prompt.ids[: each.shared].tolist(),
                    logits=None if rows is None else rows[of[cut].numpy()],
                    hidden=None if inner is None else inner[of[cut].numpy()],
                )
            )
        return tables

    def _kinds(self, ids: np.ndarray) -> list[str]:
        return ["special" if int(each) in self.detokenizer.special else "text" for each in ids]

    def _boundary(self, prompt: EncodedPrompt, candidate: Continuation) -> str | None:
        merged = len(prompt.ids) - candidate.shared
        if not merged:
            return None
        lost = self.detokenizer.decode(prompt.ids[candidate.shared :].tolist())
        return f"the last {merged} prompt token(s) {lost!r} merge with the candidate; scored from position {candidate.shared}"


def _length(made: np.ndarray, config: GenerationConfig) -> tuple[int, str]:
    """How many of the generated ids belong to the answer, and why it ended."""
    ends = config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    stops = np.flatnonzero(np.isin(made, ends))
    if len(stops):
        return int(stops[0]) + 1, "stop"
    limit = config.max_new_tokens
    return len(made), "length" if limit is not None and len(made) >= limit else "stop"


def _numpy(stats: RowStats) -> dict[str, np.ndarray]:
    return {name: getattr(stats, name).cpu().numpy() for name in stats.__dataclass_fields__}


def _require_finite(logsumexp: np.ndarray, names: Sequence[str]) -> None:
    bad = np.flatnonzero(~np.isfinite(logsumexp))
    if len(bad):
        raise NonFiniteLogitsError(_non_finite(names[bad[0]]))


def _non_finite(where: str) -> str:
    return (
        f"The model's logits for {where} are not finite. Usual causes: float16 overflow (load with dtype='bfloat16' "
        "or 'float32'), damaged weights, or a model that does not support the attention implementation in use."
    )


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """The JSON-ready part of a generation config."""
    return {key: value for key, value in config.items() if isinstance(value, (str, int, float, bool, list, type(None)))}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off and gradients off for the time of a call; every module's mode is put back."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _seeded(model: Any, seed: int | None) -> Iterator[None]:
    """Draw with a seed of one's own and put the global generators back; without a seed they simply go on."""
    if seed is None:
        yield
        return
    devices = [model.device] if model.device.type == "cuda" else []
    with _RNG, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
