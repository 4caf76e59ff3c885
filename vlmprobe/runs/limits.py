"""When a run must end: the model does not work any more, too many rows fail, or someone wants it to stop."""

from __future__ import annotations

import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from vlmprobe.errors import (
    CapabilityError,
    EngineConnectionError,
    EngineTimeoutError,
    GenerationOptionError,
    ImageError,
    MessageError,
    RunError,
)

__all__ = ["Failures", "Stop", "Terminated", "share_of", "stoppable"]

OF_THE_ROW = (ImageError, MessageError, CapabilityError, GenerationOptionError)
UNREACHED = (EngineConnectionError, EngineTimeoutError)  # not recorded: nothing was wrong with the row
IN_A_ROW = 10
ENOUGH = 200  # rows, from which on a share of failed ones says something
CUDA = re.compile(r"CUDA error|device-side assert|CUDNN_STATUS|HIP error")


class Failures:
    """Counts failed rows, and ends the run where going on makes no sense."""

    def __init__(self, most: float | None, device: Any = None) -> None:
        self.most = most  # share of failed rows
        self.device = device
        self.asked = self.failed = 0
        self._in_a_row = 0

    def answered(self) -> None:
        """A row was answered."""
        self.asked += 1
        self._in_a_row = 0

    def recorded(self, error: Exception) -> bool:
        """Count a failed row; whether its failure is recorded, and so not asked again."""
        self.asked += 1
        self.failed += 1
        if not isinstance(error, OF_THE_ROW):
            self._in_a_row += 1
        return not isinstance(error, UNREACHED)

    def counted(self, asked: int, failed: int) -> None:
        """Count rows that were asked elsewhere.

        Raises:
            RunError: if too many fail.
        """
        self.asked += asked
        self.failed += failed
        self._require_share("")

    def _require_share(self, last: str) -> None:
        if self.most is not None and self.asked >= ENOUGH and self.failed > self.most * self.asked:
            raise RunError(f"{self.failed} of {self.asked} rows failed, more than {self.most:.1%}{last}")

    def require_working(self, error: Exception) -> None:
        """Called after a failed row was recorded.

        Raises:
            RunError: if the run must end.
        """
        told = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        if CUDA.search(str(error)) and not _device_works(self.device):
            raise RunError(f"the device does not work any more ({told})")
        if self._in_a_row >= IN_A_ROW:
            raise RunError(f"{IN_A_ROW} rows in a row failed, the last one with {told}")
        self._require_share(f", the last one with {told}")


def share_of(given: Any) -> float | None:
    """A share from ``"5%"`` or 0.05.

    Raises:
        GenerationOptionError: for anything else.
    """
    if given is None:
        return None
    text = str(given).strip()
    try:
        found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        found = -1
    if isinstance(given, bool) or not 0 <= found <= 1:
        raise GenerationOptionError(f"the largest share of failed rows is written 5% or 0.05, not {given!r}")
    return found


class Terminated(BaseException):
    """SIGTERM: what is finished is written, and the process ends."""


class Stop:
    """Whether someone wants the run to stop."""

    def __init__(self) -> None:
        self.asked = False
        self.closing = False  # what is finished is being written: no signal ends that
        self.on_first: Any = None  # called once


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Ctrl-C once asks to stop, a second time raises KeyboardInterrupt; SIGTERM raises :class:`Terminated`.

    In another thread than the main one, signals are left as they are.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def interrupted(number: int, frame: FrameType | None) -> None:
        if stop.closing:
            return
        if stop.asked:
            signal.default_int_handler(number, frame)
        stop.asked = True
        if stop.on_first is not None:
            stop.on_first()

    def terminated(number: int, frame: FrameType | None) -> None:
        if not stop.closing:
            raise Terminated

    wanted = {signal.SIGINT: interrupted, signal.SIGTERM: terminated}
    before = {number: signal.getsignal(number) for number in wanted}
    ours = [number for number, handler in before.items() if handler not in (None, signal.SIG_IGN)]  # as nohup sets it
    for number in ours:
        signal.signal(number, wanted[number])
    try:
        yield stop
    finally:
        for number in ours:
            signal.signal(number, before[number])


def _device_works(device: Any) -> bool:
    torch = sys.modules.get("torch")
    if torch is None or device is None:
        return True
    try:
        return bool((torch.ones(1, device=device) + 1).cpu() == 2)
    except Exception:  # noqa: BLE001 - whatever a broken device raises
        return False
