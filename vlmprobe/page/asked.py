"""What the page asks for, read from JSON that anyone could have written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image

from vlmprobe.errors import GenerationOptionError, MessageError

__all__ = ["Asked", "Turn", "read_asked"]

ROLES = ("system", "user", "assistant")
KINDS = ("yes_no", "options", "levels", "candidates")
GENERATION = {"max_new_tokens": int, "temperature": (int, float), "seed": int}
MOST_TURNS, MOST_TEXTS, MOST_IMAGES, MOST_TOKENS = 200, 200, 32, 100_000


@dataclass(frozen=True)
class Turn:
    """One message; ``images`` are the keys of images that were sent before."""

    role: str
    text: str
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """A conversation, and what is asked about it."""

    turns: tuple[Turn, ...]
    options: Mapping[str, Any] = field(default_factory=dict)  # of generation, and seed
    begin: tuple[int, ...] = ()  # ids that the answer begins with
    answer: tuple[int, ...] = ()  # ids of the answer that a panel is about
    kind: str = ""  # of a typed question; empty for an answer in the model's own words
    texts: tuple[str, ...] = ()  # options, levels or candidates of a typed question
    panel: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)  # of a panel
    model: int = 0  # which of the models of the page

    def messages(self, images: Mapping[str, Image] | Any) -> list[dict[str, Any]]:
        """The chat messages, with the images that ``images`` holds by their keys."""
        return [
            {
                "role": turn.role,
                "content": [
                    *({"type": "image", "image": images[key]} for key in turn.images),
                    {"type": "text", "text": turn.text},
                ],
            }
            for turn in self.turns
        ]

    @property
    def image_keys(self) -> list[str]:
        """The keys of all images, in order."""
        return [key for turn in self.turns for key in turn.images]

    @property
    def typed(self) -> dict[str, Any]:
        """The arguments of :meth:`vlmprobe.Probe.ask` that say which kind of question it is."""
        levels: Any = list(self.texts)
        if self.kind == "levels":
            numbers = [_number(each) for each in self.texts]
            levels = numbers if None not in numbers else levels
        return {self.kind: levels} if self.kind in ("options", "levels") else {}


def read_asked(document: Any, models: int = 1) -> Asked:
    """What a request asks for, of a page of so many models.

    Raises:
        MessageError: for anything that is not as the page writes it.
        GenerationOptionError: for an unknown option, or one of another type.
    """
    if not isinstance(document, Mapping):
        raise MessageError("a request is a JSON object")
    turns = tuple(_turn(each) for each in _listed(document, "messages", MOST_TURNS))
    if not turns or turns[-1].role != "user":
        raise MessageError("the conversation must end with a question")
    if len([key for turn in turns for key in turn.images]) > MOST_IMAGES:
        raise MessageError(f"a conversation on the page has at most {MOST_IMAGES} images")
    kind, panel = document.get("kind", ""), document.get("panel", "")
    if kind not in ("", *KINDS):
        raise MessageError(f"kind must be one of {', '.join(KINDS)}")
    if not isinstance(panel, str):
        raise MessageError("panel must be a name")
    texts = _listed(document, "texts", MOST_TEXTS)
    if not all(isinstance(each, str) for each in texts):
        raise MessageError("texts must be a list of texts")
    settings = document.get("settings") or {}
    if not isinstance(settings, Mapping):
        raise MessageError("settings must be an object")
    model = document.get("model", 0)
    if isinstance(model, bool) or not isinstance(model, int) or model not in range(models):
        raise MessageError(f"model must be from 0 to {models - 1}")
    return Asked(
        turns,
        _options(document.get("options") or {}),
        _ids(document, "begin"),
        _ids(document, "answer"),
        kind,
        tuple(texts),
        panel,
        settings,
        model,
    )


def _turn(given: Any) -> Turn:
    if not isinstance(given, Mapping) or given.get("role") not in ROLES or not isinstance(given.get("text"), str):
        raise MessageError(f"a message has a role ({', '.join(ROLES)}) and a text")
    images = given.get("images") or []
    if not isinstance(images, list) or not all(isinstance(key, str) for key in images):
        raise MessageError("the images of a message are a list of keys")
    return Turn(given["role"], given["text"], tuple(images))


def _listed(document: Mapping[str, Any], name: str, most: int) -> list[Any]:
    given = document.get(name) or []
    if not isinstance(given, list) or len(given) > most:
        raise MessageError(f"{name} must be a list of at most {most}")
    return given


def _ids(document: Mapping[str, Any], name: str) -> tuple[int, ...]:
    given = _listed(document, name, MOST_TOKENS)
    if any(isinstance(each, bool) or not isinstance(each, int) or not 0 <= each < 2**63 for each in given):
        raise MessageError(f"{name} must be a list of token ids")
    return tuple(given)


def _options(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise MessageError("options must be an object")
    for name, value in given.items():
        if name not in GENERATION:
            raise GenerationOptionError(f"the page has no option {name!r}, only {', '.join(GENERATION)}")
        if isinstance(value, bool) or not isinstance(value, GENERATION[name]):  # type: ignore[arg-type]
            raise GenerationOptionError(f"{name} must be a number, not {value!r}")
    return dict(given)


def _number(text: str) -> int | float | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
