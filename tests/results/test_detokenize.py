"""The text of tokens: whole characters, offsets that cut the text, the tokenizer's own text when joined."""

from __future__ import annotations

import copy
import pickle
import random
import unicodedata

import numpy as np
import pytest
import torch
from common import picture

from vlmprobe.results.detokenize import Detokenizer, TextsOfIds

TEXTS = [
    "What animal is this?",
    "图片里有什么动物？图片里有一只老虎。",
    "一只大猫🐯坐在草地上,🎉🎉 and it looks at 你。",
    "👩‍👩‍👧‍👦 family, 🇨🇭 flag, é and ñ, ½ € 𝔘𝔫𝔦",
    "naïve façade – “quoted” … ﷽ ありがとう 감사합니다 Привет",
    "  two spaces, a tab\t, a new\nline and  more   ",
    '1234567890 $5.00 <b>not</b> a tag {"json": [1, 2]}',
    "ḀḁḂ 鑫龘𠮷",
]
# Byte-level BPE; SentencePiece with a space put before the first word; SentencePiece without; byte-level of Cohere.
TOKENIZERS = [
    "qwen2_vl",
    "internvl",
    "mllama",
    "llava",
    "idefics3",
    "mistral3",
    "gemma3",
    "paligemma",
    "cohere2_vision",
]
BYTE_LEVEL = ["qwen2_vl", "internvl", "mllama", "cohere2_vision"]


@pytest.fixture(params=TOKENIZERS)
def detokenizer(request, own):
    return Detokenizer(own(request.param).processor.tokenizer)


def ids_of(detokenizer, text):
    return detokenizer.tokenizer(text, add_special_tokens=False)["input_ids"]


def own_text(detokenizer, ids):
    return detokenizer.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def random_text(drawn: random.Random) -> str:
    """Any mixture of scripts, signs and emoji."""
    blocks = [
        (0x20, 0x7E),
        (0xA1, 0x24F),
        (0x391, 0x3C9),
        (0x4E00, 0x9FFF),
        (0x3041, 0x3096),
        (0x1F300, 0x1F64F),
        (0xAC00, 0xD7A3),
    ]
    letters = [chr(drawn.randint(*drawn.choice(blocks))) for _ in range(drawn.randint(1, 30))]
    return "".join(letter for letter in letters if unicodedata.category(letter) != "Cn")


def check(detokenizer, ids, text):
    texts = detokenizer.texts(ids)
    assert len(texts) == len(ids)
    assert detokenizer.join(ids, texts) == own_text(detokenizer, ids) == text
    assert not any("�" in each for each in texts)
    offsets = detokenizer.offsets(ids, texts)
    starts, stops = zip(*offsets, strict=True)
    assert list(starts) == sorted(starts)
    assert starts[0] == 0
    assert stops[-1] == len(text)
    for each, (start, stop) in zip(texts, offsets, strict=True):
        if each:
            assert text[start:stop] == each
        else:  # a piece of a character has the span of that character
            assert stop > start
            assert any(part and span == (start, stop) for part, span in zip(texts, offsets, strict=True))


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_tokens_join_to_the_text_and_offsets_cut_it(text, detokenizer):
    ids = ids_of(detokenizer, text)
    check(detokenizer, ids, own_text(detokenizer, ids))
    assert own_text(detokenizer, ids).lstrip(" ") == text.lstrip(
        " "
    )  # SentencePiece may drop a space that stands first


def test_random_texts(detokenizer):
    drawn = random.Random(0)
    for _ in range(150):
        ids = ids_of(detokenizer, random_text(drawn))
        if ids:
            check(detokenizer, ids, own_text(detokenizer, ids))


def test_a_character_that_spans_tokens_stands_where_it_is_complete(own):
    detokenizer = Detokenizer(own("qwen2_vl").processor.tokenizer)
    ids = ids_of(detokenizer, "a🐯b")
    texts = detokenizer.texts(ids)
    assert len(ids) >= 4
    assert [each for each in texts if each] == ["a", "🐯", "b"]
    assert texts[-2] == "🐯"
    offsets = detokenizer.offsets(ids, texts)
    assert set(offsets[1:-1]) == {(1, 2)}


