"""Constrained decoding: tokens that a schema, a grammar or a function does not allow are ruled out before one is drawn.

Of llguidance, which computes the allowed tokens, a grammar's option ``no_forcing`` is used: without it, where only one
text can follow, it allows the tokenizer's own tokens of that text alone, so that :attr:`Mask.allowed` would leave out
others that spell the same.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

from vlmprobe.adapter import Adapter
from vlmprobe.engines.base import Options
from vlmprobe.engines.local.generation_config import end_ids
from vlmprobe.errors import CapabilityError, GenerationOptionError, MissingExtraError
from vlmprobe.results.detokenize import Detokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["Grammars", "Mask"]

SPACES = r"( |\n {0,16})?"  # between the parts of a JSON document; without a limit some models write nothing else
HEADER = '%llguidance {"no_forcing": true}\n'
TRIES, LONGEST = 32, 1000  # answers that are tried out before a grammar counts as one without end, and their tokens
ENDING = tuple("\"]})>'`\n")  # what tokens begin with that tend to end something; these are tried out first
ENDS_AT = 0.7  # how often a token is one that tends to end something, from the second try on
PAIRS = 64  # tokens by which it is found out whether texts of tokens make up the text


class Mask(LogitsProcessor):
    """Rules out the tokens that are not allowed, and keeps which were allowed in the current step."""

    allowed: Tensor  # bool [N, V], of the step that was processed last
    why = "what the constraint allows"

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores [N, V], minus infinity where a token is not allowed."""
        self.allowed = self.of(input_ids, scores.shape[1]).to(scores.device)
        left = scores.masked_fill(~self.allowed, float("-inf"))
        if bool((left.amax(dim=-1) == float("-inf")).any()):
            raise GenerationOptionError(
                f"No token is left: the other options of this call (min_new_tokens, suppress_tokens, bad_words_ids, "
                f"forced tokens, logits_processor) rule out {self.why}."
            )
        return left

    def of(self, input_ids: Tensor, width: int) -> Tensor:
        """bool [N, V]: what may follow the ids [N, S]."""
        raise NotImplementedError


class FunctionMask(Mask):
    """Allows what a function ``(batch_id, ids)`` lists, as transformers' ``prefix_allowed_tokens_fn``."""

    why = "what prefix_allowed_tokens_fn allows"

    def __init__(self, function: Any) -> None:
        self.function = function

    def of(self, input_ids: Tensor, width: int) -> Tensor:
        allowed = torch.zeros(len(input_ids), width, dtype=torch.bool)
        for row, ids in enumerate(input_ids):
            listed = self.function(row, ids)
            if not len(listed):
                raise GenerationOptionError("prefix_allowed_tokens_fn allows no token at some step")
            allowed[row, torch.as_tensor(listed, dtype=torch.long).cpu()] = True
        return allowed


class GrammarMask(Mask):
    """Allows every token that a grammar can go on with, and an end token where it can end."""

    def __init__(self, start: LLMatcher, ends: frozenset[int], name: str) -> None:
        self.start = start  # after the tokens that the answer begins with
        self.ends = ends
        self.why = f"what the {name} allows"
        self.name = name
        self.matchers: list[LLMatcher] = []
        self.ended: list[bool] = []

    def of(self, input_ids: Tensor, width: int) -> Tensor:
        if not self.matchers:
            self.matchers = [self.start.deep_copy() for _ in input_ids]
            self.ended = [False] * len(input_ids)
        else:
            for row, token in enumerate(input_ids[:, -1].tolist()):
                if not self.ended[row]:
                    self.matchers[row].consume_token(token)
                    self.ended[row] = token in self.ends
        allowed = np.zeros((len(self.matchers), width), dtype=bool)
        for row, matcher in enumerate(self.matchers):
            if self.ended[row]:
                allowed[row] = True  # padding
                continue
            bits = _allowed(matcher)
            if bits is None:
                raise GenerationOptionError(
                    f"The tokenizer has no token with which the answer could go on as the {self.name} says: "
                    f"{_reason(matcher)}"
                )
            allowed[row, : len(bits)] = bits[:width]
        return torch.from_numpy(allowed)


