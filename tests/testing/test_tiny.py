"""The tiny checkpoints themselves: what the other tests take for granted about them."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image

from vlmprobe.errors import UnknownModelError
from vlmprobe.testing import tiny
from vlmprobe.testing.tiny.registry import FAMILIES

REPRESENTATIVE = (
    "internvl",
    "llava",
    "llava_next",
    "qwen2_vl",
    "qwen3_vl",
    "cohere_compass",
    "mllama",
    "idefics3",
    "gemma3",
    "gemma4",
    "paligemma",
    "cohere2_vision",
    "mistral3",
    "granite4_vision",
    "minicpmv4_6",
)
FIRST_LIST = {
    *REPRESENTATIVE,
    "qwen2_5_vl",
    "llava_onevision",
    "gemma3n",
    "aya_vision",
    "minicpmv4_7",
    "smolvlm",
}
WRITTEN_FOR = Version("5.24.0")  # the newest transformers that the table has seen
INSTALLED = Version(transformers.__version__)
FIRST_COMPLETE = Version("5.23.0")  # the oldest that knows the first list and seventy architectures
needs_newer = pytest.mark.skipif(INSTALLED < FIRST_COMPLETE, reason="an older transformers knows fewer architectures")
BATCH_TOLERANCE = 1e-4  # logits, float32


def every_family():
    return [name if name in REPRESENTATIVE else pytest.param(name, marks=pytest.mark.matrix) for name in tiny.names()]


def picture(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    patches = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST)


def ask(text: str, *images: Image.Image) -> list[dict]:
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


class Loaded:
    def __init__(self, name: str, folder) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.entry = tiny.family(name)
        self.folder = tiny.build(name, folder)
        self.model, self.report = AutoModelForImageTextToText.from_pretrained(self.folder, output_loading_info=True)
        self.model.eval()
        self.processor = AutoProcessor.from_pretrained(self.folder)

    def encode(self, *conversations):
        inputs = self.encode_plainly(*conversations) if not self.entry.chat else self.encode_chats(*conversations)
        for key, value in inputs.items():
            if torch.is_tensor(value) and value.is_floating_point():
                inputs[key] = value.float()  # llama4's processor returns bfloat16
        if self.entry.positions:
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return inputs

    def encode_chats(self, *conversations):
        return self.processor.apply_chat_template(
            list(conversations),
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, **self.entry.processor_kwargs},
        )

    def encode_plainly(self, *conversations):
        mark = self.processor.image_token if self.entry.name == "chameleon" else ""
        parts = [[part for message in each for part in message["content"]] for each in conversations]
        images = [part["image"] for each in parts for part in each if part["type"] == "image"]
        text = ["".join(part.get("text", mark) for part in each) for each in parts]
        given = {"images": images} if images else {}
        return self.processor(text=text, return_tensors="pt", padding=True, **given)

    @torch.no_grad()
    def last(self, *conversations) -> torch.Tensor:
        return self.model(**self.encode(*conversations)).logits[:, -1]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    kept: dict[str, Loaded] = {}

    def get(name: str) -> Loaded:
        if name not in kept:
            kept.clear()
            kept[name] = Loaded(name, tmp_path_factory.mktemp(name))
        return kept[name]

    yield get
    torch.set_num_threads(threads)


@pytest.fixture(params=every_family(), scope="module")
def checkpoint(request, loaded) -> Loaded:
    return loaded(request.param)


def digests(folder) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_name_same_files(checkpoint, tmp_path):
    torch.manual_seed(1234)  # the global generator must not matter, nor be moved
    before = torch.get_rng_state()
    again = tiny.build(checkpoint.entry.name, tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), before)
    assert digests(again) == digests(checkpoint.folder)


def test_every_weight_is_in_the_folder(checkpoint):
    assert not {kind: keys for kind, keys in checkpoint.report.items() if keys}


def test_logits_are_spread_and_finite(checkpoint):
    row = checkpoint.last(ask("What animal is this? 老虎", picture(1)))[0].double()
    assert torch.isfinite(row).all()
    said = row[row > torch.finfo(torch.float32).min / 2]  # a family may forbid its image ids
    assert 0.8 < said.std() < 5
    logprobs = row.log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum().item()
    assert 0.5 < entropy < 0.93 * np.log(len(row))


def test_another_image_changes_the_last_row(checkpoint):
    one, other = (checkpoint.last(ask("What animal is this?", picture(seed))) for seed in (1, 2))
    assert (one - other).abs().max() > 0.1


def test_greedy_generation(checkpoint):
    inputs = checkpoint.encode(ask("What animal is this?", picture(1)))
    out = checkpoint.model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert out.shape[1] in (4, inputs["input_ids"].shape[1] + 4)
    assert out.min() >= 0
    # A random model must not answer with what only images stand for.
    assert not set(out[0, -4:].tolist()) & {getattr(checkpoint.processor, "image_token_id", -1)}


def test_end_and_padding_tokens_are_set(checkpoint):
    generation = checkpoint.model.generation_config
    ends = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    assert all(isinstance(end, int) for end in ends)
    assert isinstance(generation.pad_token_id, int)


def test_text_only(checkpoint):
    if checkpoint.entry.text_only:
        assert torch.isfinite(checkpoint.last(ask("What animal is this?"))).all()
    else:
        with pytest.raises((ValueError, TypeError, AttributeError, KeyError, IndexError, RuntimeError)):
            checkpoint.last(ask("What animal is this?"))


def test_several_images(checkpoint):
    if not checkpoint.entry.several_images:
        pytest.skip("the family takes one image")
    one, other = picture(1), picture(2)
    forward, backward = (checkpoint.last(ask("Which?", *pair)) for pair in ((one, other), (other, one)))
    assert (forward - backward).abs().max() > 1e-3


def test_left_padded_batch_equals_single_where_the_table_says_so(checkpoint):
    requests = (
        ask("Hi", picture(1)),
        ask("Describe the picture in one long sentence, and say whether there is a cat.", picture(3, 70, 30)),
    )
    try:
        mask = checkpoint.encode(*requests)["attention_mask"]
    except ValueError:
        assert not checkpoint.entry.batching
        return
    assert mask[0, 0] == 0 or not checkpoint.entry.chat, "the shorter prompt is padded on the left"
    assert mask[0].min() == 0
    assert mask[0, -1] == 1
    together = checkpoint.last(*requests)
    alone = torch.cat([checkpoint.last(request) for request in requests])
    difference = (together - alone).abs().max().item()
    # An entry without batching must show its difference: once transformers mends it, the entry is to be changed.
    assert (difference < BATCH_TOLERANCE) == checkpoint.entry.batching, difference
    if not checkpoint.entry.batching:
        assert checkpoint.entry.notes


@needs_newer
def test_the_first_list_is_complete():
    needed = {name for name in FIRST_LIST if all(_has(package) for package in tiny.family(name).packages)}
    assert needed <= set(tiny.names())


def _has(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def test_built_or_skipped_is_every_architecture_of_transformers():
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    spelt = {name.replace("-", "_").replace(".", "_") for name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    built = set(FAMILIES)
    assert set(tiny.names()) <= spelt
    assert not built & set(tiny.SKIPPED)
    assert all(tiny.SKIPPED.values())
    if INSTALLED <= WRITTEN_FOR:
        assert spelt <= built | set(tiny.SKIPPED)


@needs_newer
def test_seventy_architectures_and_more():
    assert len(tiny.names()) >= 70


def test_characters_span_tokens_and_come_back(tmp_path):
    from transformers import AutoProcessor

    text = "图片里有什么动物？ 老虎 🎉 and a tiger's tail"
    for name in ("qwen2_vl", "llava", "gemma3"):
        tokenizer = AutoProcessor.from_pretrained(tiny.build(name, tmp_path / name)).tokenizer
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        assert len(tokenizer.encode("🎉", add_special_tokens=False)) > 1


def test_mllama_image_id_is_beyond_the_head(loaded):
    model = loaded("mllama").model
    assert model.config.image_token_index == model.get_output_embeddings().weight.shape[0]
    assert model.get_input_embeddings().weight.shape[0] == model.config.image_token_index + 8


@pytest.mark.parametrize(
    "name",
    ["cohere_compass", "gemma4", "granite4_vision", pytest.param("paligemma", marks=needs_newer)],  # not yet in 5.17
)
def test_forward_changes_what_the_head_returns(loaded, name):
    checkpoint = loaded(name)
    caught = []
    hook = checkpoint.model.get_output_embeddings().register_forward_hook(lambda *args: caught.append(args[-1].clone()))
    last = checkpoint.last(ask("What animal is this?", picture(1)))
    hook.remove()
    assert (caught[0][:, -1] - last).abs().max() > 0.1


def test_unknown_name_names_near_ones(tmp_path):
    with pytest.raises(UnknownModelError, match="qwen2_vl"):
        tiny.build("qwen2vl", tmp_path)


def test_command_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "vlmprobe.testing.tiny", "llava", str(tmp_path / "llava")],
        capture_output=True,
        text=True,
        check=True,
        timeout=900,
    )
    assert done.stdout.strip() == str(tmp_path / "llava")
    assert (tmp_path / "llava" / "model.safetensors").is_file()
