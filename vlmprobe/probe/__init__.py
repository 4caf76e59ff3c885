"""The one API: ``Probe`` and ``Session``, how one is made, and the bodies of their methods."""

from vlmprobe.probe.probe import Probe, Session
from vlmprobe.probe.request import Request

__all__ = ["Probe", "Request", "Session"]
