"""vlmprobe: generation logits, prompt logits and per-token confidence of any vision-language model, through one API.

>>> import vlmprobe
>>> probe = vlmprobe.load("demo")
>>> result = probe.generate("What is in the picture?", image="scene.png")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlmprobe._version import __version__

if TYPE_CHECKING:
    from vlmprobe.analysis.show import show, widget
    from vlmprobe.errors import VlmprobeError
    from vlmprobe.inputs.prompt_format import PromptOptions
    from vlmprobe.probe import Probe, Request
    from vlmprobe.probe.connect import connect
    from vlmprobe.probe.load import load, wrap
    from vlmprobe.results.failure import Failure
    from vlmprobe.results.files import load_result, load_results, save_results
    from vlmprobe.results.result import Result, Scores
    from vlmprobe.results.table import TokenTable
    from vlmprobe.runs import open_run, run

__all__ = [
    "Failure",
    "Probe",
    "PromptOptions",
    "Request",
    "Result",
    "Scores",
    "TokenTable",
    "VlmprobeError",
    "__version__",
    "connect",
    "load",
    "load_result",
    "load_results",
    "open_run",
    "run",
    "save_results",
    "show",
    "widget",
    "wrap",
]

_ROOMS = {
    "Failure": "vlmprobe.results.failure",
    "Probe": "vlmprobe.probe",
    "PromptOptions": "vlmprobe.inputs.prompt_format",
    "Request": "vlmprobe.probe",
    "connect": "vlmprobe.probe.connect",
    "load": "vlmprobe.probe.load",
    "wrap": "vlmprobe.probe.load",
    "Result": "vlmprobe.results.result",
    "Scores": "vlmprobe.results.result",
    "load_result": "vlmprobe.results.files",
    "load_results": "vlmprobe.results.files",
    "save_results": "vlmprobe.results.files",
    "run": "vlmprobe.runs",
    "open_run": "vlmprobe.runs",
    "TokenTable": "vlmprobe.results.table",
    "show": "vlmprobe.analysis.show",
    "widget": "vlmprobe.analysis.show",
    "VlmprobeError": "vlmprobe.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'vlmprobe' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_ROOMS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})
