"""Load an image from a path, URL, open file, bytes, Pillow image or array.

Files, URLs and bytes are untrusted: formats are limited to those that Pillow decodes itself (none that starts
another program, such as PostScript), sizes are checked in the header before anything is decoded, and any exception
that a hostile file triggers in a decoder is raised as an :class:`~vlmprobe.errors.ImageError`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import inspect
import io
import itertools
import os
import re
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeGuard
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from vlmprobe.errors import ImageError, near
from vlmprobe.inputs import pixels
from vlmprobe.inputs.limits import DEFAULT_LIMITS, Limits, mark, require_held, require_pixels

if TYPE_CHECKING:
    import torch

__all__ = [
    "DEFAULT_LIMITS",
    "THUMBNAIL",
    "ImageNotFoundError",
    "ImageSource",
    "Limits",
    "data_uri",
    "digest",
    "is_encoded",
    "is_file",
    "load_encoded",
    "load_image",
    "thumbnail",
]

THUMBNAIL = 512  # longer side, in pixels, of the images that a result keeps for display

ImageSource: TypeAlias = (
    "str | os.PathLike[str] | IO[bytes] | bytes | bytearray | memoryview | Image.Image | np.ndarray | torch.Tensor"
    " | Mapping[str, Any]"
)

# Only formats that Pillow decodes in process. JPEG includes its multi-picture variant (MPO).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
READABLE = "PNG, JPEG, WebP, GIF, BMP, TIFF, PPM or AVIF"
MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"BM")
SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://|(data|file):", re.IGNORECASE)
BASE64 = re.compile(r"[A-Za-z0-9+/\r\n]{40,}={0,2}\s*")
ORIENTATION = 0x0112  # EXIF tag of the image orientation
PNG_DEPTH = 24  # byte offset of the bit depth in a PNG file
COMPARED = 2**24  # bytes of an image that is kept to be compared with the next one
_DIGESTED = ((0, 0), b"", "")  # size and pixels of an image, and its digest
LAZY = threading.Lock()  # open files, and Pillow's lazily opened images, share one position between threads


class ImageNotFoundError(ImageError, FileNotFoundError):
    """There is no file at the given path."""


def load_image(source: ImageSource, limits: Limits = DEFAULT_LIMITS) -> Image.Image:
    """Load an image, upright and in RGB.

    Args:
        source: a path, an ``http(s)`` URL, a base64 ``data:`` URL, the bytes of a file, a file open for reading bytes
            (also ``io.BytesIO``), ``{"bytes": ..., "path": ...}`` as ``datasets`` stores an image (its bytes, or the
            file of that path if they are None), a Pillow image (its current frame), or a NumPy array or torch tensor as
            :func:`vlmprobe.inputs.pixels.from_array` accepts them; if a shape such as [3, W, 3] fits both layouts,
            tensors are channels first and arrays channels last. An open file is read from its beginning, as Pillow
            does, and its position is restored. URLs are fetched wherever they point, including the local network: see
            :mod:`vlmprobe.inputs.download`.
        limits: on size, pixels and time. To exceed the default for one image, load it with this function and
            other limits, and pass the result. Fewer pixels than by default are demanded only of what is decoded here.

    Returns:
        A new image of mode ``RGB``, fully loaded, detached from any file: rotated by its EXIF orientation, the
        first frame of an animation, transparent pixels composited onto white, 16-bit samples scaled.

    Raises:
        ImageNotFoundError: there is no such file (also a ``FileNotFoundError``).
        ImageError: the image cannot be read or exceeds a limit; the message says what to do.
    """
    return mark(load_encoded(source, limits)[0], limits)


def load_encoded(source: ImageSource, limits: Limits = DEFAULT_LIMITS) -> tuple[Image.Image, bytes | None]:
    """The image as :func:`load_image` returns it, and its encoded file if that can be sent instead.

    That is a JPEG or PNG that every decoder reads as the same pixels: 8-bit RGB or grey, upright, opaque, one frame.
    """
    if isinstance(source, Image.Image):
        require_held(*source.size, "The Pillow image", limits, source.info)
        return _from_pil(source), None
    if is_encoded(source):
        held: Any = source.get("path") if source.get("bytes") is None else source["bytes"]
        return load_encoded(held, limits)
    if isinstance(source, str):
        scheme = SCHEME.match(source.strip())
        return _from_address(source.strip(), scheme[1] or scheme[2], limits) if scheme else _from_path(source, limits)
    if isinstance(source, os.PathLike):
        return _from_path(source, limits)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decoded(bytes(source), "The image bytes", limits)
    if isinstance(source, np.ndarray) or hasattr(source, "__array__"):
        return _from_array(source, limits), None
    if is_file(source):
        return _from_file(source, limits)
    raise ImageError(
        f"An image cannot be {'None' if source is None else f'of type {type(source).__name__}'}: {_remedy(source)}."
    )


def is_file(source: Any) -> bool:
    """Whether something is an open file: it has ``read``, and is neither an image nor a path."""
    return callable(getattr(source, "read", None)) and not isinstance(source, (Image.Image, os.PathLike))


def is_encoded(source: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether something is ``{"bytes": ..., "path": ...}``, or one of the two, as ``datasets`` stores an image."""
    return isinstance(source, Mapping) and bool(source) and set(source) <= {"bytes", "path"}


