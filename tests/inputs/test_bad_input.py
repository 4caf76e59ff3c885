"""Bad input through the public calls: a typed error that names the remedy, in time, and nothing left behind."""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from common import QUESTION, picture
from refusing_hub import refusing_hub
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

import vlmprobe
from vlmprobe.errors import (
    CapabilityError,
    CheckpointError,
    CheckpointNotFoundError,
    GenerationOptionError,
    ImageError,
    MessageError,
    RemoteCodeError,
    UnknownModelError,
    VlmprobeError,
)

CALL = {"max_new_tokens": 3, "do_sample": False}
SECONDS = 5.0  # for an error; most take milliseconds


@pytest.fixture
def probe(probe_of):
    """A probe that is asked the same before and after each test: the numbers must not move."""
    probe = probe_of("internvl")
    before = probe.generate(QUESTION, image=picture(), keep="logits", **CALL)
    started = time.monotonic()
    yield probe
    assert time.monotonic() - started < SECONDS
    after = probe.generate(QUESTION, image=picture(), keep="logits", **CALL)
    assert np.array_equal(before.output.logits, after.output.logits)
    assert np.array_equal(before.prompt.logits, after.prompt.logits, equal_nan=True)


# Images (all that images.py refuses is tested beside it; here it is the calls that must pass it on)


def png() -> bytes:
    file = io.BytesIO()
    picture().save(file, "PNG")
    return file.getvalue()


def bomb() -> bytes:
    """A few bytes whose header promises 30,000 x 30,000 pixels."""
    data = bytearray(png())
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    return bytes(data)


BAD_IMAGES = {
    "missing file": lambda folder: folder / "no.png",
    "folder": lambda folder: folder,
    "not an image": lambda folder: b"%PDF-1.7 hello",
    "empty": lambda folder: b"",
    "truncated": lambda folder: png()[:60],
    "bomb": lambda folder: bomb(),
    "NaN": lambda folder: np.full((4, 4, 3), np.nan),
    "wrong shape": lambda folder: np.zeros((5, 6, 7), np.uint8),
    "five dimensions": lambda folder: np.zeros((1, 2, 3, 4, 5), np.uint8),
    "file address": lambda folder: f"file://{folder}/no.png",
    "ftp": lambda folder: "ftp://127.0.0.1/no.png",
    "broken base64": lambda folder: "data:image/png;base64,AAAA!!!!",
    "no type for it": lambda folder: object(),
    "refused connection": lambda folder: "http://127.0.0.1:9/no.png",
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images(name, probe, tmp_path):
    image = BAD_IMAGES[name](tmp_path)
    with pytest.raises(ImageError):
        probe.generate(QUESTION, image=image, **CALL)
    with pytest.raises(ImageError):
        probe.score(QUESTION, ["yes", "no"], image=[picture(), image])
    with pytest.raises(ImageError, match="Message 0, part 0"):
        probe.generate(
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "Hi"}]}], **CALL
        )


class Slow(BaseHTTPRequestHandler):
    """Sends its header at once, then a byte now and then (``/slow``), or bytes without end (``/large``)."""

    stop = threading.Event()

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        try:
            while not self.stop.wait(0.05 if self.path == "/slow" else 0):
                self.wfile.write(b"x" if self.path == "/slow" else b"x" * 65536)
        except OSError:
            pass  # the client has hung up

    def log_message(self, *_):
        pass


@pytest.fixture
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    Slow.stop.clear()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    Slow.stop.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["/slow", "/large"])
def test_an_address_that_stalls_or_never_ends(path, address, probe, monkeypatch):
    from vlmprobe.inputs import images

    limits = images.DEFAULT_LIMITS
    monkeypatch.setitem(limits.__dict__, "url_seconds", 1.0)
    monkeypatch.setitem(limits.__dict__, "url_bytes", 2**20)
    with pytest.raises(ImageError, match=r"did not arrive|larger than"):
        probe.generate(QUESTION, image=address + path, **CALL)


