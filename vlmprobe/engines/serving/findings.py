"""One finding about a server: a thing that it does or does not do, and the remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "State"]

State = Literal["yes", "no", "unknown"]


@dataclass(frozen=True)
class Finding:
    """One thing that a server does or does not do."""

    name: str
    state: State
    detail: str = ""  # what was observed, or why not
    remedy: str = ""  # how to start the server instead
    needed: bool = False  # a probe is useless without it
