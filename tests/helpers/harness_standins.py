"""Stand-ins for what vlmprobe's harness modules import from lm-eval and lmms-eval, which the tested set does not hold.

They are no harness: a base class, a registry and a request each, after their documentation. Where a harness is
installed, every test that takes a stand-in runs with the real thing as well, and the requests are compared.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import vlmprobe.harness

__all__ = ["HARNESSES", "harness"]

HARNESSES = ("stand-in", "real")


class Hook:
    """Keeps what a model hands over as it goes on."""

    def __init__(self, _: Any = None) -> None:
        self.kept: list[tuple[str, Any, Any]] = []

    def add_partial(self, attr: str, request: Any, result: Any) -> None:
        self.kept.append((attr, request, result))


class Base:
    """Of models, in both harnesses."""

    is_simple = True

    def __init__(self) -> None:
        self.cache_hook = Hook()
        self.task_dict: dict[str, Any] = {}


@dataclass
class Instance:
    """A request, in both harnesses: arguments, and of what task and document it is."""

    request_type: str
    arguments: tuple[Any, ...]
    task_name: str = "task"
    doc_id: int = 0
    args: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.args = self.arguments


@dataclass
class GenerationResult:
    """What a model of lmms-eval returns."""

    text: Any
    token_counts: Any = None


@dataclass
class ModelManifest:
    """What an entry point of lmms-eval gives."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None


def lm_eval_modules(registered: dict[str, type]) -> dict[str, dict[str, Any]]:
    def register_model(name: str) -> Any:
        return lambda kind: registered.setdefault(name, kind)

    return {
        "lm_eval": {},
        "lm_eval.models": {},
        "lm_eval.api": {},
        "lm_eval.api.model": {"LM": Base},
        "lm_eval.api.registry": {"register_model": register_model},
    }


LMMS_EVAL_MODULES: dict[str, dict[str, Any]] = {
    "lmms_eval": {},
    "lmms_eval.api": {},
    "lmms_eval.api.instance": {"GenerationResult": GenerationResult},
    "lmms_eval.api.model": {"lmms": Base},
    "lmms_eval.models": {},
    "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
}


@contextmanager
def harness(name: str, kind: str) -> Iterator[SimpleNamespace]:
    """``module`` of vlmprobe, ``request(...)`` that makes a request, and ``registered`` of a stand-in.

    Args:
        name: ``lm_eval`` or ``lmms_eval``.
        kind: one of :data:`HARNESSES`; ``real`` skips the test where it is not installed.
    """
    ours = f"vlmprobe.harness.{name}"
    if kind == "real":
        pytest.importorskip(name)
        yield SimpleNamespace(module=importlib.import_module(ours), request=globals()[f"real_{name}"], registered=None)
        return
    registered: dict[str, type] = {}
    parts = lm_eval_modules(registered) if name == "lm_eval" else LMMS_EVAL_MODULES
    with pytest.MonkeyPatch.context() as patch:
        for each in [known for known in sys.modules if f"{known}.".startswith((f"{name}.", f"{ours}."))]:
            patch.delitem(sys.modules, each)
        for each, names in parts.items():
            module = ModuleType(each)
            vars(module).update(names)
            patch.setitem(sys.modules, each, module)
            above, _, last = each.rpartition(".")
            if above:
                setattr(sys.modules[above], last, module)
        patch.setitem(sys.modules, ours, None)  # taken out again, or the real one put back, at the end
        del sys.modules[ours]
        patch.setattr(vlmprobe.harness, name, None, raising=False)
        yield SimpleNamespace(module=importlib.import_module(ours), request=Instance, registered=registered)


def real_lm_eval(request_type: str, arguments: tuple[Any, ...], task_name: str = "task", doc_id: int = 0) -> Any:
    from lm_eval.api.instance import Instance as Real

    return Real(request_type, {}, arguments, 0, metadata=(task_name, doc_id, 1))


def real_lmms_eval(request_type: str, arguments: tuple[Any, ...], task_name: str = "task", doc_id: int = 0) -> Any:
    from lmms_eval.api.instance import Instance as Real

    return Real(request_type, arguments, 0, metadata={"task": task_name, "doc_id": doc_id, "repeats": 1})
