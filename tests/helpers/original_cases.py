"""Reference cases: tiny random checkpoints in an original format, and what the original code computes on them."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from common import GOLDEN
from safetensors.torch import load_file

GREEDY = {"max_new_tokens": 8, "do_sample": False, "num_beams": 1, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class Scenario:
    """One conversation of a case."""

    case: str
    name: str

    def __str__(self) -> str:
        return f"{self.case}-{self.name}"

    @property
    def told(self) -> dict[str, Any]:
        return told(self.case)[self.name]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Chat messages with paths of images that hold wherever the tests run."""
        messages = copy.deepcopy(self.told["messages"])
        for part in (part for message in messages for part in message["content"] if part["type"] == "image"):
            part["path"] = str(GOLDEN / self.case / part["path"])
        return messages

    def tensor(self, name: str) -> Any:
        """A tensor of the original, or None where the case holds none of this name."""
        return tensors(self.case).get(f"{self.name}.{name}")


@cache
def told(case: str) -> dict[str, Any]:
    return json.loads((GOLDEN / case / "golden.json").read_text(encoding="utf-8"))


@cache
def tensors(case: str) -> dict[str, Any]:
    return load_file(GOLDEN / case / "golden.safetensors")


def scenarios(*cases: str) -> list[Scenario]:
    return [Scenario(case, name) for case in cases for name in told(case)]


def config(case: str | Path) -> dict[str, Any]:
    return json.loads((GOLDEN / case / "config.json").read_text(encoding="utf-8"))
