"""While a model is loaded transformers shows nothing, unless asked; afterwards its settings are what they were."""

from __future__ import annotations

import logging as python_logging

import pytest
from transformers.utils import logging

import vlmprobe
from vlmprobe.adapter.quiet import quiet


@pytest.fixture(autouse=True)
def defaults(monkeypatch):
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    verbosity, hook, bars = logging.get_verbosity(), logging.set_tqdm_hook(None), logging.is_progress_bar_enabled()
    logging.set_verbosity_warning()
    logging.enable_progress_bar()
    yield
    logging.set_verbosity(verbosity)
    logging.set_tqdm_hook(hook)
    (logging.enable_progress_bar if bars else logging.disable_progress_bar)()


def told(capsys) -> str:
    """What a bar and an advisory of transformers write now."""
    capsys.readouterr()
    list(logging.tqdm(range(3), desc="Loading weights"))
    logger = logging.get_logger("transformers.somewhere")
    return capsys.readouterr().err + ("advisory" if logger.isEnabledFor(python_logging.WARNING) else "")


def test_loading_shows_nothing_and_changes_nothing(checkpoint, capfd):
    vlmprobe.load(checkpoint("llava"), device="cpu", dtype="float32", check=False)
    assert capfd.readouterr().err == ""
    list(logging.tqdm(range(3), desc="Loading weights"))
    assert "Loading weights" in capfd.readouterr().err
    assert logging.get_verbosity() == logging.WARNING
    assert logging.set_tqdm_hook(None) is None


def test_a_failed_load_restores_too(capsys):
    def fail():
        with quiet():
            assert told(capsys) == ""
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "Loading weights" in (text := told(capsys))
    assert "advisory" in text


@pytest.mark.parametrize("first_ends_first", [True, False])
def test_two_loads_at_once(capsys, first_ends_first):
    first, second = quiet(), quiet()
    first.__enter__()
    second.__enter__()
    for each in (first, second) if first_ends_first else (second, first):
        each.__exit__(None, None, None)
    assert "Loading weights" in (text := told(capsys))
    assert "advisory" in text


def test_who_asked_is_told(capsys, monkeypatch):
    logging.set_verbosity_info()
    with quiet():
        assert "Loading weights" in told(capsys)
    assert logging.get_verbosity() == logging.INFO
    logging.set_verbosity_warning()
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "warning")
    with quiet():
        assert "advisory" in told(capsys)
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY")
    seen = []

    def hook(bar, args, options):
        seen.append(options["desc"])
        return bar(*args, **options)

    logging.set_tqdm_hook(hook)
    with quiet():
        told(capsys)
    assert seen == ["Loading weights"]
    assert logging.set_tqdm_hook(None) is hook
