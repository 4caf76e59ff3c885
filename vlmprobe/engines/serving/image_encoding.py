"""Encodes images for requests: the original JPEG or PNG if it decodes to the same pixels, else a lossless PNG."""

from __future__ import annotations

import asyncio
import base64
import io

from vlmprobe.inputs.messages import ImagePart

__all__ = ["base64_of", "data_url"]

SMALL = 2**20  # bytes of a file that are encoded in less than 2 ms


async def base64_of(part: ImagePart) -> str:
    """The file of an image in base64."""
    return (await _packed(part))[1]


async def data_url(part: ImagePart) -> str:
    """The image as a ``data:`` URL."""
    kind, content = await _packed(part)
    return f"data:{kind};base64,{content}"


async def _packed(part: ImagePart) -> tuple[str, str]:
    """Media type and base64; encoded in a thread if it would block other requests."""
    small = part.encoded is not None and len(part.encoded) <= SMALL
    return _pack(part) if small else await asyncio.to_thread(_pack, part)


def _pack(part: ImagePart) -> tuple[str, str]:
    kind, content = "image/png", part.encoded
    if content is None:
        file = io.BytesIO()
        # Local networks are fast, and compression takes most of the time.
        part.image.save(file, "PNG", compress_level=1)
        content = file.getvalue()
    elif content.startswith(b"\xff\xd8\xff"):
        kind = "image/jpeg"
    return kind, base64.b64encode(content).decode("ascii")
