"""glance-vlm as a peer: its reading of yes/no questions on a loaded model, with its prefix cache where it has one.

It runs on Python 3.11 only, and what it asks pip for does not fit the tested set (litellm needs a boto3 whose botocore
wants an older python-dateutil), so it is installed beside, without what it needs for servers and evaluations::

    python -m pip install --constraint constraints.txt numpy pydantic python-dotenv pyyaml scipy
    python -m pip install --no-deps glance-vlm==0.3.1
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from PIL.Image import Image

__all__ = ["LABEL", "NO", "YES", "backend", "installed", "loaded", "missing", "question", "score"]

LABEL = "img0"  # glance writes "Image `img0`:" before the image
YES, NO = ["Yes", " Yes", "yes", " yes"], ["No", " No", "no", " no"]  # its spellings


@cache
def missing() -> str:
    """Why glance cannot run here; empty if it can."""
    try:
        import glance.backends.generic_hf
        import glance.backends.vlm_hf  # noqa: F401
    except ImportError as error:
        return f"glance-vlm is not installed ({error})"
    return ""


def installed() -> str:
    """Its version, or that there is none."""
    try:
        return version("glance-vlm")
    except PackageNotFoundError:
        return "not installed"


def question(text: str) -> str:
    """A question as glance writes it."""
    return f"Question: {text}\nAnswer Yes or No."


def backend(model: Any, processor: Any, prefix_cache: bool = True, ids: Sequence[list[int]] = ()) -> Any:
    """Glance's backend around a loaded model, in place of its constructor, which loads one from a hub.

    Args:
        model, processor: of transformers.
        prefix_cache: its backend for Qwen3-VL, with the prefix cache; else its generic one, a forward a question.
        ids: tokens of yes and of no; those of its own spellings that are one token if empty.

    Raises:
        Exception: glance's own, if no spelling is one token.
    """
    from glance import prompts
    from glance.backends.generic_hf import GenericVlmBackend
    from glance.backends.vlm_hf import VlmBackend

    made: Any = object.__new__(VlmBackend if prefix_cache else GenericVlmBackend)
    made.model, made.processor, made.tokenizer = model, processor, processor.tokenizer
    made.device, made.dtype = str(model.device), str(model.dtype).removeprefix("torch.")
    made.model_id = "benchmark"
    made.keep_hidden, made.last_hidden, made._hidden_chunks, made._label_ids = False, None, [], {}
    if prefix_cache:
        images = processor.image_processor
        made.image_token_budget, made.batch_size, made.suffix_batch_size = 768, 8, 16
        made.use_prefix_cache, made._prefix_cache, made._reads = True, OrderedDict(), 0
        made.merge_length = images.merge_size**2
        made.pixels_per_token = (images.patch_size * images.merge_size) ** 2
        made.image_token, made.image_token_id = processor.image_token, processor.image_token_id
        made.pad_id = processor.tokenizer.pad_token_id
    else:
        made._checked_head, made.label_prefix_ids = False, []
    made.yes_ids, made.no_ids = ids or map(made._single_token_ids, (prompts.YES_VARIANTS, prompts.NO_VARIANTS))
    return made


def loaded(image: Image) -> Any:
    """An image as its backends take it."""
    from glance.images import LoadedImage

    return LoadedImage(LABEL, image, "", *image.size, "PNG", "memory")


def score(backend: Any, texts: Sequence[str], image: Image) -> Any:
    """Its ``StatementScores`` of complete questions about an image, from an empty prefix cache."""
    from glance.backends.base import Statement

    if hasattr(backend, "_prefix_cache"):
        backend._prefix_cache.clear()
    return backend.score_statements([loaded(image)], None, [Statement(text, text) for text in texts])
