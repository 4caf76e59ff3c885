"""Errors of vlmprobe: each says what is wrong and what to do about it.

Every error derives from :class:`VlmprobeError` and, where Python has a built-in of the same meaning,
from that too, so ``except ValueError`` and ``except FileNotFoundError`` keep working.
"""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires

from vlmprobe._version import DISTRIBUTION

__all__ = [
    "AdapterError",
    "CapabilityError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "EngineConnectionError",
    "EngineError",
    "EngineResponseError",
    "EngineTimeoutError",
    "GenerationOptionError",
    "HubError",
    "ImageError",
    "MessageError",
    "MissingExtraError",
    "NonFiniteLogitsError",
    "RemoteCodeError",
    "ResultError",
    "RunError",
    "UnknownModelError",
    "VlmprobeError",
    "VlmprobeWarning",
    "near",
    "outside",
    "renamed",
]


class VlmprobeError(Exception):
    """Base of every error that vlmprobe raises on purpose."""


class VlmprobeWarning(UserWarning):
    """Something is wrong, but the call can continue; the message says what, and what to do."""


class ImageError(VlmprobeError, ValueError):
    """An image cannot be read, or must not be (too large, hostile, not an image)."""


class MessageError(VlmprobeError, ValueError):
    """A prompt or chat message has a wrong role, part or shape."""


class GenerationOptionError(VlmprobeError, ValueError):
    """A generation option is unknown, invalid, or not supported by a probe."""


class UnknownModelError(VlmprobeError, LookupError):
    """No adapter handles the checkpoint, or there is no checkpoint at the given place."""


class CheckpointNotFoundError(UnknownModelError, FileNotFoundError):
    """There is no folder at the given path, and it is not a hub id either."""


class HubError(UnknownModelError, OSError):
    """The hub did not return a checkpoint: it cannot be reached, or wants a login."""


class RemoteCodeError(UnknownModelError):
    """The checkpoint requires running its own code, which vlmprobe never does."""


class CheckpointError(VlmprobeError, ValueError):
    """A checkpoint is incomplete, damaged, or of an unsupported version."""


class AdapterError(VlmprobeError, RuntimeError):
    """An adapter breaks its contract, or two adapters claim one checkpoint."""


class CapabilityError(VlmprobeError, ValueError):
    """The model or engine cannot do what was requested; the message names what can."""


class NonFiniteLogitsError(VlmprobeError, ArithmeticError):
    """The model returned NaN or infinite logits where a distribution was expected."""


class ResultError(VlmprobeError, ValueError):
    """A saved result cannot be read, or an operation does not fit the result."""


class RunError(VlmprobeError, RuntimeError):
    """A run over a data set cannot begin in its folder, or cannot go on.

    Attributes:
        begun: whether it had begun, so that the same call again goes on.
    """

    begun = False


class EngineError(VlmprobeError, RuntimeError):
    """A serving engine refused a request, or failed on it.

    Attributes:
        status: the HTTP status of its reply, if there was one.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class EngineConnectionError(EngineError, ConnectionError):
    """A serving engine cannot be reached, or dropped the connection."""


class EngineTimeoutError(EngineError, TimeoutError):
    """A serving engine did not answer in time."""


class EngineResponseError(EngineError, ValueError):
    """A serving engine returned an invalid reply: no JSON, wrong lengths, impossible ids or numbers."""


class MissingExtraError(VlmprobeError, ImportError):
    """An optional dependency is needed and not installed; the message names the packages to install."""

    def __init__(self, package: str, extra: str) -> None:
        packages = " ".join(f"'{each}'" for each in _packages(extra) or [package])
        super().__init__(f"{package} is needed here; install it with: pip install {packages}")


def _packages(extra: str) -> list[str]:
    """Requirements of an extra of the installed distribution, such as ``scikit-learn>=1.5``; none without metadata."""
    try:
        declared = requires(DISTRIBUTION) or []
    except PackageNotFoundError:  # run from a source folder
        return []
    halves = (each.partition(";") for each in declared)
    return [package.strip() for package, _, marker in halves if marker.strip() == f'extra == "{extra}"']


def near(word: str, known: Iterable[str], *, most: int = 3, cutoff: float = 0.7) -> str:
    """``" Did you mean a, b?"`` for the known words nearest to ``word``, or an empty string."""
    found = difflib.get_close_matches(word, list(known), n=most, cutoff=cutoff)
    return f" Did you mean {', '.join(found)}?" if found else ""


def renamed(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn that a name is accepted until 1.0 in place of its new one; ``stacklevel`` as in :func:`warnings.warn`."""
    warnings.warn(f"{old} is now {new}; vlmprobe 1.0 removes the old name.", DeprecationWarning, stacklevel=stacklevel)


def outside() -> int:
    """``stacklevel`` of a warning, for whoever calls this, that names the line that called vlmprobe.

    It is the caller of the outermost frame of the package: between the two may be pandas, reading a generator of ours.
    """
    frame, level, found = inspect.currentframe(), 0, 1
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] == __name__.partition(".")[0]:
            found = level + 1
        frame, level = frame.f_back, level + 1
    return found
