"""What the tests of the core share: tiny checkpoints, probes of them, and the same models loaded without vlmprobe."""

from __future__ import annotations

import signal
from functools import cache
from types import SimpleNamespace

import pytest


def pytest_configure():
    """Let Ctrl-C be heard: a shell starts what it runs in the background, and so all children of that, deaf to it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Here and in what tests start, such as kernels of notebooks: several that spin for two cores take four times as
    long, and tiny models gain nothing by a second thread.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
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


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium, new for each module of tests, with a console that is kept."""
    from real_browser import open_browser

    opened = open_browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.quit()
