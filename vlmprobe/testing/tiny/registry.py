"""The registry of families: the parts of a tiny checkpoint, and the decorator that registers a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import transformers

__all__ = ["FAMILIES", "Family", "Parts", "family", "hf"]

hf: Any = transformers  # attributes are resolved when used, so an older version that lacks one lacks only that family


@dataclass(frozen=True)
class Parts:
    """What a family's factory returns: everything that is saved into a checkpoint folder."""

    config: Any  # PreTrainedConfig of the whole model
    processor: Any  # ProcessorMixin with tokenizer, image processor and chat template
    eos: tuple[str, ...]  # tokens that end an answer: eos_token_id of the generation config
    scales: dict[str, float] = field(default_factory=dict)  # part of a weight's name -> factor on its std
    shifts: dict[str, float] = field(default_factory=dict)  # part of a weight's name -> added to its mean


@dataclass(frozen=True)
class Family:
    """One architecture and the properties of its tiny checkpoint.

    Attributes:
        name: transformers' ``model_type`` of the architecture (``-`` and ``.`` become ``_``).
        make: builds the checkpoint's :class:`Parts`.
        needs: model types that the installed transformers must support.
        packages: optional Python packages that the architecture imports.
        since: the oldest transformers version on which this entry was verified.
        before: what fails with versions older than ``since``.
        broken: transformers version -> what fails with this version only.
        chat: whether the processor has a chat template.
        text_only: whether the model accepts a conversation without an image.
        several_images: whether the model accepts more than one image in a conversation.
        batching: whether a left-padded batch gives the logits of single calls, within 1e-4 in float32.
        positions: whether ``forward`` of a left-padded batch must be given position_ids that begin at each prompt's
            first token; ``generate`` computes them itself.
        processor_kwargs: extra arguments for the processor's ``apply_chat_template``.
        notes: the architecture's peculiarities, with the measured difference if its numbers differ.
    """

    name: str
    make: Callable[[], Parts]
    needs: tuple[str, ...]
    packages: tuple[str, ...] = ()
    since: str = "5.17.0"
    before: str = ""
    broken: Mapping[str, str] = field(default_factory=dict)
    chat: bool = True
    text_only: bool = True
    several_images: bool = True
    batching: bool = True
    positions: bool = False
    processor_kwargs: Mapping[str, Any] = field(default_factory=dict)
    notes: str = ""


FAMILIES: dict[str, Family] = {}


def family(name: str, *needs: str, **facts: Any) -> Callable[[Callable[[], Parts]], Callable[[], Parts]]:
    """Register the decorated factory under ``name``.

    Args:
        name: the family's name.
        *needs: model types that transformers must support; ``name`` if none is given.
        **facts: further fields of :class:`Family`.
    """

    def enter(make: Callable[[], Parts]) -> Callable[[], Parts]:
        FAMILIES[name] = Family(name, make, needs or (name,), **facts)
        return make

    return enter