class Grammars:
    """Compiles the constraints of calls for one model."""

    def __init__(self, adapter: Adapter, detokenizer: Detokenizer) -> None:
        self.adapter = adapter
        self.detokenizer = detokenizer
        self._tokenizer = lru_cache(maxsize=4)(self._make_tokenizer)
        self._start = lru_cache(maxsize=16)(self._make_start)

    def require(self, options: Options, config: GenerationConfig) -> None:
        """Raise, before anything runs, for a constraint that no answer can obey.

        Raises:
            GenerationOptionError: for one that cannot be read, that no tokens of the model spell, that has no end, or
                that forbids what the answer is made to begin with; for beams.
            CapabilityError: for a tokenizer the texts of whose tokens do not make up the text.
            MissingExtraError: without llguidance.
        """
        if options.constraint is None:
            return
        if (config.num_beams or 1) > 1:
            raise GenerationOptionError(f"{options.constraint.name} needs num_beams=1: beams cannot be constrained.")
        self._mask(options, config)

    def constrained(self, options: Options, config: GenerationConfig) -> Options:
        """The options of one run with the constraint as a last processor, if there is one."""
        if options.constraint is None:
            return options
        return replace(options, processors=(*options.processors, self._mask(options, config)))

    def _mask(self, options: Options, config: GenerationConfig) -> Mask:
        constraint = options.constraint
        assert constraint is not None
        if constraint.kind == "function":
            return FunctionMask(constraint.value)
        ends = tuple(end_ids(config))
        if not ends:
            raise GenerationOptionError(f"{constraint.name} needs an end token: leave out eos_token_id.")
        start = self._start(constraint.kind, constraint.text, ends).deep_copy()
        for token in options.begin:
            if not start.consume_token(token):
                text = self.detokenizer.decode(options.begin)
                raise GenerationOptionError(
                    f"The answer is made to begin with {text!r}, which its {constraint.kind} forbids"
                )
        return GrammarMask(start, frozenset(ends), constraint.name)

    def _make_start(self, kind: str, text: str, ends: tuple[int, ...]) -> LLMatcher:
        """The state before the first token, of a grammar that has an answer."""
        llguidance = _llguidance()
        try:
            given = ("lark", f"start: %json {_spaced(text)}") if kind == "schema" else ("grammar", text)
            made = HEADER + llguidance.grammar_from(*given)  # Lark
        except ValueError as error:
            raise GenerationOptionError(f"{kind} cannot be used: {error}") from error
        tokenizer, words, eager = self._tokenizer(ends)
        wrong, messages = llguidance.LLMatcher.validate_grammar_with_warnings(made, tokenizer)
        if wrong:
            raise GenerationOptionError(f"{kind} cannot be used: {messages[0].strip()}")
        matcher: LLMatcher = llguidance.LLMatcher(tokenizer, made, log_level=0)
        _require_an_answer(matcher, kind, words, eager, ends)
        return matcher

    def _make_tokenizer(self, ends: tuple[int, ...]) -> tuple[Any, list[bytes], np.ndarray]:
        """llguidance's tokenizer for the model, the bytes [V] of its tokens, and :func:`_eagerness` of them."""
        detokenizer = self.detokenizer
        count = len(self.adapter.tokenizer)
        _require_concatenation(detokenizer, count)
        words = [detokenizer.bytes_of(each) for each in range(count)]
        special = sorted(detokenizer.special | set(ends))
        for each in special:
            if each < count:
                words[each] = b"\xff" + (words[each] or b"<%d>" % each)
        return _tokenizer_of(words, special, ends), words, _eagerness(words)


