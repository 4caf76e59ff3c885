"""Opens the model of a command: loads a checkpoint or connects to a server."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from vlmprobe.cli import options
from vlmprobe.cli.terminal import working, wrong_usage
from vlmprobe.demo import BUNDLED
from vlmprobe.errors import CheckpointNotFoundError, UnknownModelError, VlmprobeError

if TYPE_CHECKING:
    from vlmprobe.probe import Probe

__all__ = ["checkpoint_engine", "is_server", "open_model", "open_probe", "open_server", "require_checkpoint", "served"]


ADDRESS = re.compile(r"[\w.-]+:\d+(/.*)?")  # of a server, without its scheme
SEVERAL = re.compile(r",\s*(?=https?://)", re.IGNORECASE)  # between servers


def is_server(model: str) -> bool:
    """Whether a model is given by the URL of its server."""
    return model.lower().startswith(("http://", "https://"))


def open_model(
    model: str,
    *,
    device: str,
    dtype: str,
    adapter: str | None,
    revision: str | None,
    ignore_weights: list[str] | None,
    engine: str | None,
    engine_option: list[str] | None,
    served_model: str | None,
    processor: str | None,
    prompt: Mapping[str, Any],
) -> Probe:
    """A probe of the checkpoint or server that a command line names; ``prompt`` holds the options of its prompts.

    Raises:
        typer.BadParameter: for a checkpoint option with a server, or vice versa.
    """
    loading = {
        "--device": None if device == "auto" else device,
        "--dtype": None if dtype == "auto" else dtype,
        "--adapter": adapter,
        "--revision": revision,
        "--ignore-weights": ", ".join(ignore_weights or ()) or None,
    }
    if is_server(model):
        if given := _given(loading | {"--engine-option": ", ".join(engine_option or ()) or None}):
            raise typer.BadParameter("MODEL is a server, which has loaded its model", param_hint=given)
        urls = SEVERAL.split(model)
        return open_server(
            urls if len(urls) > 1 else model, engine=engine or "auto", model=served_model, processor=processor, **prompt
        )
    if ADDRESS.fullmatch(model) and not os.path.exists(model):
        raise typer.BadParameter(f"there is no folder {model}; a server is http://{model}", param_hint="'MODEL'")
    chosen = {"device": device, "dtype": dtype, "adapter": adapter, "revision": revision}
    engine_arguments = checkpoint_engine(model, engine, engine_option, served_model, processor)
    return open_probe(model, **chosen, ignore_weights=ignore_weights or (), **engine_arguments, **prompt)


def checkpoint_engine(
    model: str, engine: str | None, engine_option: list[str] | None, served_model: str | None, processor: str | None
) -> dict[str, Any]:
    """Arguments of ``vlmprobe.load`` for the engine that runs a checkpoint; empty for transformers.

    Raises:
        typer.BadParameter: for options of a server, or options of an engine without its name.
    """
    if given := _given({"--served-model": served_model, "--processor": processor}):
        raise typer.BadParameter(f"{model} is not the URL of a server (http://...)", param_hint=given)
    if engine is None:
        if engine_option:
            raise typer.BadParameter("name the engine with --engine", param_hint="'--engine-option'")
        return {}
    return {"engine": engine, **options.engine_options(engine_option)}


def require_checkpoint(model: str) -> None:
    """Wrong usage for a folder that is no checkpoint and a name that is no hub id; the network is not asked."""
    from vlmprobe.model_registry.registry import read_config

    path = os.path.expanduser(model)
    if model not in BUNDLED and (os.path.exists(path) or model.count("/") != 1 or model.startswith((".", "/", "~"))):
        with wrong_usage():
            read_config(path)


def open_probe(model: str, **load: Any) -> Probe:
    """Load the model, with a status line in a terminal; downloads from the hub show their own progress bars."""
    from vlmprobe import load as load_probe

    is_local = model in BUNDLED or os.path.exists(os.path.expanduser(model))
    with working(f"Loading {model}", spin=is_local):
        require_checkpoint(model)
        with wrong_usage():
            _check_choices(load.get("adapter"), load.get("device", "auto"), load.get("dtype", "auto"))
        _no_bars(except_downloads=not is_local and sys.stderr.isatty())
        return load_probe(model, **load)


def open_server(url: str | list[str], **how: Any) -> Probe:
    """Connect to a server or several, with a status line in a terminal.

    The API key is read from ``VLMPROBE_API_KEY``.
    """
    from vlmprobe import connect

    with working(f"Connecting to {url if isinstance(url, str) else ', '.join(url)}"), served():
        return connect(url, **how)


@contextmanager
def served() -> Iterator[None]:
    """What a server lacks, such as a model of that name, is a failure and not wrong usage."""
    try:
        yield
    except UnknownModelError as error:
        if isinstance(error, CheckpointNotFoundError):  # that of its processor
            raise
        raise VlmprobeError(str(error)) from error


def _check_choices(adapter: str | None, device: str, dtype: str) -> None:
    from vlmprobe.model_registry.registry import require_adapter
    from vlmprobe.probe.load import resolved_device, resolved_dtype

    if adapter is not None:
        require_adapter(adapter)
    resolved_device(device)
    resolved_dtype(dtype)


def _given(named: dict[str, str | None]) -> str:
    return ", ".join(f"'{name}'" for name, value in named.items() if value is not None)


def _no_bars(*, except_downloads: bool) -> None:
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()  # this also disables those of the hub
    if except_downloads and os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") is None:
        enable_progress_bars()
