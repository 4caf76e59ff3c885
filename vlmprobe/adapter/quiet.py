"""transformers without its progress bars and advisories, while vlmprobe loads or saves a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the progress bars of transformers, and what it logs below an error; afterwards all is as before.

    The bars of downloads stay. Nothing is hidden from a user who asked transformers to be told: by the environment
    variable ``TRANSFORMERS_VERBOSITY``, a verbosity of info or debug, or a hook for its bars.
    """
    from transformers.utils import logging

    if os.environ.get("TRANSFORMERS_VERBOSITY") or logging.get_verbosity() < logging.WARNING:
        yield
        return
    # Another thread may be in here too: the first to enter is the one that restores.
    hook = logging.set_tqdm_hook(_hidden)
    if hook is not None:
        logging.set_tqdm_hook(hook)
    if warned := logging.get_verbosity() == logging.WARNING:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        if hook is None:
            logging.set_tqdm_hook(None)
        if warned:
            logging.set_verbosity_warning()


def _hidden(bar: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return bar(*args, **{**options, "disable": True})
