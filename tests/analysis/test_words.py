"""Words and their corrected probabilities: the paper's formula, its identities, and real tokenizers."""

from __future__ import annotations

import numpy as np
import pytest
from analysis_cases import VOCABULARY, random_table
from scipy.special import log_softmax, logsumexp
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vlmprobe.analysis import words as room
from vlmprobe.errors import ResultError

STARTS = np.arange(VOCABULARY) < 15  # ids below 15 begin a word; 14 is the end token
END = 14


def answer(tokens, ids, **options):
    kinds = ["special" if each == END else "text" for each in ids]
    return random_table(3, len(ids), tokens=tokens, ids=ids, kinds=kinds, **options)


def mass(table, row):
    """Log of the probability that a word begins at a row, by scipy."""
    return logsumexp(log_softmax(table.logits[row].astype(np.float64))[STARTS])


def test_the_correction_is_that_of_the_paper():
    table = answer(["A", " c", "at", " sat", "<end>"], [20, 1, 21, 2, END])
    found = room.words(table, STARTS)
    assert found.texts == ["A", "cat", "sat", "<end>"]
    assert found.kinds == ["text", "text", "text", "special"]
    assert found.rows.tolist() == [[0, 1], [1, 3], [3, 4], [4, 5]]
    token = table.logprobs.astype(np.float64)
    np.testing.assert_allclose(found.summed, [token[0], token[1] + token[2], token[3], token[4]], atol=1e-6)
    wanted = [
        token[0] + mass(table, 1),
        token[1] + token[2] - mass(table, 1) + mass(table, 3),
        token[3] - mass(table, 3) + mass(table, 4),
        token[4] - mass(table, 4),
    ]
    np.testing.assert_allclose(found.logprobs, wanted, atol=1e-5)
    np.testing.assert_allclose(found.surprisal, -np.array(wanted) / np.log(2), atol=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_the_words_of_a_finished_answer_add_up_to_it(seed):
    random = np.random.default_rng(seed)
    ids = [*random.integers(0, END, 6), *random.integers(15, VOCABULARY, 10)]
    random.shuffle(ids)
    text = {each: (" " if STARTS[each] else "") + f"w{each}" for each in ids} | {13: "\n\n", 30: ".\n"}
    table = answer([text[each] for each in ids] + ["<end>"], [*ids, END])
    found = room.words(table, STARTS)
    assert found.logprobs.sum() == pytest.approx(table.logprobs.sum(dtype=np.float64), abs=1e-4)
    assert found.summed.sum() == pytest.approx(table.logprobs.sum(dtype=np.float64), abs=1e-4)
    assert [each for pair in found.rows for each in range(*pair)] == list(range(len(table)))


def test_probabilities_of_all_words_sum_to_one():
    """A language of the words a, ab, abb, ..., each token " a" (0), "b" (1) or the end (2): the sums give more than 1.

    The next token is drawn from the same row whatever came before, so the corrected probability of " a" + n x "b" is
    p(a) p(b)^n (p(a) + p(end)) / (p(a) + p(end)), and over all n and the empty rest these sum to 1.
    """
    row = np.log([0.3, 0.5, 0.2]).astype(np.float32)
    starts = np.array([True, False, True])
    total_corrected = total_summed = 0.0
    for length in range(60):
        ids = np.array([0, 0] + [1] * length + [2])
        table = fixed_rows(row, ids, [" a", " a"] + ["b"] * length + ["<end>"])
        found = room.words(table, starts)
        total_corrected += np.exp(found.logprobs[1])
        total_summed += np.exp(found.summed[1])
    ends = np.exp(found.logprobs[2])  # that the text ends at this boundary instead
    assert total_corrected + ends == pytest.approx(1.0, abs=1e-5)
    assert total_summed == pytest.approx(0.3 / (1 - 0.5), abs=1e-5)


def fixed_rows(row, ids, tokens):
    from vlmprobe.results.table import TokenTable, empty_numbers, joined

    count = len(ids)
    numbers = empty_numbers(count, 1)
    numbers["logprobs"] = row[ids].astype(np.float32)
    numbers["logsumexp"] = np.zeros(count, np.float32)
    return TokenTable(
        ids=ids,
        tokens=tokens,
        kinds=["special" if token == "<end>" else "text" for token in tokens],
        positions=np.arange(count),
        offsets=joined(tokens),
        top_tokens=[[""]] * count,
        logits=np.tile(row, (count, 1)),
        **numbers,
    )


def test_after_white_space_and_special_tokens_nothing_is_left_to_correct():
    table = answer(["One", ".\n\n", "Two", "<end>"], [20, 30, 21, END])
    found = room.words(table, STARTS)
    assert found.texts == ["One.", "Two", "<end>"]
    np.testing.assert_allclose(found.logprobs[0], found.summed[0])
    np.testing.assert_allclose(found.logprobs[1], found.summed[1] + mass(table, 3), atol=1e-5)


def test_white_space_in_several_tokens_belongs_to_the_word_after_it():
    table = answer(["One", "\n", " ", " Two", "<end>"], [20, 1, 2, 3, END])
    assert room.words(table, STARTS).texts == ["One", "Two", "<end>"]


def test_pieces_of_a_character_stay_in_one_word():
    table = answer([" caf", "", "é", " noir", "<end>"], [1, 20, 21, 2, END])
    assert room.words(table, STARTS).texts == ["café", "noir", "<end>"]


def test_a_cut_answer_leaves_its_last_word_open():
    table = answer([" one", " two"], [1, 2])
    found = room.words(table, STARTS)
    assert np.isfinite(found.logprobs[0])
    assert np.isnan(found.logprobs[1])
    assert np.isfinite(found.summed[1])


def test_images_are_boundaries_and_their_neighbours_are_not_invented():
    kinds = ["special", "text", "image", "text", "special"]
    table = random_table(
        5, 5, ids=[END, 20, 25, 21, END], kinds=kinds, tokens=["<s>", "see", "<img>", "it", "<end>"], blank=(0, 2)
    )
    found = room.words(table, STARTS)
    assert found.texts == ["<s>", "see", "it", "<end>"]
    assert np.isnan(found.logprobs[1])  # whether the word went on before the image is not known
    assert found.logprobs[2] == pytest.approx(table.logprobs[3] + mass(table, 4), abs=1e-5)


def test_without_starts_there_are_sums_only():
    found = room.words(random_table(6, 3, tokens=["a", "b", " c"], keep=False))
    assert found.texts == ["ab", "c"]
    assert found.logprobs is None
    with pytest.raises(ResultError, match="no correction"):
        _ = found.surprisal


def test_boundaries_may_come_as_a_column():
    table = answer(["A", " cat", "<end>"], [20, 1, END])
    bare = answer(["A", " cat", "<end>"], [20, 1, END], keep=False)
    with pytest.raises(ResultError, match='keep="logits"'):
        room.words(bare, STARTS)
    column = room.boundary_logprobs(table, STARTS)
    given = room.words(bare, STARTS, boundaries=column)
    np.testing.assert_allclose(given.logprobs, room.words(table, STARTS).logprobs)
    with pytest.raises(ResultError, match="shape"):
        room.words(bare, STARTS, boundaries=column[:2])
    with pytest.raises(ResultError, match="starts is for 3 tokens"):
        room.boundary_logprobs(table, STARTS[:3])
    with pytest.raises(ResultError, match="bool array"):
        room.words(table, STARTS.astype(int))


def byte_level():
    pieces = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġcat", "cat", "ĊĊ", ".ĊĊ", "ĠĠ", "Ã"]
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def sentence_piece():
    bytes_ = [f"<0x{each:02X}>" for each in range(256)]
    pieces = ["<unk>", "<s>", "</s>", *bytes_, "▁cat", "cat", "▁", "▁▁", "a"]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_level():
    vocabulary = {word: place for place, word in enumerate(["<unk>", "<end>", "cat", "dog"])}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>")


@pytest.mark.parametrize(
    ("make", "begin", "go_on"),
    [
        (byte_level, ["<|end|>", "Ġcat", "ĊĊ", "ĠĠ", "Ġ", "Ċ", "ĉ"], ["cat", ".ĊĊ", "a", "Ã", "!"]),
        (sentence_piece, ["<s>", "</s>", "▁cat", "▁", "▁▁", "<0x0A>", "<0x20>"], ["cat", "a", "<0xC3>", "<0x41>"]),
        (word_level, ["<end>", "cat", "dog"], []),
    ],
)
def test_word_starts_of_a_tokenizer(make, begin, go_on):
    tokenizer = make()
    starts = room.word_starts(tokenizer, len(tokenizer) + 7)
    ids = tokenizer.convert_tokens_to_ids
    assert starts.shape == (len(tokenizer) + 7,)
    assert all(starts[ids(piece)] for piece in begin)
    assert not any(starts[ids(piece)] for piece in go_on)
    assert not starts[len(tokenizer) :].any()


def test_a_probe_gives_words_with_their_probability(probe_of):
    probe = probe_of("qwen2_vl")
    result = probe.generate("Describe.", keep="logits", max_new_tokens=12, do_sample=True, seed=1)
    starts = room.word_starts(probe.engine.adapter.processor, result.output.logits.shape[1])
    found = room.words(result, starts)
    assert 0 < starts.sum() < len(starts)
    assert not np.isnan(found.logprobs[:-1]).any()
    # Up to any word the corrected numbers add up to the tokens, and to the boundary after them where it was open.
    edge, table = room.boundary_logprobs(result, starts), result.output
    for place in range(len(found) - 1):
        stop = found.rows[place, 1]
        certain = table.kinds[stop - 1] == "special" or table.tokens[stop - 1][-1:].isspace()
        wanted = table.logprobs[:stop].sum(dtype=np.float64) + (0.0 if certain else edge[stop])
        assert found.logprobs[: place + 1].sum() == pytest.approx(wanted, abs=1e-4)


def test_the_rows_of_a_text():
    texts = ["a", " red", " nine", " on", " un", "believ", "able", ",", " nine", "teen", "", "", "猫", " ", "x"]
    table = random_table(0, len(texts), tokens=texts)
    rows = {
        "red": (1, 2), " red": (1, 2), "un": (4, 5), "unbelievable": (4, 7), " unbelievable": (4, 7), "able,": (6, 8),
        "red nine": (1, 3), "nineteen": (8, 10), "x": (14, 15), " x": (13, 15), "猫": (10, 13), "a": (0, 1),
    }  # fmt: skip
    for text, (first, stop) in rows.items():
        assert room.rows_of_text(table, text) == slice(first, stop)
    with pytest.raises(ResultError, match=r"'nine' 2 times: pass one of these rows: 2, 8\."):
        room.rows_of_text(table, "nine")
    twice = random_table(0, 4, tokens=["un", "do", " un", "do"])
    with pytest.raises(ResultError, match=r"slice\(0, 2, None\), slice\(2, 4, None\)"):
        room.rows_of_text(twice, "undo")
    for unknown in ("blue", "", " a", "unbeliev "):
        with pytest.raises(ResultError, match="has no"):
            room.rows_of_text(table, unknown)
    with pytest.raises(ResultError, match="Did you mean nine"):
        room.rows_of_text(table, " nin")


# -- by character, by line, without markup ----------------------------------------------------------------


def read(*tokens, **options):
    table = random_table(4, len(tokens) + 1, tokens=[*tokens, "<end>"], kinds=["text"] * len(tokens) + ["special"])
    return table, room.words(table, **options)


def sums(table, *rows):
    return [float(table.logprobs[list(each)].sum(dtype=np.float64)) for each in rows]


def test_writing_without_spaces_goes_by_character_and_numbers_are_whole():
    table, found = read(
        "合",
        "",
        "",
        "计",
        "：",
        "1",
        ",",
        "234",
        ".",
        "50",
        "元",
        " 日期",
        " ",
        "2026",
        "-11",
        "-",
        "28",
        by="character",
    )
    assert found.texts == ["合", "计", "：", "1,234.50", "元", "日期", "2026-11-28"]
    rows = [[0], [1, 2, 3], [4], [5, 6, 7, 8, 9], [10], [11], [13, 14, 15, 16]]
    np.testing.assert_allclose(found.summed, sums(table, *rows), rtol=1e-6)
    assert found.rows.tolist() == [[each[0], each[-1] + 1] for each in rows]
    text = "".join(table.tokens[:-1])
    assert [text[start:stop] for start, stop in found.spans] == found.texts
    assert found.logprobs is None


def test_characters_that_share_a_token_are_one_entry():
    _, found = read("ab", "c", "12", "!?", by="character")
    assert found.texts == ["ab", "c", "12", "!?"]


def test_lines():
    table, found = read("one", " two\n", "\n", "  three", "\n", by="line")
    assert found.texts == ["one two", "three"]
    np.testing.assert_allclose(found.summed, sums(table, [0, 1], [3]), rtol=1e-6)


def test_markup_is_left_aside_where_told():
    table, found = read("<b", ">", "12", ".5", "</b>", " EUR", markup="html")
    assert found.texts == ["12.5", "EUR"]
    np.testing.assert_allclose(found.summed, sums(table, [2, 3], [5]), rtol=1e-6)
    assert read("<b", ">", "12", ".5", "</b>", " EUR")[1].texts == ["<b>12.5</b>", "EUR", "<end>"]
    assert read("## ", "Total\n", "| a |", " **9** |\n", "|---|---|", markup="markdown")[1].texts == ["Total", "a", "9"]
    assert read("[x]", " y", markup=r"\[|\]")[1].texts == ["x", "y"]
    assert read("<b>", "one\ntwo", "</b>", by="line", markup="html")[1].texts == ["one\ntwo"]  # one token


def test_lowest_first_and_spans_in_the_table():
    table, found = read(" one", " two", " three")
    lowest = found.lowest_first()
    assert lowest.summed.tolist() == sorted(found.summed)
    frame = found.to_pandas()
    text = "".join(table.tokens[:-1])
    assert [text[start:stop] for start, stop in zip(frame["start"], frame["stop"], strict=True)] == [
        "one",
        "two",
        "three",
        "",
    ]


def test_what_cannot_be_asked_of_words():
    table = answer(["A", "<end>"], [20, END])
    with pytest.raises(ResultError, match="by must be word, character, line"):
        room.words(table, by="letter")
    with pytest.raises(ResultError, match="leave out starts"):
        room.words(table, STARTS, by="line")
