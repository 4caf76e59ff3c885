"""What seems to be an image although nobody said so: names of files and columns, and values."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from PIL import Image

from vlmprobe.errors import MessageError
from vlmprobe.inputs.images import is_encoded

__all__ = [
    "SUFFIXES",
    "is_image_file",
    "is_named_like_a_file",
    "is_named_like_an_image",
    "require_question",
    "seems_an_image",
    "stands_for_an_image",
]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".heic")
WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
IMAGES = {"image", "img", "picture", "pic", "photo", "screenshot", "jpg", "jpeg", "png", "pixel"}  # or more of them
FILES = {"file", "filename", "filepath", "path", "name", "url", "uri", "link", "src", "source"}
FILES |= {"data", "byte", "value", "array", "base", "frame", "scan", "page"}
FUSED = {f"{image}{file}" for image in IMAGES for file in FILES}  # imagepath
LONGEST = 1024  # characters of a path
MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")  # none that the words of a text may begin with
HEAD = 16  # bytes of a file that say what it is


@cache
def is_named_like_an_image(name: str) -> bool:
    """Whether a column of that name holds images or their files and nothing else: ``img_path``, ``pixel_values``."""
    words = _words(name)
    about = [word in IMAGES or word in FUSED for word in words]
    return any(about) and all(this or _of_a_file(word) for this, word in zip(about, words, strict=True))


@cache
def is_named_like_a_file(name: str) -> bool:
    """Whether a column of that name may hold files of images: ``file_name``, ``scan``."""
    words = _words(name)
    return bool(words) and all(map(_of_a_file, words))


def _words(name: str) -> list[str]:
    return [word.casefold().removesuffix("s") for word in WORDS.findall(name)]


def _of_a_file(word: str) -> bool:
    return word in FILES or word.isdigit()  # image_1, base64


def stands_for_an_image(text: str) -> bool:
    """Whether a text is the address or the name of an image, by its ending; the file need not exist."""
    if len(text) > LONGEST or "\n" in text:
        return text[:11].lower().startswith("data:image/")
    name = text.strip().partition("?")[0] if "://" in text else text.strip()
    return name.lower().endswith(SUFFIXES) or text[:11].lower().startswith("data:image/")


def is_image_file(text: str) -> bool:
    """Whether a text is the path of an image that exists."""
    if not text.strip() or len(text) > LONGEST or "\n" in text:
        return False
    path = os.path.expanduser(text)
    try:
        if not os.path.isfile(path):  # a pipe would wait for its writer
            return False
        with open(path, "rb") as file:
            return text.strip().lower().endswith(SUFFIXES) or _begins_an_image(file.read(HEAD))
    except (OSError, ValueError):
        return False


def seems_an_image(value: Any) -> bool:
    """Whether a value is an image beyond doubt: a Pillow image, pixels, encoded bytes, an existing file; or a list of
    these."""
    if isinstance(value, str):
        return is_image_file(value)
    if isinstance(value, os.PathLike):
        path = os.fspath(value)
        return isinstance(path, str) and is_image_file(path)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _begins_an_image(bytes(value[:HEAD]))
    if isinstance(value, Mapping):
        return is_encoded(value) and any(seems_an_image(each) for each in value.values())
    if isinstance(value, (list, tuple)):
        return bool(value) and seems_an_image(value[0])
    shape = tuple(getattr(value, "shape", ()))
    pixels = len(shape) == 3 and (shape[0] in (1, 3, 4) or shape[-1] in (1, 3, 4))
    return isinstance(value, Image.Image) or (pixels and str(getattr(value, "dtype", "")).endswith("uint8"))


def _begins_an_image(head: bytes) -> bool:
    return head.startswith(MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def require_question(question: Any, image: Any) -> None:
    """Reject a question that is an image, as when the two are given in the other order.

    Raises:
        MessageError: it says which comes first.
    """
    text = isinstance(question, str)
    told = text and isinstance(image, str) and stands_for_an_image(question) and not stands_for_an_image(image)
    if seems_an_image(question) or (told and not is_image_file(str(image))):
        which = f"{question[:80]!r}" if text else f"of type {type(question).__name__}"
        raise MessageError(
            f"The question is an image ({which}): the question comes first and the image after it, such as "
            "generate('What is this?', image='scene.png')."
        )
