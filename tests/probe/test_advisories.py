"""No warning and no advisory of transformers that a call of ours causes: on a user's screen, or unseen in a test."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from dataclasses import fields

import pytest
from common import GOLDEN, QUESTION, picture
from reference import chat, encode
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import logging as transformers_logging

import vlmprobe
from vlmprobe.analysis import contrast, lens
from vlmprobe.analysis.decoding import ImageContrast

FAMILIES = ("llava", "mllama", "internvl", "qwen2_vl", "gemma3", "idefics3", "paligemma", "video_llava")
ORIGINAL = ("minicpmv-2.5", "internvl2-qwen2")
SHORT = {"max_new_tokens": 2, "do_sample": False}
OLD = "past_key_values"
RENAMED = "cache" in {field.name for field in fields(BaseModelOutputWithPast)}
deprecates = pytest.mark.skipif(not RENAMED, reason="this transformers knows the old name of the cache alone")
# Not of our calls: what is installed, and what a processor consists of.
OTHERS = ("is not installed", "Requested torchvision backend is not available")


@pytest.fixture
def advisories(monkeypatch):
    """What transformers logs at its default verbosity, each line as often as it comes, while it loads too."""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "warning")
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())

    listener, logger = (
        Listener(logging.WARNING),
        logging.getLogger("transformers"),
    )  # which hands nothing on to the root
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    for once in ("warning_once", "warning_advice"):
        if hasattr(clear := getattr(logging.Logger, once), "cache_clear"):
            clear.cache_clear()  # what another test has heard is said again
    logger.addHandler(listener)
    yield lambda: [each for each in said if not any(other in each for other in OTHERS)]
    logger.removeHandler(listener)
    transformers_logging.set_verbosity(verbosity)


@pytest.fixture
def checked(monkeypatch, tmp_path):
    """The quick checks on, and nothing remembered."""
    monkeypatch.setenv("VLMPROBE_CHECK", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def everything(folder, image):
    """Every way to ask a model."""
    probe = vlmprobe.load(folder, device="cpu", dtype="float32")
    answer = probe.generate(QUESTION, image, **SHORT, keep={"logits", "hidden"})
    probe.generate(QUESTION, image, max_new_tokens=2, min_new_tokens=1, repetition_penalty=1.1, stop_strings=["zz"])
    probe.generate(QUESTION, image, max_new_tokens=2, num_beams=2)
    list(probe.stream(QUESTION, image, max_new_tokens=2))
    probe.sample(QUESTION, image, n=2, max_new_tokens=2)
    list(probe.generate_many([vlmprobe.Request(QUESTION, image)] * 2, batch_size=2, max_new_tokens=2))
    scores = probe.score(QUESTION, ["no", "yes, a cat"], image)
    probe.session(image).score(QUESTION, ["no", "yes, a cat"])
    if len(answer.output.top_ids):
        probe.branch(answer, 0, int(answer.output.top_ids[0][1]), question=QUESTION, image=image, **SHORT)
    contrast(probe, QUESTION, image, against=["noise"], **SHORT)
    lens(probe, QUESTION, image, answer=answer)
    probe.generate(QUESTION, image, logits_processor=[ImageContrast(probe, QUESTION, image)], **SHORT)
    adapter = probe.engine.adapter
    again = vlmprobe.wrap(adapter.model, adapter.processor).score(QUESTION, ["no", "yes, a cat"], image)
    assert again.logprobs.tolist() == scores.logprobs.tolist()


@pytest.mark.parametrize("name", [*FAMILIES, *ORIGINAL])
def test_no_call_of_ours_is_advised_against(name, checkpoint, advisories, checked):
    folder = GOLDEN / name if name in ORIGINAL else checkpoint(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        everything(folder, picture())
    assert advisories() == []


DEFAULTS = {
    "sampling": {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.8, "repetition_penalty": 1.05},
    "beams": {"num_beams": 3, "early_stopping": True, "length_penalty": 0.8},
    "lengths": {"max_length": 400, "max_new_tokens": 3, "min_length": 1},
}


@pytest.fixture
def given(checkpoint, tmp_path):
    """A checkpoint whose generation config has these defaults."""

    def make(**defaults):
        folder = shutil.copytree(checkpoint("llava"), tmp_path / "llava")
        file = folder / "generation_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **defaults}))
        return folder

    return make


@pytest.mark.parametrize("defaults", DEFAULTS.values(), ids=DEFAULTS)
def test_defaults_of_a_checkpoint_that_have_no_say_are_not_warned_of(defaults, given, advisories, checked):
    probe = vlmprobe.load(given(**defaults), device="cpu", dtype="float32")
    for options in ({}, {"num_beams": 1, "do_sample": False}, {"min_new_tokens": 2}):
        probe.generate(QUESTION, picture(), **{"max_new_tokens": 2, "seed": 1} | options)
    probe.generate(QUESTION, picture(), max_length=200, min_length=2, seed=1)
    probe.score(QUESTION, ["no", "yes, a cat"], picture())
    assert advisories() == []


def test_what_a_caller_says_against_himself_is_still_told(probe_of, advisories):
    probe_of("llava").generate(QUESTION, picture(), **SHORT, top_p=0.5)
    assert ["top_p" in each for each in advisories()] == [True]


def test_lengths_of_a_call_come_before_those_of_the_checkpoint(given, probe_of):
    """transformers would go by the checkpoint's max_new_tokens, and say so in a warning."""
    probe = vlmprobe.load(given(max_new_tokens=3, min_new_tokens=3), device="cpu", dtype="float32")
    prompt = len(probe.generate(QUESTION, picture()).input_ids)
    assert len(probe.generate(QUESTION, picture()).output) == 3
    longer = probe.generate(QUESTION, picture(), max_length=prompt + 6, min_length=prompt + 6)
    assert len(longer.output) == 6
    assert longer.finish_reason == "length"
    plain = probe_of("llava").generate(QUESTION, picture(), max_new_tokens=6, min_new_tokens=6)
    assert longer.output.ids.tolist() == plain.output.ids.tolist()


