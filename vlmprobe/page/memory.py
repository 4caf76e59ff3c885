"""What the server holds between requests, the most recent of each kind: images, and results to be shared."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from typing import Any, Generic, TypeVar

from PIL.Image import Image

from vlmprobe.errors import VlmprobeError
from vlmprobe.inputs.images import digest

__all__ = ["GoneError", "Images", "Recent", "Results"]

IMAGE_BYTES = 512 * 1024**2  # of pixels; one image may have more
RESULTS = 64
Held = TypeVar("Held")


class GoneError(VlmprobeError, LookupError):
    """The server no longer holds what a request names; the browser can send it again, or ask again."""


class Recent(Generic[Held]):
    """Things by their keys; those not asked for the longest are dropped. Thread-safe."""

    def __init__(self, most: int, what: str) -> None:
        """``most`` is the greatest sum of the sizes of all; ``what`` they are, for errors."""
        self.most, self.what = most, what
        self._held: OrderedDict[str, tuple[Held, int]] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, key: str, thing: Held, size: int = 1) -> str:
        """Hold a thing, and as many of the others as fit beside it. Returns its key."""
        with self._lock:
            self._held[key] = thing, size
            self._held.move_to_end(key)
            while len(self._held) > 1 and sum(each for _, each in self._held.values()) > self.most:
                self._held.popitem(last=False)
        return key

    def __getitem__(self, key: str) -> Held:
        with self._lock:
            if key not in self._held:
                raise GoneError(f"The server no longer holds {self.what}: send it again.")
            self._held.move_to_end(key)
            return self._held[key][0]

    def __len__(self) -> int:
        return len(self._held)


class Images(Recent[Image]):
    """Images that were sent, by their digests."""

    def __init__(self) -> None:
        super().__init__(IMAGE_BYTES, "this image")

    def add(self, image: Image) -> str:
        """Hold an RGB image. Returns its key."""
        return self.keep(digest(image), image, image.width * image.height * 3)


class Results(Recent[Any]):
    """Results that the browser shows, to be written as a report."""

    def __init__(self) -> None:
        super().__init__(RESULTS, "this answer")

    def add(self, result: Any) -> str:
        """Hold a result. Returns its key."""
        return self.keep(secrets.token_urlsafe(9), result)
