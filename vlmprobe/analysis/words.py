"""From tokens to words: which tokens make a word, and the probability of a word.

Tokenizers of language models mark where a word begins (``" cat"``, ``"▁cat"``), not where it ends: after ``" cat"`` the
word may go on (``"ch"``). The product of its tokens' probabilities is thus that of all words with that prefix.
Pimentel & Meister 2024, "How to Compute the Probability of a Word", correct it: multiply by the probability that a
new word begins after the word, divide by the probability that one began before it. Both are sums over all tokens that
begin a word, so they need the full rows (``keep="logits"``) of the words' first tokens and of what follows.

A word here is a run of text between white space; the white space before it belongs to it. Special tokens and images are
boundaries. After a special token, an image, or a token that ends in white space (``".\\n\\n"``) a new word begins with
certainty, so nothing is corrected there; this holds for the first row of a table too. (The paper conditions the first
word of a text on beginning without a mark. An answer is free to begin with white space, so here it is not.) The
corrected numbers of an answer that ends with its end token add up to the log-probability of the answer.

Writing without spaces (Chinese, Japanese, Thai) has no words in this sense: a whole clause counts as one. For such, and
for text read from an image, ``words(..., by="character")`` goes by character, with numbers whole, and ``by="line"`` by
line; both give sums only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from vlmprobe.analysis.token_spans import text_and_spans
from vlmprobe.analysis.uncertainty import Source, table_of
from vlmprobe.errors import ResultError, near
from vlmprobe.results.frame import DataFrame, data_frame
from vlmprobe.results.table import TokenTable

__all__ = ["Words", "boundary_logprobs", "rows_of_text", "word_starts", "words"]

UNITS = {
    "word": re.compile(r"\S+"),
    "character": re.compile(r"\d+(?:[.,:/'’\-]\d+)*|\S"),  # numbers, dates and times whole
    "line": re.compile(r"[^\n]*\S[^\n]*"),
}
MARKUP = {
    "html": re.compile(r"<[^<>]*>|&#?\w+;"),
    "markdown": re.compile(r"^[ \t]*(?:#+|[-*+]|\d+\.)[ \t]|^[ \t|:-]+$|[*_`|]+", re.MULTILINE),
}


@dataclass(frozen=True, eq=False)
class Words:
    """W words and special tokens in the order of the text; images are left out.

    White space that no word follows is an entry of its own with an empty text. By character or line, or without markup,
    there are neither special tokens nor white space.
    """

    texts: list[str]  # [W], white space around stripped
    kinds: list[str]  # [W] "text" or "special"
    rows: np.ndarray  # int64 [W, 2], first row of the table and one past the last
    summed: np.ndarray  # float64 [W], nats: sum over the tokens of the word
    logprobs: np.ndarray | None  # float64 [W], nats: corrected; NaN where what follows is unknown; None without starts
    spans: np.ndarray  # int64 [W, 2], characters in the text of the tokens without special ones

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def surprisal(self) -> np.ndarray:
        """float64 [W], bits: of the corrected log-probability."""
        if self.logprobs is None:
            raise ResultError("These words have no correction: call words(..., starts=) for it; summed has the sums.")
        return -self.logprobs / np.log(2)

    def plot(self, ax: Any = None) -> Any:
        """Surprisal of each word in bits as bars: corrected if ``logprobs`` is there, else of the summed tokens.

        Args:
            ax: axes to draw on.

        Returns:
            The axes.

        Raises:
            ResultError: if no word has a log-probability.
        """
        from vlmprobe.display.plots.tokens import draw_words

        corrected = self.logprobs is not None
        logprobs = self.summed if self.logprobs is None else self.logprobs
        label = "surprisal of the word (bits)" if corrected else "surprisal of its tokens (bits)"
        return draw_words(self.texts, logprobs, ax, label=label)

    def lowest_first(self) -> Words:
        """The same words, the least likely first (by ``logprobs``, else ``summed``), those without a number last."""
        order = np.argsort(self.summed if self.logprobs is None else self.logprobs, kind="stable")
        return replace(
            self,
            texts=[self.texts[place] for place in order],
            kinds=[self.kinds[place] for place in order],
            rows=self.rows[order],
            summed=self.summed[order],
            logprobs=None if self.logprobs is None else self.logprobs[order],
            spans=self.spans[order],
        )

    def to_pandas(self) -> DataFrame:
        """A ``pandas.DataFrame``, one row per word: ``start`` and ``stop`` are its characters in the text."""
        columns = {"word": self.texts, "kind": self.kinds, "summed": self.summed, "logprob": self.logprobs}
        return data_frame(columns | {"start": self.spans[:, 0], "stop": self.spans[:, 1]})


def words(
    source: Source,
    starts: np.ndarray | None = None,
    *,
    boundaries: np.ndarray | None = None,
    by: Literal["word", "character", "line"] = "word",
    markup: str | re.Pattern[str] | None = None,
) -> Words:
    """Group the tokens of a table into words, with the probability of each.

    Args:
        source: table or result.
        starts: bool [V], which tokens begin a word, from :func:`word_starts`. Without it words are grouped by the text
            of the tokens and only their sums are given.
        boundaries: float [T], nats, in place of the full rows: the log-probability that a new word, a special token or
            the end comes at each row, as :func:`boundary_logprobs` computes it.
        by: ``"word"`` (between white space), ``"character"`` (Chinese, Japanese, Thai, ...; numbers such as 1,234.50
            and 2026-11-28 are whole, and characters of one token are one entry), or ``"line"``.
        markup: what is left aside, of the text and of the probabilities: ``"html"`` (tags and entities),
            ``"markdown"``, or a regular expression. A token that holds more than markup is counted.

    Raises:
        ResultError: if the correction needs full rows that the table lacks, or is wanted by character or line, or
            without markup; for another ``by``.
    """
    table = table_of(source)
    if by not in UNITS:
        raise ResultError(f"by must be {', '.join(UNITS)}, not {by!r}.{near(str(by), UNITS)}")
    if by != "word" or markup is not None:
        if starts is not None or boundaries is not None:
            raise ResultError("Only words with their markup can be corrected: leave out starts and boundaries.")
        return _units(table, UNITS[by], markup)
    marked = _marked(table, starts)
    groups = _groups(table, marked)
    # A word with a token that has no log-probability has none: NaN propagates through the sum.
    summed = np.array([table.logprobs[first:stop].sum(dtype=np.float64) for first, stop in groups], dtype=np.float64)
    logprobs = None
    if starts is not None:
        at = boundary_logprobs(table, starts) if boundaries is None else np.asarray(boundaries, np.float64)
        if at.shape != (len(table),):
            raise ResultError(f"boundaries has shape {at.shape}, the table {len(table)} rows")
        edges = np.array([_edge(table, at, row) for row in range(len(table) + 1)])
        logprobs = summed + np.array([edges[stop] - edges[first] for first, stop in groups], dtype=np.float64)
    return Words(
        texts=["".join(table.tokens[first:stop]).strip() for first, stop in groups],
        kinds=[table.kinds[first] for first, _ in groups],
        rows=np.array(groups, dtype=np.int64).reshape(len(groups), 2),
        summed=summed,
        logprobs=logprobs,
        spans=_spans(table, groups),
    )


def rows_of_text(source: Source, text: str) -> slice:
    """The rows of a token, or of consecutive tokens, that read as a text.

    Args:
        source: table or result.
        text: a token, a word of several tokens, or several words. White space at its ends has to be there too if it is
            given, and may be there if not: ``"nine"`` finds the token ``" nine"``.

    Raises:
        ResultError: if the table does not have the text, or more than once.
    """
    table = table_of(source)
    found = [each for first in range(len(table)) if (each := _run_from(table.tokens, first, text))]
    if not found:
        known = dict.fromkeys(each.strip() for each in (*words(table).texts, *table.tokens))
        raise ResultError(f"The text has no {text!r}.{near(text.strip(), filter(None, known))}")
    if len(found) > 1:
        places = ", ".join(str(each.start) if each.stop == each.start + 1 else repr(each) for each in found)
        raise ResultError(f"The text has {text!r} {len(found)} times: pass one of these rows: {places}.")
    return found[0]


def word_starts(tokenizer: Any, vocabulary: int) -> np.ndarray:
    """bool [V]: the tokens that begin a new word when they follow the letters of another.

    Those whose text, after a letter, begins with white space: ``"Ġcat"`` of a byte-level tokenizer, ``"▁cat"`` of
    SentencePiece, a new line, a whole word of a word-level vocabulary; and all special tokens, the end among them.

    Args:
        tokenizer: of the model, or its processor.
        vocabulary: V, the length of the model's rows of logits; ids beyond the tokenizer's own begin no word.
    """
    from vlmprobe.results.detokenize import Detokenizer

    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    reader = Detokenizer(tokenizer)
    known = min(vocabulary, len(tokenizer))
    ordinary = [each for each in range(known) if each not in reader.special]
    letter = next((each for each in ordinary if (text := reader.alone(each)).isascii() and text.isalpha()), None)
    if letter is None:
        raise ResultError("The tokenizer has no token of ASCII letters to decode the others after.")
    before = reader.decode([letter])
    # Only in context does a decoder write the space that SentencePiece and word-level vocabularies drop at the start.
    read = tokenizer.batch_decode([[letter, each] for each in ordinary], clean_up_tokenization_spaces=False)
    starts = np.zeros(vocabulary, dtype=bool)
    starts[[each for each in reader.special if each < vocabulary]] = True
    starts[[each for each, text in zip(ordinary, read, strict=True) if text[len(before) :][:1].isspace()]] = True
    return starts


def boundary_logprobs(source: Source, starts: np.ndarray) -> np.ndarray:
    """float64 [T], nats: log of the total probability that each row gives to the tokens of ``starts``.

    Raises:
        ResultError: if the table has no full rows, or ones of another length than ``starts``.
    """
    table = table_of(source)
    if table.logits is None:
        raise ResultError(
            "The probability of a word needs the total probability of all tokens that begin one, hence full rows: "
            'pass keep="logits", or boundaries= if you have that column.'
        )
    if len(starts) != table.logits.shape[1]:
        raise ResultError(f"starts is for {len(starts)} tokens, the rows have {table.logits.shape[1]}")
    masses = np.full(len(table), np.nan)
    for row in np.flatnonzero(table.scored):
        logits = table.logits[row].astype(np.float64)
        masses[row] = np.logaddexp.reduce(logits[starts]) - np.logaddexp.reduce(logits)
    return masses


def _marked(table: TokenTable, starts: np.ndarray | None) -> np.ndarray:
    """bool [T]: the rows whose token would begin a word after a letter."""
    if starts is None:
        return np.array([token[:1].isspace() for token in table.tokens], dtype=bool)
    starts = np.asarray(starts)
    if starts.dtype != bool or starts.ndim != 1:
        raise ResultError("starts is a bool array [V], one entry per token of the vocabulary, from word_starts")
    inside = (table.ids >= 0) & (table.ids < len(starts))
    return inside & starts[np.where(inside, table.ids, 0)]


def _run_from(tokens: Sequence[str], first: int, text: str) -> slice | None:
    """The rows of the run of tokens from ``first`` that reads as a text, if there is one."""
    before, after = text[:1].isspace(), text[-1:].isspace()
    read = ""
    for row in range(first, len(tokens)):
        outer = [token for token, given in ((tokens[first], before), (tokens[row], after)) if not given]
        read += tokens[row]
        shown = read if before else read.lstrip()
        shown = shown if after else shown.rstrip()
        if shown == text and all(token.strip() for token in outer) and tokens[first] and tokens[row]:
            while first and not tokens[first - 1]:  # pieces of the first character
                first -= 1
            return slice(first, row + 1)
        if len(read.strip()) > len(text):
            return None
    return None


def _groups(table: TokenTable, marked: np.ndarray) -> list[tuple[int, int]]:
    """First row, and one past the last, of each word or special token."""
    groups: list[tuple[int, int]] = []
    text = ""  # of the word so far
    for row, (kind, token) in enumerate(zip(table.kinds, table.tokens, strict=True)):
        if kind != "text":
            if kind == "special":
                groups.append((row, row + 1))
            text = ""
            continue
        goes_on = row > 0 and table.kinds[row - 1] == "text" and not (text.strip() and (marked[row] or _closed(text)))
        if goes_on:
            groups[-1] = (groups[-1][0], row + 1)
        else:
            groups.append((row, row + 1))
        text = text + token if goes_on else token
    return groups


def _spans(table: TokenTable, groups: Sequence[tuple[int, int]]) -> np.ndarray:
    """int64 [W, 2]: the characters of groups of rows in the text, white space around them left out."""
    text, spans = text_and_spans(table.tokens, table.kinds)
    found = np.zeros((len(groups), 2), dtype=np.int64)
    for place, (first, last) in enumerate(groups):
        start, stop = int(spans[first, 0]), int(spans[last - 1, 1])
        said = text[start:stop]
        start += len(said) - len(said.lstrip())
        found[place] = start, start + len(said.strip())
    return found


def _units(table: TokenTable, unit: re.Pattern[str], markup: str | re.Pattern[str] | None) -> Words:
    """The words, characters or lines of a text, and the tokens of each; those that share a token are one entry."""
    text, spans = text_and_spans(table.tokens, table.kinds)
    read = text
    if markup is not None:
        pattern = MARKUP.get(markup, markup) if isinstance(markup, str) else markup
        read = re.sub(pattern, lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    found: list[list[int]] = []  # start and stop in the text, first row and one past the last
    for match in unit.finditer(read):
        stripped = match[0].strip()
        start = match.start() + match[0].index(stripped)
        stop = start + len(stripped)
        first = int(np.searchsorted(spans[:, 1], start, side="right"))
        last = int(np.searchsorted(spans[:, 0], stop, side="left"))
        if found and first < found[-1][3]:
            found[-1][1], found[-1][3] = stop, last
        else:
            found.append([start, stop, first, last])
    places = np.array(found, dtype=np.int64).reshape(-1, 4)
    return Words(
        texts=[text[start:stop] for start, stop, _, _ in found],
        kinds=["text"] * len(found),
        rows=places[:, 2:],
        summed=np.array([table.logprobs[first:last].sum(dtype=np.float64) for _, _, first, last in found]),
        logprobs=None,
        spans=places[:, :2],
    )


def _closed(text: str) -> bool:
    return text[-1:].isspace()


def _edge(table: TokenTable, at: np.ndarray, row: int) -> float:
    """Log of the probability that a word begins at a row (or the one before it ends), given what stands before it."""
    if row == 0 or table.kinds[row - 1] != "text" or _closed(table.tokens[row - 1]):
        return 0.0  # certain, whatever stands at the row
    return float(at[row]) if row < len(table) else np.nan