# -- that none goes unseen ---------------------------------------------------------------------


@deprecates
def test_a_deprecated_argument_would_fail_the_run(own):
    """The filters of pyproject.toml; it is a wrapper inside transformers that is blamed."""
    inputs = encode(own("llava"), chat(QUESTION, picture()))
    with pytest.raises(FutureWarning, match=OLD):
        own("llava").model(**inputs, **{OLD: None})


@deprecates
def test_an_advisory_would_be_seen(own, advisories):
    output = own("llava").model(**encode(own("llava"), chat(QUESTION, picture())))
    assert advisories() == []
    assert output[OLD] is not None
    assert [OLD in each for each in advisories()] == [True]


def warn_of(module: str, text: str = "old", category: type[Warning] = DeprecationWarning) -> None:
    """Warn as if a line of this module were to blame."""
    warnings.warn_explicit(text, category, "file.py", 1, module=module, registry={})


@pytest.mark.parametrize(
    "module",
    ["vlmprobe", "vlmprobe.probe.load", "tests.probe.test_rank", "transformers.utils.generic", "torch.nn.init"],
)
def test_a_deprecation_would_fail_the_run(module):
    for category in (DeprecationWarning, FutureWarning):
        with pytest.raises(category, match="old"):
            warn_of(module, category=category)


def test_what_other_libraries_do_among_themselves_does_not():
    with pytest.warns(DeprecationWarning, match="old"):
        warn_of("nbclient.client")
    copy = "__array__ implementation doesn't accept a copy keyword, so passing copy=False failed."
    warn_of("transformers.models.paligemma.processing_paligemma", copy)
    with pytest.raises(DeprecationWarning):
        warn_of("vlmprobe.inputs.images", copy)
