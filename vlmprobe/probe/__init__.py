"""The API: ``Probe`` and ``Session``, the functions that open one, and the implementations of their methods."""

from vlmprobe.probe.probe import Probe, Session
from vlmprobe.probe.request import Request

__all__ = ["Probe", "Request", "Session"]
