"""What an adapter of an original format only has to say: a family of the tests' own, with Phi-3 behind a few tiles."""

from __future__ import annotations

import json
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import vlmprobe
from vlmprobe.adapter.kv_cache import cache_name, cache_of
from vlmprobe.engines.local import LocalEngine
from vlmprobe.errors import CheckpointError, MessageError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.model_registry import registry
from vlmprobe.model_registry.original import (
    FusedConfig,
    FusedForConditionalGeneration,
    FusedModel,
    ImageTiles,
    OriginalAdapter,
    language_config,
)
from vlmprobe.testing import check_adapter
from vlmprobe.testing.tiny.original import write_original
from vlmprobe.testing.tiny.tokenizers import byte_level, sentence_piece

SIDE = 4  # pixels of a tile
CONFIG = {
    "model_type": "lines",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 60,  # between the lengths of the prompts
    "rope_scaling": {"type": "su", "short_factor": [1.1] * 8, "long_factor": [1.5, 2, 3, 5, 8, 13, 21, 34]},
    "sees": "colours",
}


class LinesModel(FusedModel):
    """One feature for each tile, and an end after each row of tiles: their number differs from image to image."""

    def __init__(self, config):
        super().__init__(config)
        self.tower = nn.Linear(3 * SIDE * SIDE, config.text_config.hidden_size)
        self.end = nn.Parameter(torch.zeros(config.text_config.hidden_size))
        self.post_init()

    def image_features(self, pixel_values, tgt_sizes):
        rows, start = [], 0
        while start < len(pixel_values):
            height, width = tgt_sizes[start].tolist()
            tiles = self.tower(pixel_values[start : start + height * width].flatten(1)).reshape(height, width, -1)
            rows.append(torch.cat([tiles, self.end.expand(height, 1, -1)], 1).flatten(0, 1))
            start += height * width
        return torch.cat(rows)


class LinesForConditionalGeneration(FusedForConditionalGeneration):
    backbone_class = LinesModel
    runs_anew = True