def test_odd_but_good_images_are_asked_about(probe):
    from PIL import Image

    images = [
        Image.new("RGBA", (20, 30), (255, 0, 0, 40)),
        Image.new("L", (20, 30), 7),
        Image.new("1", (20, 30), 1),
        Image.new("CMYK", (20, 30)),
        Image.new("I;16", (20, 30), 60_000),
        Image.new("RGB", (40, 1)),
        np.random.default_rng(0).random((12, 12, 3)),
        np.zeros((12, 12), np.uint8),
        torch.zeros(3, 12, 12),
    ]
    for image in images:
        result = probe.generate(QUESTION, image=image, max_new_tokens=1)
        assert "image" in result.prompt.kinds
        assert result.images[0].mode == "RGB"


# Conversations

USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ([], "no message"),
        (None, "string or a list"),
        (5, "int"),
        (b"bytes", "bytes"),
        (["Hi"], "string"),
        ([{"role": "robot", "content": "Hi"}], "robot"),
        ([{"role": "usr", "content": "Hi"}], "Did you mean user"),
        ([{"role": "user"}], "content"),
        ([{"content": "Hi"}], "role"),
        ([{"role": "user", "content": 5}], "int"),
        ([{"role": "user", "content": []}], "empty"),
        ([{"role": "user", "content": [{"type": "txt", "text": "Hi"}]}], "Did you mean text"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "string"),
        ([{"role": "user", "content": [{"type": "video", "video": "x.mp4"}]}], "video"),
        ([{"role": "user", "content": [{"type": "image"}]}], "image="),
        ([USER, {"role": "system", "content": "Be brief"}], "first"),
        ([{"role": "system", "content": "Be brief"}], "user"),
        ("\ud83d", "surrogate|UTF-8|character"),
    ],
)
def test_bad_conversations(prompt, says, probe):
    with pytest.raises(MessageError, match=says):
        probe.generate(prompt, **CALL)
    with pytest.raises(MessageError, match=says):
        probe.score(prompt, ["yes", "no"])


def test_what_a_family_cannot_take(probe_of):
    with pytest.raises(CapabilityError, match="image"):
        probe_of("paligemma").generate(QUESTION, **CALL)
    odd = [
        {
            "role": "user",
            "content": [{"type": "image", "image": picture(), "max_pixles": 9}, {"type": "text", "text": "Hi"}],
        }
    ]
    for name in ("internvl", "qwen2_vl"):
        with pytest.raises(CapabilityError, match="max_pixles"):
            probe_of(name).generate(odd, **CALL)


# Options

