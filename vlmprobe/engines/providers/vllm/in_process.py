"""vLLM in this process: ``vlmprobe.load(MODEL, engine="vllm")``.

The prompt is rendered and tokenised here, and vLLM inserts the images itself. Started with
``logprobs_mode="raw_logits"``, every call reads whole rows of logits, as ``keep="logits"`` needs; otherwise only the
most likely tokens are read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vlmprobe.engines.base import Options
from vlmprobe.engines.constraint import Constraint
from vlmprobe.engines.providers.vllm.prompt import CONSTRAINTS, structured_outputs
from vlmprobe.engines.serving import BASIC, Abilities, Alternative, Answer, Decoding, Meaning, Row, Scored, Tokens
from vlmprobe.engines.serving.answer import EVERY_PROMPT
from vlmprobe.engines.serving.refusals import refuse
from vlmprobe.engines.serving.results import result_of, scores_of
from vlmprobe.engines.serving.value_kind import FLOOR
from vlmprobe.engines.token_tables import boundary
from vlmprobe.errors import AdapterError, CapabilityError, EngineResponseError, GenerationOptionError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.results.result import Result, Scores

__all__ = ["VLLMEngine"]

TITLE = "vLLM in this process"
MODES = {
    "raw_logprobs": Meaning("raw"),
    "raw_logits": Meaning("raw", logits=True),
    "processed_logprobs": Meaning("filtered"),
}
TAKES = BASIC | {"top_k", "min_p", "repetition_penalty", "min_new_tokens", "stop_strings", "eos_token_id"}
CONTEXT = 32  # ids before a candidate that affect how its text decodes
RESERVED = ("model", "logprobs_mode", "max_logprobs", "trust_remote_code")


class VLLMEngine:
    """A ``vllm.LLM``. Calls from several threads are serialised: vLLM's object is not thread-safe."""

    abilities = Abilities(
        no_logits='load with engine="vllm", logprobs_mode="raw_logits"',
        takes=TAKES,
        prompt=EVERY_PROMPT,
        constraints=CONSTRAINTS,
    )

    def __init__(self, llm: Any, tokens: Tokens, mode: str) -> None:
        self.llm = llm
        self.tokens = tokens
        self.meaning = MODES[mode]
        if self.meaning.logits:
            self.abilities = replace(self.abilities, no_logits="")
        self._turn = threading.Lock()

    @classmethod
    def open(cls, model: str, *, logprobs_mode: str = "raw_logprobs", **options: Any) -> VLLMEngine:
        """Start vLLM on a checkpoint.

        Args:
            model: a folder or hub id, in transformers' format.
            logprobs_mode: ``"raw_logprobs"``, ``"raw_logits"`` (whole rows) or ``"processed_logprobs"``.
            **options: of ``vllm.LLM``: ``dtype``, ``tensor_parallel_size``, ``max_model_len``, ...

        Raises:
            CapabilityError: if vLLM is not installed.
            GenerationOptionError: for an option that a probe sets itself.
        """
        if logprobs_mode not in MODES:
            raise GenerationOptionError(f"logprobs_mode must be one of {', '.join(MODES)}, not {logprobs_mode!r}")
        for name in RESERVED:
            if options.get(name):
                raise GenerationOptionError(f"{name} cannot be passed: a probe sets it")
        try:
            from vllm import LLM
        except ImportError as error:
            raise CapabilityError(
                "vLLM is not installed here: it needs a torch of its own, so install vlmprobe into the environment of "
                "vLLM, or start its server and use vlmprobe.connect. See docs/reference/engines.md."
            ) from error
        tokens = Tokens.of(model)
        return cls(LLM(model=model, logprobs_mode=logprobs_mode, max_logprobs=-1, **options), tokens, logprobs_mode)

    # -- the protocol of engines -------------------------------------------------------------------

    def check(self, conversations: Sequence[Conversation], options: Options) -> None:
        """Validate a request before anything runs."""
        refuse(TITLE, self.abilities, conversations, options)
        self._decoding(options)
        adapter = self.tokens.need("A prompt")
        for conversation in conversations:
            adapter.check(conversation)

    def batch_size(self, wanted: int, options: Options) -> int:
        """vLLM schedules requests itself, and they do not affect each other."""
        return wanted

    def generate(self, conversations: Sequence[Conversation], options: Options) -> list[Result]:
        """Answer the conversations together."""
        decoding = self._decoding(options)
        started = time.perf_counter()
        width = -1 if self.meaning.logits else options.alternatives
        sampling = self._sampling(decoding, options.seed, width, width if options.prompt else None, options.constraint)
        outputs = self._run([self._prompt(each, self._ids(each)[0]) for each in conversations], sampling)
        meta = {"batch_size": len(conversations), "timings": {"generate_s": time.perf_counter() - started}}
        return [
            result_of(
                self._answer(output, options),
                conversation,
                decoding,
                options,
                title=TITLE,
                abilities=self.abilities,
                meaning=self.meaning,
                tokens=self.tokens,
                meta=meta,
            )
            for conversation, output in zip(conversations, outputs, strict=True)
        ]

    def score(self, conversation: Conversation, candidates: Sequence[str], options: Options) -> Scores:
        """Score each candidate as the answer to the conversation, by its exact ids."""
        from vlmprobe.adapter import EncodedPrompt
        from vlmprobe.inputs.image_spans import ImageSpan, placeholder_runs

        started = time.perf_counter()
        adapter = self.tokens.need("Scoring")
        ids, text = self._ids(conversation)
        runs = placeholder_runs(ids, self.tokens.image_ids)
        prompt = EncodedPrompt(ids, tuple(ImageSpan(0, tile, *run) for tile, run in enumerate(runs)), text)
        try:
            written = [adapter.continuation(prompt, candidate) for candidate in candidates]
        except AdapterError as error:
            raise CapabilityError(f"vLLM cannot score this candidate: {error}") from error
        width = -1 if self.meaning.logits else options.alternatives
        sampling = self._sampling(Decoding(max_new_tokens=1), None, None, width)
        whole = [np.concatenate([ids[: each.shared], np.array(each.ids, dtype=np.int64)]) for each in written]
        outputs = self._run([self._prompt(conversation, each) for each in whole], sampling)
        scored = []
        for each, output in zip(written, outputs, strict=True):
            start = len(output.prompt_token_ids) - len(each.ids)
            rows = self._rows(output.prompt_logprobs, output.prompt_token_ids)[start:]
            detokenizer = self.tokens.detokenizer
            assert detokenizer is not None
            merged = boundary(len(ids) - each.shared, detokenizer.decode(ids[each.shared :].tolist()), start)
            scored.append(Scored(rows, start, merged, tuple(output.prompt_token_ids[max(0, start - CONTEXT) : start])))
        return scores_of(
            scored,
            conversation,
            candidates,
            options,
            title=TITLE,
            meaning=self.meaning,
            tokens=self.tokens,
            meta={"candidates": "ids", "timings": {"score_s": time.perf_counter() - started}},
        )

    # -- vLLM's side -------------------------------------------------------------------------------

    def _decoding(self, options: Options) -> Decoding:
        return Decoding.read(options.generation, TAKES, TITLE)

    def _ids(self, conversation: Conversation) -> tuple[np.ndarray, str]:
        """The prompt as the template renders it: one placeholder per image, which vLLM expands."""
        adapter = self.tokens.need("A prompt")
        text = adapter.render([conversation])[0]
        return np.array(adapter.tokenize(text), dtype=np.int64), text

    def _prompt(self, conversation: Conversation, ids: np.ndarray) -> dict[str, Any]:
        images = list(conversation.images)
        return {"prompt_token_ids": ids.tolist(), **({"multi_modal_data": {"image": images}} if images else {})}

    def _sampling(
        self,
        decoding: Decoding,
        seed: int | None,
        top: int | None,
        prompt: int | None,
        constraint: Constraint | None = None,
    ) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        drawn = decoding.do_sample
        return SamplingParams(
            max_tokens=decoding.max_new_tokens,
            temperature=decoding.temperature if drawn else 0.0,
            top_p=decoding.top_p if drawn else 1.0,
            top_k=decoding.top_k if drawn and decoding.top_k else -1,
            min_p=decoding.min_p if drawn else 0.0,
            repetition_penalty=decoding.repetition_penalty,
            min_tokens=decoding.min_new_tokens,
            stop=list(decoding.stop_strings) or None,
            stop_token_ids=list(decoding.eos_token_id) or None,
            seed=seed,
            logprobs=top,
            prompt_logprobs=prompt,
            flat_logprobs=True,  # dictionaries of a whole vocabulary cost twenty times as much
            detokenize=bool(decoding.stop_strings),
            structured_outputs=None
            if constraint is None
            else StructuredOutputsParams(**structured_outputs(constraint)),
        )

    def _run(self, prompts: list[dict[str, Any]], sampling: Any) -> list[Any]:
        with self._turn:
            return list(self.llm.generate(prompts, sampling, use_tqdm=False))

    def _answer(self, output: Any, options: Options) -> Answer:
        made = output.outputs[0]
        ids = np.array(output.prompt_token_ids, dtype=np.int64)
        rows = self._rows(made.logprobs, made.token_ids)
        prompt = self._rows(output.prompt_logprobs, output.prompt_token_ids) if options.prompt else None
        return Answer(None, str(made.finish_reason or "length"), rows, ids, prompt)

    def _rows(self, flat: Any, ids: Sequence[int]) -> list[Row]:
        """Rows of tokens from vLLM's flat container: at each position the token itself, then the most likely ones."""
        starts, ends = flat.start_indices, flat.end_indices
        if len(starts) != len(ids):
            raise EngineResponseError(f"{TITLE}: {len(starts)} rows of log-probabilities for {len(ids)} tokens")
        tokens, values = np.asarray(flat.token_ids, dtype=np.int64), np.asarray(flat.logprobs, dtype=np.float32)
        rows = []
        for start, end, token in zip(starts, ends, ids, strict=True):
            if start == end:  # the first position of a prompt
                rows.append(Row(id=int(token)))
            elif self.meaning.logits:
                rows.append(_whole(tokens[start:end], values[start:end], int(token)))
            else:
                rows.append(_likeliest(tokens[start:end], values[start:end], flat.ranks[start:end], int(token)))
        return rows


def _whole(tokens: np.ndarray, values: np.ndarray, token: int) -> Row:
    row = np.full(int(tokens.max()) + 1, np.nan, np.float32)
    row[tokens] = values  # the token itself appears twice, with the same value
    if np.isnan(row).any():
        raise EngineResponseError(f"{TITLE}: a row does not cover the whole vocabulary as requested")
    return Row(float(row[token]), token, full=row)


def _likeliest(tokens: np.ndarray, values: np.ndarray, ranks: Sequence[int | None], token: int) -> Row:
    own = int(np.flatnonzero(tokens == token)[0])
    rank = ranks[own]
    found: dict[int, float] = {}
    for place, (each, value) in enumerate(zip(tokens.tolist(), values.tolist(), strict=True)):
        # The token itself comes first whatever its rank; it is an alternative only if its rank is among theirs.
        among = place > 0 or (rank is not None and rank < len(tokens))
        if among and value > FLOOR:
            found[each] = value
    best = sorted(found.items(), key=lambda pair: -pair[1])
    top = tuple(Alternative(value, each) for each, value in best)
    return Row(float(values[own]), token, None, None if rank is None else rank - 1, top)