class Lines(OriginalAdapter):
    name = "lines"
    model_types = ("lines",)
    weight_names = MappingProxyType(
        {r"^vision\.(tower|end)": r"model.\1", r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1."}
    )
    image_token, image_tag = "<image>", r"\[picture \d+\]"

    @classmethod
    def model_class(cls):
        return LinesForConditionalGeneration

    @classmethod
    def translate(cls, config, folder):
        assert config["sees"] == "colours"
        return FusedConfig(text_config=language_config("phi3", config))

    def prompt(self, conversation, images):
        numbered, text = enumerate(images, 1), ""
        for message in conversation.messages:
            text += f"{message.role}: "
            for part in message.parts:
                if hasattr(part, "text"):
                    text += part.text
                else:
                    number, image = next(numbered)
                    text += f"[picture {number}]" + self.image_token * sum(image.positions)
        return text if conversation.continues else text + "assistant:"

    def pixels(self, image):
        columns, rows = (max(1, round(side / 20)) for side in image.image.size)
        whole = np.asarray(image.image.resize((columns * SIDE, rows * SIDE)), dtype=np.float32) / 255
        tiles = whole.reshape(rows, SIDE, columns, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE * SIDE * 3)
        shaped = torch.from_numpy(tiles.reshape(-1, SIDE, SIDE, 3))
        return ImageTiles(pixels=shaped, positions=[rows * (columns + 1)], sizes=[(rows, columns)] * len(tiles))


class SharedModel(LinesModel):
    """An image takes one position, as in CogVLM, and the language model is told where images are; a buffer is held."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("speeds", torch.arange(4) / 7)

    def positions(self, attention_mask, image_index):
        seen = torch.zeros_like(attention_mask) if image_index is None else (image_index > 0).long()
        return ((attention_mask - seen * seen.roll(1, dims=-1)).cumsum(-1) - 1).clamp(min=0)

    def language_inputs(self, image_index, length):
        self.told = None if image_index is None else image_index[:, -length:]
        return {}


class SharedForConditionalGeneration(FusedForConditionalGeneration):
    backbone_class = SharedModel


class Shared(Lines):
    """Its config.json has no model_type, as that of CogVLM2."""

    name, model_types = "shared", ()
    weight_names = MappingProxyType({**Lines.weight_names, r"^vision\.speeds": "model.speeds"})
    capabilities = replace(OriginalAdapter.capabilities, system=False)

    @classmethod
    def handles(cls, config):
        return config.get("architectures") == ["SharedForCausalLM"]

    @classmethod
    def model_class(cls):
        return SharedForConditionalGeneration


def adapter(folder, cls=Lines, **changed):
    tokenizer = sentence_piece(specials=["<image>"])
    config = {**CONFIG, "vocab_size": len(tokenizer), **changed}
    return cls.load(write_original(cls, folder, config=config, tokenizer=tokenizer), config=config)


def picture(width, height):
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def user(*parts):
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in parts
    ]
    return Conversation.build([{"role": "user", "content": content}])


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    return adapter(tmp_path_factory.mktemp("lines"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return adapter(tmp_path_factory.mktemp("shared"), Shared, rope_scaling=None)


def test_it_passes_the_checks(lines):
    checks = ["C1", "C2", "C4", "C5", "C6", "C7", "C8", "C22", "C23"]
    report = check_adapter(vlmprobe.Probe(LocalEngine(lines), {}), only=checks)
    assert report.passed, report


def test_pieces_between_image_tags_are_tokenised_alone(lines):
    encoding = lines.encode([user("What is ", picture(60, 40), picture(20, 41), "and this?")])
    pieces = [lines.tokenizer(text)["input_ids"] for text in ("user: What is ", "", "and this?assistant:")]
    image = lines.model.config.image_token_id
    assert encoding.prompts[0].ids.tolist() == [*pieces[0], *[image] * 8, *pieces[1], *[image] * 4, *pieces[2]]
    begin = len(pieces[0])
    assert [(span.start, span.stop) for span in encoding.prompts[0].spans] == [
        (begin, begin + 8),
        (begin + 8 + len(pieces[1]), begin + 12 + len(pieces[1])),
    ]


def test_a_text_without_images_is_one_piece(lines):
    ids = lines.encode([user("What is it?")]).prompts[0].ids.tolist()
    assert ids == lines.tokenizer("user: What is it?assistant:")["input_ids"]


def test_an_image_tag_in_a_text_is_refused(lines):
    with pytest.raises(MessageError, match=r"2 image tags \(\[picture 1\], \[picture 7\]\) for 1 images"):
        lines.encode([user(picture(20, 20), "What is [picture 7]?")])


def test_a_candidate_after_pieces(lines):
    prompt = lines.encode([user(picture(60, 40), picture(20, 41), "and this?")]).prompts[0]
    alone, whole = (lines.tokenizer("and this?assistant:" + text)["input_ids"] for text in ("", " a cat"))
    assert whole[: len(alone)] == alone
    continuation = lines.continuation(prompt, " a cat")
    assert (continuation.shared, continuation.ids) == (len(prompt.ids), tuple(whole[len(alone) :]))


def test_names_are_those_of_the_original(lines, tmp_path):
    lines.model.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert {name for name in names if "layers" not in name} == {
        *("vision.tower.weight", "vision.tower.bias", "vision.end"),
        *("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"),
    }
    assert all(name.startswith("model.layers.") for name in names if "layers" in name)


@torch.no_grad()
def test_features_of_each_image_stand_at_its_positions(lines):
    wide, tall = picture(60, 40), picture(20, 41)
    encoding = lines.encode([user(wide, "What?"), user("Which? ", tall, wide)])
    model = lines.model.model
    caught = []
    handle = model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: caught.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    lines.model(**encoding.inputs)
    handle.remove()
    expected = []
    for image in (wide, tall, wide):
        tiles = lines.pixels(Conversation.build("?", image).image_parts[0])
        rows, columns = tiles.sizes[0]
        seen = [model.tower(tile.flatten()) for tile in tiles.pixels]
        lined = [[*seen[row * columns : (row + 1) * columns], model.end] for row in range(rows)]
        expected += [each for line in lined for each in line]
    at = encoding.inputs["image_index"] > 0
    torch.testing.assert_close(caught[0][at], torch.stack(expected))


def test_a_checkpoint_without_a_model_type(tmp_path, monkeypatch):
    """An adapter is found by ``handles``; a buffer that the checkpoint holds is read, and both are saved again."""
    tokenizer = sentence_piece(specials=["<image>"])
    config = {**CONFIG, "vocab_size": len(tokenizer), "rope_scaling": None, "architectures": ["SharedForCausalLM"]}
    del config["model_type"]
    write_original(Shared, tmp_path / "one", config=config, tokenizer=tokenizer)
    weights = load_file(tmp_path / "one" / "model.safetensors")
    weights["vision.speeds"] = torch.tensor([3.0, 1.0, 4.0, 1.5])
    save_file(weights, tmp_path / "one" / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(registry, "adapters", lambda: {"shared": Shared})
    probe = vlmprobe.load(tmp_path / "one", check=False)
    assert probe.meta["adapter"] == "shared"
    assert probe.model.model.speeds.tolist() == [3.0, 1.0, 4.0, 1.5]
    assert probe.engine.adapter.capabilities.mixed_images
    probe.model.save_pretrained(tmp_path / "two")
    tokenizer.save_pretrained(tmp_path / "two")
    again = vlmprobe.load(tmp_path / "two", check=False)
    assert again.model.model.speeds.tolist() == [3.0, 1.0, 4.0, 1.5]
    assert "model_type" not in json.loads((tmp_path / "two" / "config.json").read_text(encoding="utf-8"))


@torch.no_grad()
@pytest.mark.parametrize("texts", [["What is it?"], ["What is it?", "And what is there on the left?"]])
def test_positions_of_a_family_hold_in_an_answer(shared, texts):
    """Of one prompt and of two: transformers drops the mask of a batch without padding."""
    inputs = shared.encode([user(picture(60, 40), text) for text in texts]).inputs
    length = inputs["input_ids"].shape[1]
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "use_cache": True}
    made = shared.model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
    whole = shared.model(**shared.extend(inputs, made.sequences[:, length:])).logits
    torch.testing.assert_close(torch.stack(made.logits, 1), whole[:, length - 1 : -1], atol=1e-4, rtol=0)


@torch.no_grad()
def test_without_a_mask_all_positions_are_attended(shared):
    """From the beginning, and after a cache: positions and places of images are those of the whole sequence."""
    inputs = dict(shared.encode([user(picture(60, 40), "What is it?")]).inputs)
    more = torch.tensor([[5, 6, 7]])
    whole = shared.model(**shared.extend(inputs, more)).logits
    del inputs["attention_mask"]
    first = shared.model(**inputs, use_cache=True)
    torch.testing.assert_close(first.logits, whole[:, :-3], atol=1e-4, rtol=0)
    cache = {cache_name(shared.model.forward): cache_of(first)}
    then = shared.model(input_ids=more, image_index=inputs["image_index"], **cache)
    torch.testing.assert_close(then.logits, whole[:, -3:], atol=1e-4, rtol=0)
    assert shared.model.model.told.tolist() == [[0, 0, 0]]


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 2])
def test_an_answer_across_the_trained_length(tmp_path, beams):
    question = user(picture(60, 40), "What is it?")
    length = len(adapter(tmp_path / "long").encode([question]).prompts[0].ids)
    lines = adapter(tmp_path / "short", original_max_position_embeddings=length + 2)
    inputs = lines.encode([question]).inputs
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": beams}
    cached, anew = (lines.model.generate(**inputs, **options, use_cache=each) for each in (True, False))
    assert cached.tolist() == anew.tolist()
    if beams == 1:
        for step in range(length, length + 6):
            grown = lines.extend(inputs, cached[:, length:step])
            assert int(lines.model(**grown).logits[0, -1].argmax()) == int(cached[0, step])


@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece"])
def test_the_tokenizer_of_a_tiny_checkpoint_suits_old_and_new_transformers(tmp_path, kind):
    """Version 4 knows no pairs of merges, no TokenizersBackend and no list extra_special_tokens."""
    if kind == "byte_level":
        names = ["<s>", "</s>", "<image>"]
        tokenizer = byte_level(specials=names, bos="<s>", eos="</s>", pad="</s>", add_bos=True)
    else:
        tokenizer = sentence_piece(specials=["<image>"])
    config = {**CONFIG, "vocab_size": len(tokenizer)}
    write_original(Lines, tmp_path, config=config, tokenizer=tokenizer)
    merges = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    assert merges
    assert all(isinstance(each, str) and each.count(" ") == 1 for each in merges)
    told = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert told["tokenizer_class"] in ("PreTrainedTokenizerFast", "LlamaTokenizer")
    assert told["additional_special_tokens"] == ["<image>"]
    assert "extra_special_tokens" not in told
    read = Lines.load(tmp_path, config=config).tokenizer
    text = "What is this?<image>Größe  \n1"
    assert read(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert sorted(read.all_special_ids) == sorted(tokenizer.all_special_ids)


def test_a_field_that_config_json_lacks(lines, tmp_path):
    lines.model.save_pretrained(tmp_path)
    lines.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json lacks 'sees', which the adapter Lines reads"):
        Lines.load(tmp_path, config={name: value for name, value in CONFIG.items() if name != "sees"})


@pytest.mark.parametrize(
    ("kind", "attention"),
    [("su", (1 + np.log(4096 / 60) / np.log(60)) ** 0.5), ("yarn", 0.1 * np.log(4096 / 60) + 1)],
)
def test_rope_scaling_of_phi_3(kind, attention):
    rope = {**CONFIG["rope_scaling"], "type": kind}
    config = language_config("phi3", {**CONFIG, "vocab_size": 100, "rope_scaling": rope})
    assert config.rope_parameters["rope_type"] == "longrope"
    assert config.rope_parameters["original_max_position_embeddings"] == 60
    assert config.pad_token_id is None  # the architecture's own lies beyond this vocabulary
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    rotary = Phi3RotaryEmbedding(config)
    assert rotary.attention_scaling == pytest.approx(attention)
    for last, factors in ((59, rope["short_factor"]), (60, rope["long_factor"])):
        cosine, _ = rotary(torch.zeros(1), torch.tensor([[0, last]]))
        speeds = 10000.0 ** (-np.arange(0, 16, 2) / 16) / np.array(factors)
        np.testing.assert_allclose(cosine[0, 1, :8], attention * np.cos(last * speeds), atol=1e-4)
