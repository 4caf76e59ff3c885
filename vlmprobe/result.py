"""The former place of :mod:`vlmprobe.results.result` and :mod:`vlmprobe.results.files`; it stays until 1.0."""

from vlmprobe.results.files import load_result
from vlmprobe.results.result import Result, Scores

__all__ = ["Result", "Scores", "load_result"]