class _Words:
    """A tokenizer as llguidance reads it: the bytes of every token. It is asked for the tokens of no text."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], special: Sequence[int], end: int) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special, end

    def __call__(self, text: str | bytes) -> list[int]:
        return []


def _tokenizer_of(words: Sequence[bytes], special: Sequence[int], ends: tuple[int, ...]) -> Any:
    llguidance = _llguidance()
    wrapped = llguidance.TokenizerWrapper(_Words(words, special, ends[0]))
    return llguidance.LLTokenizer(wrapped, eos_token=list(ends))


def _allowed(matcher: LLMatcher) -> np.ndarray | None:
    """bool [V] (rounded up to 32): the tokens that may follow; None if there are none."""
    bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little").astype(bool)
    return None if matcher.is_error() or not bits.any() else bits


def _reason(matcher: LLMatcher) -> str:
    return matcher.get_error().partition("\n")[0].replace("NoExtensionBias", "nothing fits") or "nothing fits"


def _eagerness(words: Sequence[bytes]) -> np.ndarray:
    """int64 [V]: places of tokens in an order: those that tend to end something before others, short ones first."""

    def key(token: int) -> tuple[int, int, int]:
        word = words[token]
        ending = word[:1].decode("latin-1") in ENDING
        return (0 if ending else 1 if word.strip() else 2), len(word), token

    places = np.empty(len(words), np.int64)
    places[sorted(range(len(words)), key=key)] = np.arange(len(words))
    return places


def _require_an_answer(
    start: LLMatcher, kind: str, words: Sequence[bytes], eager: np.ndarray, ends: tuple[int, ...]
) -> None:
    """Find one whole answer, by trying what tends to end things, then also at random.

    Raises:
        GenerationOptionError: if none is found.
    """
    chance = random.Random(0)
    dead: tuple[bytes, str] | None = None
    for attempt in range(TRIES):
        matcher, written = start.deep_copy(), b""
        for _ in range(LONGEST):
            if (bits := _allowed(matcher)) is None:
                dead = dead or (written, _reason(matcher))
                break
            if matcher.is_accepting():
                return
            listed = np.setdiff1d(np.flatnonzero(bits[: len(words)]), ends)
            if not len(listed):
                dead = dead or (written, "nothing fits")
                break
            # At random now and then: what tends to end things may lead nowhere (-0.000...), and chance alone too.
            ending = not attempt or chance.random() < ENDS_AT
            token = int(listed[eager[listed].argmin()] if ending else chance.choice(listed))
            matcher.consume_token(token)
            written += words[token]
        if dead is None and attempt >= TRIES // 8:
            break
    if dead is not None:
        text = dead[0][-80:].decode("utf-8", "replace")
        raise GenerationOptionError(
            f"The tokenizer has no tokens for an answer that obeys this {kind}: after {text!r}, {dead[1]}."
        )
    raise GenerationOptionError(
        f"No answer of up to {LONGEST} tokens was found that obeys this {kind} and ends: does it have an end?"
    )


def _require_concatenation(detokenizer: Detokenizer, count: int) -> None:
    """Bytes of tokens must make up the bytes of a text, or what a grammar allows would be another text."""
    ordinary = [each for each in range(count) if each not in detokenizer.special]
    texts = {each: detokenizer.bytes_of(each) for each in ordinary[:: max(1, len(ordinary) // PAIRS)]}
    words = [each for each, text in texts.items() if text.isascii() and text.strip()]
    for one, other in pairwise(words):
        made = detokenizer.decode([one, other]).encode()
        if made.lstrip() != (texts[one] + texts[other]).lstrip():
            raise CapabilityError(
                f"Answers of this model cannot be constrained: its tokenizer writes {made.decode()!r} for "
                f"{texts[one].decode()!r} and {texts[other].decode()!r}."
            )


def _spaced(schema: str) -> str:
    """A schema with llguidance's own option of what may stand between the parts, unless it has such options."""
    return json.dumps({"x-guidance": {"whitespace_pattern": SPACES}, **json.loads(schema)})


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingExtraError("llguidance", "grammar") from error
    return llguidance