def test_spaces_stand_before_the_word_that_they_belong_to(detokenizer):
    ids = ids_of(detokenizer, "The picture of the image")
    texts = detokenizer.texts(ids)
    assert " picture" in texts
    assert " the" in texts
    assert texts[0].startswith("T")


def test_special_tokens_stand_as_they_are_written_and_take_no_place(detokenizer):
    tokenizer = detokenizer.tokenizer
    end = tokenizer.eos_token_id
    ids = [*ids_of(detokenizer, "a tiger"), end, *ids_of(detokenizer, "老虎"), end]
    texts = detokenizer.texts(ids)
    places = [place for place, each in enumerate(ids) if each == end]
    assert [texts[place] for place in places] == [tokenizer.eos_token] * 2
    assert detokenizer.join(ids, texts) == own_text(detokenizer, ids)
    offsets = detokenizer.offsets(ids, texts)
    assert all(offsets[place][0] == offsets[place][1] for place in places)
    assert tokenizer.eos_token not in detokenizer.join(ids, texts)


def test_a_text_that_ends_inside_a_character_leaves_it_out(detokenizer):
    ids = ids_of(detokenizer, "ok 🐯")
    whole = detokenizer.texts(ids)
    cut = ids[:-1]
    texts = detokenizer.texts(cut)
    assert whole[-1] == "🐯"
    assert detokenizer.join(cut, texts) == "ok "
    assert detokenizer.offsets(cut, texts)[-1] == (3, 3)


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_bytes_that_are_no_text_join_to_what_the_tokenizer_says(name, own):
    """Only what the sequence ends in the middle of is left out: a prefix is stable, however wild the bytes."""
    detokenizer = Detokenizer(own(name).processor.tokenizer)
    ordinary = [each for each in range(len(detokenizer.tokenizer)) if each not in detokenizer.special]
    drawn = random.Random(1)
    for _ in range(300):
        ids = [drawn.choice(ordinary) for _ in range(drawn.randint(1, 40))]
        texts = detokenizer.texts(ids)
        said, joined = own_text(detokenizer, ids), detokenizer.join(ids, texts)
        assert said.startswith(joined)
        assert not said[len(joined) :].replace("�", "")
        assert len(said) - len(joined) <= 8
        assert all(
            joined[start:stop] == each or not each
            for each, (start, stop) in zip(texts, detokenizer.offsets(ids, texts), strict=True)
        )


def test_wild_bytes_do_not_hide_the_character_after_them(own):
    detokenizer = Detokenizer(own("qwen2_vl").processor.tokenizer)
    tokenizer = detokenizer.tokenizer
    byte = {character: each for character, each in tokenizer.get_vocab().items() if len(character) == 1}
    wild = byte["ÿ"]  # 0xFF, which no text holds
    for count in range(1, 7):
        ids = [wild] * count + ids_of(detokenizer, "🐯 ok")
        assert detokenizer.join(ids, detokenizer.texts(ids)) == "�" * count + "🐯 ok" == own_text(detokenizer, ids)


def test_a_replacement_character_that_was_written_stays(detokenizer):
    ids = ids_of(detokenizer, "a � b �� c")
    assert detokenizer.join(ids, detokenizer.texts(ids)) == "a � b �� c"


def test_long_texts_take_time_in_proportion(own):
    detokenizer = Detokenizer(own("qwen2_vl").processor.tokenizer)
    calls, longest = 0, 0
    decode = detokenizer.decode

    def counted(ids):
        nonlocal calls, longest
        calls, longest = calls + 1, max(longest, len(ids))
        return decode(ids)

    detokenizer.decode = counted
    for text in ("图片里有一只老虎。🐯" * 200, None):
        ids = ids_of(detokenizer, text) if text else [0xFF] * 2000
        calls = longest = 0
        detokenizer.texts(ids)
        assert calls <= 4 * len(ids)
        assert longest <= 200


# A token alone, as an alternative is shown


