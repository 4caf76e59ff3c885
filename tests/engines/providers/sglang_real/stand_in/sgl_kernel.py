"""Stands in for SGLang's kernels, whose only wheel is for CUDA: every name is there, and a call of any is an error.

SGLang imports them at its start whatever the device. In float32, with attention and sampling by PyTorch, it calls none.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

__path__: list[str] = []  # a package, of which every submodule is there too


class Kernel:
    """A kernel that is not there, or one of the names beside them (``scalar_types.uint4b8``)."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> Kernel:
        if name.startswith("__"):
            raise AttributeError(name)
        return Kernel(f"{self.name}.{name}")

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"SGLang called its kernel {self.name}, for which only a name stands here.")


def __getattr__(name: str) -> Kernel:
    if name.startswith("__"):
        raise AttributeError(name)
    return Kernel(name)


class Submodules(MetaPathFinder, Loader):
    """Finds ``sgl_kernel.anything``."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.startswith("sgl_kernel.") else None

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = __getattr__  # type: ignore[method-assign]


class Operators(ModuleType):
    """``torch.ops.sgl_kernel``: those for a CPU are looked up at import, the others only if they are there."""

    def __getattr__(self, name: str) -> Kernel:
        if not name.endswith("_cpu"):
            raise AttributeError(name)
        return Kernel(name)


sys.meta_path.append(Submodules())
torch.ops.sgl_kernel = Operators("sgl_kernel")
