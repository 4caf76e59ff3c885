"""What the tests of the core share: tiny checkpoints, probes of them, and the same models loaded without vlmprobe."""

from __future__ import annotations

import signal
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

FAMILIES = (
    "mllama",
    "internvl",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "llava",
    "llava_next",
    "llava_onevision",
    "idefics3",
    "smolvlm",
    "gemma3",
    "gemma3n",
    "gemma4",
    "paligemma",
    "aya_vision",
    "cohere2_vision",
    "cohere_compass",
    "mistral3",
    "granite4_vision",
    "minicpmv4_6",
    "minicpmv4_7",
)
QUESTION = "What animal is this? Describe the picture."


def pytest_configure():
    """Let Ctrl-C be heard: a shell starts what it runs in the background, and so all children of that, deaf to it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def families() -> list:
    """The architectures that the core is tested on, those that the installed packages lack marked as skipped."""
    from vlmprobe.testing import tiny

    missing = {"gemma3n": "timm"}
    return [
        pytest.param(name, marks=pytest.mark.skip(f"needs {missing[name]}"))
        if name in missing and find_spec(missing[name]) is None
        else name
        for name in FAMILIES
        if name in missing or name in tiny.names()
    ]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models are slower on several, and tests may run beside each other
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def no_checks_on_loading():
    """A checkpoint that is loaded for the first time is checked; what tests load has tests of its own for that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLMPROBE_CHECK", "0")
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Name of a family -> folder of its tiny checkpoint."""
    from vlmprobe.testing import tiny

    return cache(lambda name: tiny.build(name, tmp_path_factory.mktemp("tiny") / name))


@pytest.fixture(scope="session")
def probe_of(checkpoint):
    """Name of a family -> probe of its tiny checkpoint, in float32 on the CPU."""
    import vlmprobe

    return cache(lambda name: vlmprobe.load(checkpoint(name), device="cpu", dtype="float32"))


@pytest.fixture(scope="session")
def own(checkpoint):
    """Name of a family -> the same model and processor as transformers loads them, nothing of vlmprobe around."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    @cache
    def load(name: str) -> SimpleNamespace:
        folder = checkpoint(name)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
        return SimpleNamespace(name=name, model=model, processor=AutoProcessor.from_pretrained(folder))

    return load


def picture(seed: int = 1, width: int = 48, height: int = 40) -> Image.Image:
    """A picture of coloured patches."""
    patches = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST)