OPTIONS = [
    ({"temprature": 1.0}, "Did you mean temperature"),
    ({"max_tokens": 5}, "Did you mean max_new_tokens"),
    ({"max_new_tokens": 0}, "at least 1"),
    ({"max_new_tokens": 1.5}, "integer"),
    ({"max_new_tokens": True}, "integer"),
    ({"num_beams": 0}, "at least 1"),
    ({"temperature": 0.0, "do_sample": True}, "do_sample=True contradicts temperature=0.0"),
    ({"temperature": 0.7, "do_sample": False}, "do_sample=False contradicts temperature=0.7"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": False}, "temperature must be a number"),
    ({"temperature": "0"}, "temperature must be a number"),
    ({"temperature": float("nan"), "do_sample": True}, "temperature"),
    ({"top_p": 2.0, "do_sample": True}, "from"),
    ({"top_k": -3, "do_sample": True}, "top_k"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ({"do_sample": "yes"}, "True or False"),
    ({"num_return_sequences": 2, "num_beams": 2}, "another seed"),
    ({"output_scores": True}, "column scores"),
    ({"output_logits": True}, 'keep="logits"'),
    ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive"),
    ({"assistant_model": object()}, "speculative"),
    ({"prompt_lookup_num_tokens": 2}, "speculative"),
    ({"guidance_scale": 2.0}, "second time"),
    ({"custom_generate": "some/repository"}, "no generation option"),
    ({"num_beams": 4, "num_beam_groups": 2}, "group_beam_search"),
    ({"num_beams": 4, "diversity_penalty": 0.5}, "not accept diversity_penalty: .*group_beam_search"),
    ({"num_beams": 2, "low_memory": True}, "not accept low_memory: transformers no longer has it"),
    ({"num_beams": 2, "force_words_ids": [[5]]}, "not accept force_words_ids: .*constrained_beam_search"),
    ({"dola_layers": "high"}, "not accept dola_layers: DoLa"),
    ({"use_mtp": True}, "not accept use_mtp: speculative"),
    ({"assistant_early_exit": 1}, "not accept assistant_early_exit: speculative"),
    ({"assistant_tokenizer": object()}, "not accept assistant_tokenizer: speculative"),
    ({"stopping_criteria": [len]}, "not accept stopping_criteria: use stop_strings, eos_token_id or max_time"),
    ({"generation_config": GenerationConfig(max_new_tokens=5)}, "not accept generation_config: pass its options"),
    ({"prefix_allowed_tokens_fn": 5}, "must be a function"),
    ({"negative_prompt_ids": torch.ones(1, 1)}, "not accept negative_prompt_ids: they are for guidance_scale"),
    ({"past_key_values": object()}, "not accept past_key_values: .*probe.session"),
    ({"attention_mask": torch.ones(1, 1)}, "not accept attention_mask: a probe encodes"),
    ({"max_length": 5}, "max_length"),
    ({"max_length": "x"}, "integer"),
    ({"bad_words_ids": []}, "bad_words_ids"),
    ({"bad_words_ids": [[10**9]]}, "vocabulary"),
    ({"suppress_tokens": "abc"}, "transformers rejects"),
    ({"forced_eos_token_id": 10**9}, "out of bounds"),
    ({"eos_token_id": "x"}, "token id"),
    ({"eos_token_id": -5}, "token id"),
    ({"stop_strings": 5}, "string"),
    ({"stop_strings": [""]}, "empty"),
    ({"max_time": "x"}, "number"),
    ({"cache_implementation": "nonsense"}, "cache_implementation"),
    ({"exponential_decay_length_penalty": 5}, "transformers rejects"),
    ({"prefill_chunk_size": 7}, "both directions"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**70}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"alternatives": 0}, "alternatives"),
    ({"alternatives": "many"}, "alternatives"),
    ({"keep": "logit"}, "Did you mean logits"),
    ({"keep": None}, "keep"),
    ({"keep": 5}, "keep"),
    ({"keep": ["logits", []]}, "keep"),
    ({"prompt": "What?"}, "True or False"),
]


@pytest.mark.parametrize(("options", "says"), OPTIONS, ids=[" ".join(map(str, options)) for options, _ in OPTIONS])
def test_bad_options(options, says, probe):
    with pytest.raises(GenerationOptionError, match=says):
        probe.generate("Hi", **({} if "max_length" in options else CALL) | options)


def test_numbers_of_numpy_are_numbers(probe):
    options = {
        "max_new_tokens": np.int64(2),
        "seed": np.int64(3),
        "alternatives": np.int32(4),
        "temperature": np.float32(0.5),
    }
    result = probe.generate("Hi", do_sample=True, **options)
    plain = probe.generate("Hi", do_sample=True, max_new_tokens=2, seed=3, alternatives=4, temperature=0.5)
    assert result.output.ids.tolist() == plain.output.ids.tolist()
    assert result.output.top_ids.shape == (2, 4)