def thumbnail(image: Image.Image, side: int) -> Image.Image:
    """A copy that is at most ``side`` pixels wide and high, with the same aspect ratio; never enlarged."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def digest(image: Image.Image) -> str:
    """BLAKE2b of an RGB image's size and pixels, 16 bytes in hexadecimal: equal only for equal images.

    That of the image before is kept, since many questions may be about one image: to compare is faster than to hash.
    """
    global _DIGESTED
    size, held = image.size, image.tobytes()
    known, before, found = _DIGESTED
    if known != size or before != held:
        hashed = hashlib.blake2b(repr(size).encode(), digest_size=16)
        hashed.update(held)
        found = hashed.hexdigest()
        _DIGESTED = (size, held, found) if len(held) <= COMPARED else ((0, 0), b"", "")
    return found


def data_uri(image: Image.Image) -> str:
    """The image as a ``data:image/png;base64,`` URL, lossless."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _from_pil(image: Image.Image) -> Image.Image:
    try:
        if isinstance(image, ImageFile.ImageFile):
            with LAZY:
                return pixels.from_pil(image)
        return pixels.from_pil(image)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(
            f"The Pillow image (mode {image.mode}) cannot be read as RGB ({error}): check that its file is intact "
            "and open, or convert it yourself with image.convert('RGB')."
        ) from error


def _from_array(source: Any, limits: Limits) -> Image.Image:
    is_tensor = hasattr(source, "detach") and hasattr(source, "cpu")
    try:
        if is_tensor:
            source = source.detach().cpu()
            # NumPy lacks bfloat16 and the 8-bit floats.
            source = source.float() if source.is_floating_point() else source
        array = np.asarray(source)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise ImageError(
            f"{type(source).__name__} cannot be converted to a NumPy array ({error}): pass a dense one."
        ) from error
    height, width = sorted((1, 1, *array.shape))[-2:]
    require_held(width, height, "The image array", limits)
    return pixels.from_array(array, channels_first=is_tensor)


def _from_address(address: str, scheme: str, limits: Limits) -> tuple[Image.Image, bytes | None]:
    if scheme.lower() == "data":
        return _decoded(_data_url(address, limits), "The data URL", limits)
    if scheme.lower() in ("http", "https"):
        from vlmprobe.inputs.download import (  # here, because importing urllib takes 30 ms that few programs need
            fetch,
            shown,
        )

        body = fetch(address, seconds=limits.url_seconds, max_bytes=limits.url_bytes, redirects=limits.url_redirects)
        return _decoded(body, shown(address), limits)
    remedy = "pass the path without file://" if scheme.lower() == "file" else "download the file and pass its path"
    raise ImageError(f"{_short(address)} is not supported, only http(s) and data: URLs are: {remedy}.")


def _data_url(url: str, limits: Limits) -> bytes:
    header, comma, payload = url[5:].partition(",")
    if not comma or not header.lower().replace(" ", "").endswith(";base64"):
        raise ImageError("The data URL is not base64: write data:image/png;base64,... or pass the bytes themselves.")
    text = b"".join((unquote_to_bytes(payload) if "%" in payload else payload.encode()).split())
    if len(text) // 4 * 3 > limits.max_bytes + 2:  # padding stands for up to two bytes
        raise _too_many_bytes("The data URL", limits)
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ImageError(
            f"The data URL is not valid base64 ({error}): make it with base64.b64encode, or pass the bytes themselves."
        ) from error


def _from_path(source: str | os.PathLike[str], limits: Limits) -> tuple[Image.Image, bytes | None]:
    text = os.fspath(source)
    if not isinstance(text, str) or not text.strip():
        raise ImageError("The image path is empty: pass a path, a URL, bytes, a Pillow image or an array.")
    path = Path(os.path.expanduser(text))
    name = _short(str(path))
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise ImageError(f"{name} is a folder: pass the path of one image in it.")
        if not stat.S_ISREG(kind):
            raise ImageError(f"{name} is not a regular file: pass the path of an image, or its bytes.")
        with path.open("rb") as file:
            data = file.read(limits.max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _missing(text, path, name) from error
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # too long or with a null character: hardly meant as a path
        if BASE64.fullmatch(text):
            raise _missing(text, path, name) from error
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name} cannot be read ({reason}): check the path and its permissions.") from error
    return _decoded(data, name, limits)


