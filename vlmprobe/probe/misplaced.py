"""Columns of requests that were meant as something else: an image under another name, an option of the call.

Carried into ``meta`` they would have no effect, and nobody would be told.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

from vlmprobe.errors import MessageError, VlmprobeWarning, near, outside
from vlmprobe.inputs.image_names import (
    is_named_like_a_file,
    is_named_like_an_image,
    seems_an_image,
    stands_for_an_image,
)

__all__ = ["OPTIONS", "require_no_image", "require_no_option", "require_not_misplaced"]

# Of a call: those that no data set has a column of another meaning for.
OPTIONS = {"max_new_tokens", "max_length", "min_new_tokens", "min_length", "stop_strings", "eos_token_id"}
OPTIONS |= {"do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty"}
OPTIONS |= {"no_repeat_ngram_size", "num_beams", "length_penalty", "num_return_sequences", "logits_processor"}
REMEDY = "rename it to 'image' (or add a column 'image' of None to ask without images)"


def require_not_misplaced(name: str, names: Collection[Any], images: Collection[str]) -> None:
    """Reject a further column whose name says that it was not meant to be carried.

    Args:
        name: of the column.
        names: of all columns.
        images: names under which an image is read.

    Raises:
        MessageError: for an option of generation, or, without a column of images, for a name of one.
    """
    if name in OPTIONS:
        raise MessageError(
            f"column {name!r} is an option of generation, which holds for the whole call: pass it to the call, such as "
            f"generate_many(rows, {name}=...), with one call for each value; or rename the column to have it carried"
        )
    if not set(images) & set(names) and (is_named_like_an_image(name) or near(name.casefold(), images, cutoff=0.8)):
        raise MessageError(f"column {name!r} is not read as an image: {REMEDY}")


def require_no_option(name: str, value: Any) -> None:
    """Reject options of one request: they are of the whole call.

    Raises:
        MessageError: for a mapping under ``options``. Lists are carried: many data sets keep their choices there.
    """
    if name == "options" and isinstance(value, Mapping):
        raise MessageError(
            "'options' of one request are not applied: pass them to the call, such as "
            f"generate_many(rows, {next(iter(value), 'max_new_tokens')}=...); only compare takes options of a request"
        )


def require_no_image(name: str, value: Any) -> None:
    """Reject a further column of a request without an image if it holds one.

    Raises:
        MessageError: for an image or the file of one. If neither the name nor a file says so, the name of an image is a
            warning.
    """
    if seems_an_image(value):
        raise MessageError(f"column {name!r} holds an image, and images are read from 'image': {REMEDY}")
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    if not isinstance(first, str) or not stands_for_an_image(first):
        return
    if is_named_like_a_file(name):
        raise MessageError(f"column {name!r} names an image, {first[:80]!r}, and is not read as one: {REMEDY}")
    warnings.warn(
        f"column {name!r} names images, and the question is asked without one. If they were meant, {REMEDY}.",
        VlmprobeWarning,
        stacklevel=outside(),
    )