@pytest.mark.parametrize(
    ("name", "token"),
    [("qwen2_vl", "Ġpicture"), ("llava", "▁picture"), ("gemma3", "▁picture"), ("idefics3", "Ġpicture")],
)
def test_a_word_alone_keeps_its_space(name, token, own):
    detokenizer = Detokenizer(own(name).processor.tokenizer)
    each = detokenizer.tokenizer.convert_tokens_to_ids(token)
    if each in (None, detokenizer.tokenizer.unk_token_id):
        pytest.skip("the word is no token here")
    assert detokenizer.alone(each) == " picture"


def test_every_token_alone_is_something_readable(detokenizer):
    for each in range(len(detokenizer.tokenizer)):
        text = detokenizer.alone(each)
        assert text, each
        assert "�" not in text, each
    assert detokenizer.alone(-1) == ""


def test_pieces_of_characters_alone_are_written_as_bytes(own):
    for name in ("qwen2_vl", "llava"):
        detokenizer = Detokenizer(own(name).processor.tokenizer)
        first = ids_of(detokenizer, "🐯")
        assert "".join(detokenizer.alone(each) for each in first).replace(" ", "").endswith("<0xF0><0x9F><0x90><0xAF>")


# In results


@pytest.mark.parametrize("name", ["internvl", "llava", "gemma3", "mllama"])
def test_text_and_tokens_of_a_result(name, probe_of, own):
    question = "图片里有什么动物？ Which animal 🐯 is it? 😀🎉"
    result = probe_of(name).generate(
        question, image=picture(), max_new_tokens=12, do_sample=True, seed=3, temperature=3.0
    )
    tokenizer = own(name).processor.tokenizer
    table = result.prompt
    text = "".join(token for token, kind in zip(table.tokens, table.kinds, strict=True) if kind == "text")
    assert question in text
    assert "�" not in text
    for token, kind, (start, stop) in zip(table.tokens, table.kinds, table.offsets, strict=True):
        if kind == "text" and token:
            assert text[start:stop] == token
    for token, kind, (start, stop) in zip(
        result.output.tokens, result.output.kinds, result.output.offsets, strict=True
    ):
        if kind == "text" and token:
            assert result.text[start:stop] == token
    said = tokenizer.decode(result.output.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if name in BYTE_LEVEL:  # byte fallback takes whole runs of bytes back when a later one makes no character
        assert said.startswith(result.text)
        assert not said[len(result.text) :].replace("�", "")
    assert [len(row) for row in result.output.top_tokens] == [10] * len(result.output)


def test_chinese_answers_are_whole_characters(probe_of):
    """The model is made to say something: one logit of each step is raised."""
    probe = probe_of("internvl")
    answer = "有一只老虎🐯。"
    ids = probe.engine.adapter.tokenizer(answer, add_special_tokens=False)["input_ids"]
    step = iter(ids)

    def say(_, __, logits):
        return logits.index_fill(-1, torch.tensor([next(step)]), 50.0)

    handle = probe.engine.adapter.model.get_output_embeddings().register_forward_hook(say)
    try:
        result = probe.generate("什么？", max_new_tokens=len(ids), do_sample=False, prompt=False)
    finally:
        handle.remove()
    assert result.output.ids.tolist() == ids
    assert len(ids) > len(answer)
    assert result.text == answer == "".join(result.output.tokens)
    spans = np.unique(result.output.offsets, axis=0)
    assert "".join(result.text[start:stop] for start, stop in spans) == answer


def test_texts_of_ids_are_read_as_lists_and_travel_as_lists(own):
    detokenizer = Detokenizer(own("internvl").processor.tokenizer)
    ids = np.array([[5, 6, 7], [8, -1, 9]])
    texts = TextsOfIds(detokenizer.alone, ids)
    wanted = [[detokenizer.alone(each) for each in row] for row in ids.tolist()]
    assert wanted[1][1] == ""
    assert texts == wanted
    assert wanted == texts
    assert texts != wanted[:1]
    assert (len(texts), texts[-1], texts[1:], repr(texts)) == (2, wanted[1], wanted[1:], repr(wanted))
    for travelled in (pickle.loads(pickle.dumps(texts)), copy.deepcopy(texts)):
        assert type(travelled) is list
        assert travelled == wanted
