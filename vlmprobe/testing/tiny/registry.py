"""The table of families: what a tiny checkpoint is made of, and how a family enters the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import transformers

__all__ = ["FAMILIES", "Family", "Parts", "family", "hf"]

hf: Any = transformers  # its names are resolved when used: an older version that lacks one lacks that family only


@dataclass(frozen=True)
class Parts:
    """What a family's factory returns: everything that is saved into a checkpoint folder."""

    config: Any  # PreTrainedConfig of the whole model
    processor: Any  # ProcessorMixin with tokenizer, image processor and chat template
    eos: tuple[str, ...]  # tokens that end an answer, into generation_config
    scales: dict[str, float] = field(default_factory=dict)  # fragment of a parameter's name -> factor on its spread
    shifts: dict[str, float] = field(default_factory=dict)  # fragment of a parameter's name -> added to its mean


@dataclass(frozen=True)
class Family:
    """One architecture and what holds for its tiny checkpoint.

    Attributes:
        name: the name of the architecture, as in transformers' ``model_type`` (``-`` and ``.`` become ``_``).
        make: builds the parts.
        needs: model types that the installed transformers must know.
        packages: optional packages that the architecture imports.
        since: the oldest transformers in which the architecture was seen to do what the entry says.
        before: what goes wrong with older ones.
        broken: version of transformers -> what goes wrong with this one alone.
        text_only: a conversation without an image is accepted.
        several_images: more than one image in a conversation is accepted.
        batching: a left-padded batch gives the logits of single calls within 1e-4 in float32.
        positions: a left-padded batch needs position_ids that begin at each prompt's first token; ``generate`` makes
            them, ``forward`` does not.
        processor_kwargs: what the processor's chat call needs beside the usual.
        notes: what is particular, with the measured figure where numbers differ.
    """

    name: str
    make: Callable[[], Parts]
    needs: tuple[str, ...]
    packages: tuple[str, ...] = ()
    since: str = "5.17.0"
    before: str = ""
    broken: Mapping[str, str] = field(default_factory=dict)
    text_only: bool = True
    several_images: bool = True
    batching: bool = True
    positions: bool = False
    processor_kwargs: Mapping[str, Any] = field(default_factory=dict)
    notes: str = ""


FAMILIES: dict[str, Family] = {}


def family(name: str, *needs: str, **facts: Any) -> Callable[[Callable[[], Parts]], Callable[[], Parts]]:
    """Enter the decorated factory into the table under ``name``.

    Args:
        name: the family's name.
        *needs: model types that transformers must know; ``name`` where none is given.
        **facts: further fields of :class:`Family`.
    """

    def enter(make: Callable[[], Parts]) -> Callable[[], Parts]:
        FAMILIES[name] = Family(name, make, needs or (name,), **facts)
        return make

    return enter
