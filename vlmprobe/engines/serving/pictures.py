"""Pictures on the wire: the original JPEG or PNG where it decodes to the very pixels, else a lossless PNG."""

from __future__ import annotations

import base64
import io

from vlmprobe.messages import ImagePart

__all__ = ["data_url", "encoded"]


def encoded(part: ImagePart) -> tuple[str, bytes]:
    """Media type and bytes of a picture."""
    original = part.encoded
    if original is not None:
        return ("image/jpeg" if original.startswith(b"\xff\xd8\xff") else "image/png"), original
    file = io.BytesIO()
    part.image.save(file, "PNG", compress_level=1)  # local networks are quick, and compression is most of the time
    return "image/png", file.getvalue()


def data_url(part: ImagePart) -> str:
    """The picture as a ``data:`` URL."""
    kind, content = encoded(part)
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
