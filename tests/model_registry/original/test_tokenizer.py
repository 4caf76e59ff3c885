"""Tokenizers of original checkpoints: the ids of the slow classes of transformers 4.37.2, on 174 awkward texts."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from common import DATA

from vlmprobe.errors import CheckpointError, MissingExtraError
from vlmprobe.model_registry.original.sentencepiece_tokenizer import SentencePieceTokenizer
from vlmprobe.model_registry.original.tokenizer import original_tokenizer, token_id

FOLDERS = {
    "phi3": DATA / "tokenizers" / "phi3",  # legacy=false, role tokens that swallow white space
    "yi": DATA / "tokenizers" / "yi",  # legacy=false, no dummy prefix in the model, a user-defined piece
    "yi-legacy": DATA / "tokenizers" / "yi-legacy",
    "zephyr": DATA / "tokenizers" / "zephyr",  # added_tokens.json and special_tokens_map.json, as before 4.34
    "internlm2": DATA / "golden" / "internvl2-internlm2",
    "qwen2": DATA / "golden" / "internvl2-qwen2",
}


@pytest.fixture(scope="module")
def original():
    return json.loads((DATA / "tokenizers" / "original_ids.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_are_those_of_the_original_class(name, original):
    tokenizer = original_tokenizer(FOLDERS[name])
    wrong = [
        (text, ids, got)
        for text, ids in zip(original["texts"], original["ids"][name], strict=True)
        if (got := list(tokenizer(text)["input_ids"])) != ids
    ]
    assert not wrong


def test_internlm3_has_the_ids_of_internlm2_and_decodes_without_the_first_space(tmp_path, original):
    folder = Path(shutil.copytree(FOLDERS["internlm2"], tmp_path / "internlm3"))
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": "InternLM3Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer, older = original_tokenizer(folder), original_tokenizer(FOLDERS["internlm2"])
    assert [list(tokenizer(text)["input_ids"]) for text in original["texts"]] == original["ids"]["internlm2"]
    ids = [id for id, piece in enumerate(older.convert_ids_to_tokens(range(older.vocab_size))) if piece == "▁the"]
    assert (older.decode(ids), tokenizer.decode(ids)) == (" the", "the")


def test_a_class_that_reads_tokenizer_json_alone_may_stand_beside_older_files(tmp_path):
    folder = Path(shutil.copytree(FOLDERS["qwen2"], tmp_path / "fast"))
    original_tokenizer(FOLDERS["qwen2"]).backend_tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    text = "<|im_start|>user\nThe cat sat.<|im_end|>"
    assert original_tokenizer(folder)(text)["input_ids"] == original_tokenizer(FOLDERS["qwen2"])(text)["input_ids"]


@pytest.mark.parametrize("name", ["phi3", "yi", "yi-legacy", "zephyr", "internlm2"])
def test_decoding_gives_the_text_back(name):
    tokenizer = original_tokenizer(FOLDERS[name])
    for text in ("The cat sat on the mat.", "请用中文回答。 naïve café 🙂", "def f(x):\n\treturn x**2"):
        ids = tokenizer(text)["input_ids"]
        begin = [tokenizer.bos_token_id] if tokenizer.add_bos_token else []
        assert ids[: len(begin)] == begin
        assert tokenizer.decode(ids[len(begin) :]) == text


def test_a_part_of_a_character_decodes_to_the_replacement_character():
    tokenizer = original_tokenizer(FOLDERS["internlm2"])
    ids = tokenizer("🙂", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    assert tokenizer.decode(ids) == "🙂"
    assert "\N{REPLACEMENT CHARACTER}" in tokenizer.decode(ids[:1])


def test_an_id_beyond_the_vocabulary_has_no_text():
    tokenizer = original_tokenizer(FOLDERS["internlm2"])
    assert tokenizer.convert_ids_to_tokens(len(tokenizer) + 5) == ""
    assert tokenizer.decode([len(tokenizer) + 5]) == ""


def test_the_dummy_prefix_is_switched_off_without_touching_the_rest():
    file = str(FOLDERS["phi3"] / "tokenizer.model")
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    with_prefix = SentencePieceTokenizer(file, legacy=True, named=[], **names)
    without = SentencePieceTokenizer(file, legacy=False, named=[], **names)
    assert with_prefix.pieces.encode("cat", out_type=str)[0].startswith("▁")
    assert not without.pieces.encode("cat", out_type=str)[0].startswith("▁")
    size = with_prefix.vocab_size
    assert [with_prefix.pieces.id_to_piece(each) for each in range(size)] == [
        without.pieces.id_to_piece(each) for each in range(size)
    ]


def test_older_files_are_read_only_where_they_are_asked_for(tmp_path, original):
    folder = Path(shutil.copytree(FOLDERS["yi"], tmp_path / "yi"))
    (folder / "tokenizer.json").write_text("{}")  # broken: a slow class never opens it
    assert list(original_tokenizer(folder)("the cat")["input_ids"])


def test_what_is_missing_or_unknown_is_said(tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        original_tokenizer(empty)
    (empty / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with pytest.raises(CheckpointError, match=r"tokenizer\.model, tokenizer\.json, or vocab\.json"):
        original_tokenizer(empty)

    folder = Path(shutil.copytree(FOLDERS["yi"], tmp_path / "yi"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ErnieTokenizer"}')
    with pytest.raises(CheckpointError, match="ErnieTokenizer"):
        original_tokenizer(folder)
    with pytest.raises(CheckpointError, match="<absent>"):
        token_id(original_tokenizer(FOLDERS["yi"]), "<absent>")

    damaged = Path(shutil.copytree(FOLDERS["phi3"], tmp_path / "phi3"))
    (damaged / "tokenizer.model").write_bytes(b"\x00\xffnot a model")
    with pytest.raises(CheckpointError, match=r"not a SentencePiece model"):
        original_tokenizer(damaged)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sentencepiece>=[0-9.]+' 'protobuf>=[0-9.]+'"):
        original_tokenizer(FOLDERS["phi3"])