def _from_file(file: Any, limits: Limits) -> tuple[Image.Image, bytes | None]:
    held = getattr(file, "name", None)
    name = f"The open file {_short(held)}" if isinstance(held, str) else f"The open file ({type(file).__name__})"
    if getattr(file, "closed", False) is True:
        raise ImageError(f"{name} is closed: open it again, or pass its path or the bytes that it held.")
    try:
        again = _seekable(file)
        data = _read_from_start(file, limits.max_bytes + 1) if again else _read(file, limits.max_bytes + 1)
    except TypeError as error:
        raise ImageError(f"{name} does not give bytes ({error}): open it with mode 'rb', or pass bytes.") from error
    except MemoryError:
        raise
    except Exception as error:  # files of archives and networks raise errors of their own
        raise ImageError(f"{name} cannot be read ({error}): open it with mode 'rb', or pass bytes.") from error
    if not data and not again:
        raise ImageError(
            f"{name} is empty or was read before, and cannot be read again from its beginning: pass the bytes that "
            "its read() returns."
        )
    return _decoded(data, name, limits)


def _seekable(file: Any) -> bool:
    told = getattr(file, "seekable", None)
    return bool(told()) if callable(told) else hasattr(file, "seek") and hasattr(file, "tell")


def _read_from_start(file: Any, most: int) -> bytes:
    """A file read from its beginning, so that a second reading finds the same; its position is restored."""
    with LAZY:
        place = file.tell()
        file.seek(0)
        try:
            return _read(file, most)
        finally:
            file.seek(place)


def _read(file: Any, most: int) -> bytes:
    """Up to ``most`` bytes; an unbuffered file may return fewer at a time."""
    data = bytearray()
    while len(data) < most:
        piece = file.read(most - len(data))
        if not isinstance(piece, (bytes, bytearray, memoryview)):
            if inspect.iscoroutine(piece):
                piece.close()  # it is never awaited
            raise TypeError(f"its read() returns {type(piece).__name__}")
        if not len(piece):
            break
        data += piece
    return bytes(data)


def _missing(text: str, path: Path, name: str) -> ImageError:
    if BASE64.fullmatch(text):
        return ImageNotFoundError(
            f"There is no file {name}, and it looks like base64: put 'data:image/png;base64,' before it, "
            "or pass base64.b64decode(...) of it."
        )
    if re.match(r"https?:/", text):
        return ImageNotFoundError(
            f"There is no file {name}, and it looks like a URL: pass it as a string, not as a path."
        )
    hint = ""
    if path.parent.is_dir():
        with os.scandir(path.parent) as entries:
            hint = near(path.name, [entry.name for entry in itertools.islice(entries, 2000)])
    else:
        hint = f" The folder {_short(str(path.parent))} does not exist either."
    return ImageNotFoundError(f"There is no file {name} (working folder {_short(os.getcwd())}): check the path.{hint}")


def _decoded(data: bytes, name: str, limits: Limits) -> tuple[Image.Image, bytes | None]:
    if not data:
        raise ImageError(f"{name}: it is empty (0 bytes). Save or download the image again.")
    if len(data) > limits.max_bytes:
        raise _too_many_bytes(name, limits)
    Image.init()
    formats = [each for each in FORMATS if each in Image.OPEN]  # AVIF depends on how Pillow was built
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            require_pixels(*image.size, name, limits.max_pixels)
            plain = _is_plain(image, data)
            return pixels.from_pil(image), data if plain else None
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image in a supported format: {_guess(data)}.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{name} has more pixels than Pillow decodes ({error}): shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS "
            "if you trust it."
        ) from error
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise ImageError(f"{name} is truncated or damaged ({error}): save or download the image again.") from error


def _is_plain(image: Image.Image, data: bytes) -> bool:
    """Whether every decoder reads an image file as the pixels that :func:`load_image` returns."""
    eight_bits = image.format == "JPEG" or (image.format == "PNG" and data[PNG_DEPTH : PNG_DEPTH + 1] == b"\x08")
    upright = image.getexif().get(ORIENTATION, 1) == 1
    alone = not getattr(image, "is_animated", False)
    return eight_bits and upright and alone and image.mode in ("RGB", "L") and not image.has_transparency_data


def _guess(data: bytes) -> str:
    """What the bytes probably are instead, and the remedy."""
    start = data[:512].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; run 'git lfs pull'"
    if b"<svg" in start:
        return "it is SVG, which is not supported; render it to PNG first"
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return "it is a web page; use the address of the image itself"
    if start.startswith((b"%pdf", b"%!ps")):
        return "it is PDF or PostScript, which is not supported; render the page to PNG first"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1", b"msf1"):
        return "it is HEIC; convert it to JPEG, or open it with pillow-heif and pass the image"
    if BASE64.fullmatch(data[:512].decode("latin-1")):
        return "it looks like base64; pass base64.b64decode(...) of it"
    if data.startswith(MAGIC):
        return "its header is cut off or damaged; save or download it again"
    return f"save it as {READABLE}"


def _remedy(source: Any) -> str:
    if source is None:
        return "pass a path, a URL, an open file, bytes, a Pillow image or an array, or leave the image out"
    if isinstance(source, (list, tuple)):
        return "pass one image at a time, or numpy.asarray(...) if these are pixels"
    return "pass a path, a URL, an open file, bytes, a Pillow image or an array"


def _too_many_bytes(name: str, limits: Limits) -> ImageError:
    return ImageError(f"{name}: more than {limits.max_bytes:,} bytes. Shrink the image, or raise Limits.max_bytes.")


def _short(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:80]}...{text[-30:]}")