# Checkpoints


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy of a good checkpoint, to be damaged."""
    return shutil.copytree(checkpoint("llava"), tmp_path / "model")


def rewrite(file, **changes):
    held = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(held | changes))


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights, next(name for name in weights if "q_proj.weight" in name))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def shards(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = list(weights)
    first, second = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    save_file({name: weights[name] for name in names[:9]}, folder / first, metadata={"format": "pt"})
    placed = {name: first if place < 9 else second for place, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def weights_are(data):
    return lambda folder: (folder / "model.safetensors").write_bytes(data)


def without(pattern):
    return lambda folder: [file.unlink() for file in folder.glob(pattern)]


def garbage(pattern):
    return lambda folder: [file.write_text("{") for file in folder.glob(pattern)]


def text_config(**changes):
    def change(folder):
        held = json.loads((folder / "config.json").read_text())["text_config"]
        rewrite(folder / "config.json", text_config=held | changes)

    return change


DAMAGE = {
    "a missing weight": (lambda folder: edit_weights(folder, lambda held, name: held.pop(name)), "q_proj"),
    "a weight of another shape": (
        lambda folder: edit_weights(folder, lambda held, name: held.update({name: held[name][:5].clone()})),
        "mismatched",
    ),
    "no weights": (without("model.safetensors"), "no file named"),
    "truncated weights": (lambda folder: os.truncate(folder / "model.safetensors", 5000), "header"),
    "empty weights": (weights_are(b""), "header"),
    "a web page for weights": (weights_are(b"<html>gone</html>" * 20), "header"),
    "a missing shard": (shards, "00002"),
    "a broken index": (lambda folder: (shards(folder), garbage("*.index.json")(folder)), "JSON"),
    "no tokenizer": (without("tokenizer*"), "tokenizer"),
    "a broken tokenizer": (garbage("tokenizer.json"), "JSON"),
    "no processor": (without("processor_config.json"), "processor"),
    "a broken processor": (garbage("processor_config.json"), "JSON"),
    "no config": (without("config.json"), "config.json"),
    "an empty config": (lambda folder: (folder / "config.json").write_text(""), "config.json"),
    "a list for a config": (lambda folder: (folder / "config.json").write_text("[]"), "config.json"),
    "a deep config": (lambda folder: (folder / "config.json").write_text("[" * 100_000), "config.json"),
    "a binary config": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json"),
    "a model type that is a list": (lambda folder: rewrite(folder / "config.json", model_type=["llava"]), "config"),
    "a width that is a word": (text_config(hidden_size="x"), "hidden_size"),
    "an unknown language model": (text_config(model_type="nonsense"), "nonsense"),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.filterwarnings("ignore")
def test_damaged_checkpoints(name, folder):
    damage, says = DAMAGE[name]
    damage(folder)
    with pytest.raises(CheckpointError, match=f"(?i){says}"):
        vlmprobe.load(folder, device="cpu")


def test_a_weight_too_few_is_never_filled_in(folder):
    edit_weights(folder, lambda held, name: held.pop(name))
    with pytest.raises(CheckpointError, match="never fills"):
        vlmprobe.load(folder, device="cpu")
    with pytest.raises(CheckpointError):
        vlmprobe.load(folder, device="cpu", ignore_mismatched_sizes=True)


TEMPLATES = {
    "none": (None, CheckpointError, "no chat template"),
    "broken": ("{% for message in messages %}{{ message", CapabilityError, "refuses"),
    "that refuses": ("{{ raise_exception('roles must alternate') }}", CapabilityError, "alternate"),
    "that asks for what is not there": ("{{ messages[9].content.foo.bar }}", CapabilityError, "refuses"),
    "that reaches for Python": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", CapabilityError, "unsafe"),
    "that drops the picture": ("USER: What is it? ASSISTANT:", VlmprobeError, "image"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates(name, folder):
    template, error, says = TEMPLATES[name]
    if template is None:
        (folder / "chat_template.jinja").unlink()
    else:
        (folder / "chat_template.jinja").write_text(template)
    probe = vlmprobe.load(folder, device="cpu")
    with pytest.raises(error, match=says):
        probe.generate("Hi", image=picture(), **CALL)


# What a checkpoint says about generation


def test_output_options_of_the_checkpoint_are_put_aside(folder, probe_of):
    rewrite(
        folder / "generation_config.json", num_return_sequences=3, output_scores=True, output_logits=True, num_beams=3
    )
    probe = vlmprobe.load(folder, device="cpu", dtype="float32")
    plain = probe_of("llava").generate(QUESTION, image=picture(), num_beams=3, **CALL)
    result = probe.generate(QUESTION, image=picture(), **CALL)
    assert result.output.ids.tolist() == plain.output.ids.tolist()
    assert np.array_equal(result.output.logprobs, plain.output.logprobs)


def test_guidance_of_the_checkpoint_is_told(folder, probe_of):
    rewrite(folder / "generation_config.json", guidance_scale=3.0)
    probe = vlmprobe.load(folder, device="cpu", dtype="float32")
    with pytest.raises(GenerationOptionError, match="guidance_scale=None"):
        probe.generate(QUESTION, image=picture(), **CALL)
    result = probe.generate(QUESTION, image=picture(), guidance_scale=None, **CALL)
    plain = probe_of("llava").generate(QUESTION, image=picture(), **CALL)
    assert np.array_equal(result.output.logprobs, plain.output.logprobs)


CHECKPOINT_SETS = {
    "penalty_alpha": 0.6,
    "dola_layers": "high",
    "num_beam_groups": 2,
    "diversity_penalty": 0.4,
    "force_words_ids": [[5]],
    "assistant_early_exit": 1,
    "use_mtp": True,
    "is_assistant": True,
}


@pytest.mark.parametrize("name", CHECKPOINT_SETS)
def test_what_a_probe_does_not_support_is_named_where_the_checkpoint_sets_it(name, own, probe_of):
    """Contrastive search used to end in an AttributeError of transformers."""
    model = copy.copy(own("llava").model)
    model.generation_config = copy.deepcopy(model.generation_config)
    setattr(model.generation_config, name, CHECKPOINT_SETS[name])
    probe = vlmprobe.wrap(model, own("llava").processor)
    for call in (
        lambda: probe.generate(QUESTION, picture(), **CALL),
        lambda: probe.generate(QUESTION, picture(), num_beams=2, **CALL),
        lambda: probe.score(QUESTION, ["yes", "no"], picture()),
    ):
        with pytest.raises(GenerationOptionError, match=rf"sets {name}=.*Pass {name}=None") as caught:
            call()
        assert "set it to None in the model's generation_config" in str(caught.value)
    result = probe.generate(QUESTION, picture(), **{name: None}, **CALL)
    plain = probe_of("llava").generate(QUESTION, picture(), **CALL)
    assert np.array_equal(result.output.logprobs, plain.output.logprobs)
    setattr(model.generation_config, name, None)
    assert probe.score(QUESTION, ["yes", "no"], picture()).best in ("yes", "no")


def test_values_without_an_effect_are_not_refused(folder, probe_of):
    """Former versions of transformers wrote their defaults; low_memory never changed an answer."""
    idle = {"num_beam_groups": 1, "diversity_penalty": 0.0, "penalty_alpha": 0.0, "low_memory": True}
    rewrite(folder / "generation_config.json", **idle)
    probe = vlmprobe.load(folder, device="cpu", dtype="float32")
    for beams in (1, 3):
        plain = probe_of("llava").generate(QUESTION, image=picture(), num_beams=beams, **CALL)
        given = {name: value for name, value in idle.items() if name != "low_memory"}
        for options in ({}, given, {"low_memory": False, "stopping_criteria": None, "generation_config": None}):
            result = probe.generate(QUESTION, image=picture(), num_beams=beams, **options, **CALL)
            assert np.array_equal(result.output.logprobs, plain.output.logprobs)


def test_none_leaves_out_what_the_checkpoint_sets(folder, probe_of):
    free = probe_of("llava").generate(QUESTION, image=picture(), max_new_tokens=6, do_sample=False)
    rewrite(
        folder / "generation_config.json",
        eos_token_id=int(free.output.ids[2]),
        repetition_penalty=9.0,
        max_new_tokens=6,
    )
    probe = vlmprobe.load(folder, device="cpu", dtype="float32")
    result = probe.generate(QUESTION, image=picture(), eos_token_id=None, repetition_penalty=None, do_sample=False)
    assert result.output.ids.tolist() == free.output.ids.tolist()
    assert result.output.scores is None
    assert result.finish_reason == "length"
    assert probe.engine.adapter.model.generation_config.repetition_penalty == 9.0
    assert probe.generate(QUESTION, image=picture(), do_sample=False).output.scores is not None


# Code of a checkpoint never runs


HOSTILE = {
    "an unknown model": {
        "config.json": {
            "model_type": "evil_vl",
            "auto_map": {"AutoConfig": "modeling_x.X", "AutoModelForImageTextToText": "modeling_x.X"},
        }
    },
    "a known model": {
        "config.json": {"auto_map": {"AutoConfig": "modeling_x.X", "AutoModelForImageTextToText": "modeling_x.X"}}
    },
    "a tokenizer": {
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["modeling_x.X", None]}, "tokenizer_class": "X"}
    },
    "a processor": {
        "processor_config.json": {
            "auto_map": {"AutoProcessor": "modeling_x.X", "AutoImageProcessor": "modeling_x.X"},
            "processor_class": "X",
            "image_processor_type": "X",
        }
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_code_in_a_checkpoint_never_runs(name, folder):
    mark = folder / "ran"
    code = f"import pathlib\npathlib.Path({str(mark)!r}).write_text('ran')\nclass X: pass\n"
    (folder / "modeling_x.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code + "def generate(*args, **options): pass\n")
    for file, changes in HOSTILE[name].items():
        rewrite(folder / file, **changes)
    if name in ("a known model", "a tokenizer"):  # transformers has classes of its own for these
        vlmprobe.load(folder, device="cpu").generate(QUESTION, image=picture(), **CALL)
    else:
        with pytest.raises(RemoteCodeError, match="Python code of its own"):
            vlmprobe.load(folder, device="cpu")
    assert not mark.exists()


def test_a_pickle_is_never_run(folder):
    mark = folder / "ran"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(mark),)

    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        vlmprobe.load(folder, device="cpu")
    assert not mark.exists()


def test_remote_code_cannot_be_switched_on(folder):
    with pytest.raises(RemoteCodeError, match="leave it out"):
        vlmprobe.load(folder, trust_remote_code=True)
    vlmprobe.load(folder, device="cpu", trust_remote_code=False)


# Places that hold no checkpoint


@pytest.mark.parametrize(
    "place", ["", "no/such/folder", "/no/such/folder", "no-such-folder", "~/no-such-folder", "a/b/c", "\0", "x" * 5000]
)
def test_places_without_a_checkpoint(place):
    with pytest.raises(UnknownModelError, match="no folder"):
        vlmprobe.load(place)


@pytest.mark.parametrize("name", ["gpt2", "gpt2-xl", "t5-small", "bert-base-uncased", "openai-gpt", "xlm-roberta-base"])
def test_an_old_hub_id_of_a_text_only_model_is_called_that(name):
    with pytest.raises(CheckpointNotFoundError, match=rf"the hub id '{name}' is that of a text-only model"):
        vlmprobe.load(name)


@pytest.mark.parametrize("name", ["Demo", "DEMO", "demos", "dmeo", "./demo2/../my-modle"])
def test_a_misspelt_place_suggests_what_is_there(name, tmp_path, monkeypatch):
    (tmp_path / "my-model").mkdir()
    (tmp_path / "demo2").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match=r"Did you mean (demo\?|\./demo2/\.\./my-model)"):
        vlmprobe.load(name)


def test_a_place_like_no_other_suggests_nothing(tmp_path, monkeypatch):
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointNotFoundError) as raised:
        vlmprobe.load("somewhere/else/entirely")
    assert "Did you mean" not in str(raised.value)


def test_a_file_or_an_empty_folder(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="is a file"):
        vlmprobe.load(checkpoint("llava") / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        vlmprobe.load(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="LoRA"):
        vlmprobe.load(tmp_path)


@pytest.mark.parametrize("thing", [None, 5, object(), ["folder"]])
def test_load_takes_a_place(thing):
    with pytest.raises(TypeError, match=r"vlmprobe\.wrap"):
        vlmprobe.load(thing)


def test_a_hub_id_offline(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    started = time.monotonic()
    with pytest.raises(UnknownModelError, match=r"some-org/no-such-model.*connection"):
        vlmprobe.load("some-org/no-such-model")
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [(404, "RepoNotFound", "spelling"), (403, "GatedRepo", "gated"), (404, "RevisionNotFound", "spelling")],
)
def test_what_the_hub_refuses(status, code, says):
    with refusing_hub(status, code), pytest.raises(UnknownModelError, match=says):
        vlmprobe.load("some-org/no-such-model", revision="main")


# Arguments of load and wrap


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"dtype": "flaot32"}, GenerationOptionError, "Did you mean float32"),
        ({"dtype": "int8"}, GenerationOptionError, "float32"),
        ({"dtype": torch.int64}, GenerationOptionError, "float32"),
        ({"dtype": None}, GenerationOptionError, "float32"),
        ({"device": "gpu"}, CapabilityError, r"There is no device 'gpu'\. Did you mean \w+\?"),
        ({"device": "GPU:1"}, CapabilityError, r"Did you mean \w+:1\?"),
        ({"device": "0"}, CapabilityError, r"Did you mean \w+:0\?"),
        ({"device": "cuad:2"}, CapabilityError, r"Did you mean cuda:2\?"),
        ({"device": "toaster"}, CapabilityError, r"There is no device 'toaster'\. Devices are auto, cpu, cuda"),
        ({"device": "cuda:99"}, CapabilityError, "cuda:99"),
        ({"device": None}, CapabilityError, "None"),
        ({"device": "meta"}, CapabilityError, "meta"),
        ({"adapter": "intervl"}, UnknownModelError, "Did you mean internvl"),
        ({"adapter": 5}, UnknownModelError, "Installed"),
        ({"device": "cpu", "nonsense": 1}, CheckpointError, "nonsense"),
        ({"device": "cpu", "attn_implementation": "nonsense"}, CheckpointError, "attn_implementation"),
    ],
)
def test_bad_arguments_of_load(options, error, says, checkpoint):
    with pytest.raises(error, match=says):
        vlmprobe.load(checkpoint("llava"), **options)


def test_bad_arguments_of_wrap(own):
    model, processor = own("llava").model, own("llava").processor
    for wrong in (None, 5, "model", torch.nn.Linear(2, 2), processor):
        with pytest.raises(TypeError, match="wrap takes"):
            vlmprobe.wrap(wrong, processor)
    for wrong in (None, 5, "processor", torch.nn.Linear(2, 2)):
        with pytest.raises(TypeError, match="wrap takes"):
            vlmprobe.wrap(model, wrong)
    with pytest.raises(UnknownModelError, match="mllama"):
        vlmprobe.wrap(model, processor, adapter="mlama")


def test_a_language_model_is_no_vision_language_model():
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(UnknownModelError, match="llama"):
        vlmprobe.wrap(LlamaForCausalLM(config), PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE())))


def test_a_wrapped_model_answers_as_the_loaded_one(own, probe_of):
    wrapped = vlmprobe.wrap(own("llava").model, own("llava").processor)
    one, other = (each.generate(QUESTION, image=picture(), **CALL) for each in (wrapped, probe_of("llava")))
    assert np.array_equal(one.output.logprobs, other.output.logprobs)
    assert one.meta["adapter"] == "native"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.float64])
def test_statistics_are_float32_in_every_dtype(dtype, checkpoint, probe_of):
    probe = vlmprobe.load(checkpoint("internvl"), device="cpu", dtype=dtype)
    result = probe.generate(QUESTION, image=picture(), keep={"logits", "hidden"}, **CALL)
    exact = probe_of("internvl").generate(QUESTION, image=picture(), keep={"logits"}, **CALL)
    for table in (result.prompt, result.output):
        for column in ("logprobs", "entropy", "logsumexp", "top_logprobs", "logits", "hidden"):
            assert getattr(table, column).dtype == np.float32, column
        scored = table.scored
        again = table.logits[scored].astype(np.float64)
        logsumexp = np.log(np.exp(again - again.max(-1, keepdims=True)).sum(-1)) + again.max(-1)
        assert np.abs(table.logsumexp[scored] - logsumexp).max() < 1e-5
    tolerance = 1e-4 if dtype == torch.float64 else 0.5
    assert np.nanmax(np.abs(result.prompt.logits - exact.prompt.logits)) < tolerance
    assert result.meta["dtype"] == str(dtype).removeprefix("torch.")
