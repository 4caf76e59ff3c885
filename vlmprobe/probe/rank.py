"""Relevance of documents to a query, from the model's logits of yes and no.

The score of a document is ``sigmoid(logit_yes - logit_no)`` at the last position of a prompt that asks whether the
document meets the query: what rerankers of the Qwen family compute (Qwen3-VL-Reranker; Li et al. 2026) and what engines
serve under ``/score``. Any generative model can be used; without reranker training its scores order documents, and are
probabilities only as far as the model is calibrated.

A checkpoint whose chat template has query and document roles is prompted through it; any other through :data:`PROMPT`,
or a custom template. Queries and documents are text, images, or both.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL.Image import Image

from vlmprobe.display.overview import Kind, Overview, Viewed
from vlmprobe.display.progress import tracking
from vlmprobe.display.view import nats
from vlmprobe.engines.base import ONE_STEP, Engine, HasAdapter, Options, Ranks, TokenisesAnswers
from vlmprobe.errors import CapabilityError, MessageError, VlmprobeWarning, outside, renamed
from vlmprobe.inputs.chat_templates import PAIR, pair_template, templates_of
from vlmprobe.inputs.image_names import is_image_file
from vlmprobe.inputs.images import is_encoded, thumbnail
from vlmprobe.inputs.messages import Conversation, ImagePart, Message, TextPart
from vlmprobe.inputs.prompt_format import AS_BY_DEFAULT, PromptFormat
from vlmprobe.probe.failure import naming
from vlmprobe.probe.generate_many import answered
from vlmprobe.probe.request import Converse, Request, options_of
from vlmprobe.results.bounds import listed_in
from vlmprobe.results.frame import DataFrame, data_frame
from vlmprobe.results.result import Result

__all__ = ["INSTRUCTION", "PROMPT", "Ranked", "Ranking", "parts_of", "rank"]

Part = TextPart | ImagePart
INSTRUCTION = "Judge whether the document is relevant to the query."
PROMPT = "{instruction}\n\nQuery: {query}\n\nDocument: {document}\n\nIs the document relevant? Answer yes or no."
FIELDS = ("instruction", "query", "document")
THUMBNAIL = 256


@dataclass(frozen=True)
class Ranked:
    """One ranked document."""

    index: int  # in input order
    score: float  # 0 to 1
    margin: float  # logit of yes minus logit of no, nats
    text: str  # of the document; empty for an image alone
    image: Image | None  # its first, downscaled for display

    @property
    def picture(self) -> Image | None:
        """The former name of ``image``."""
        renamed("Ranked.picture", "Ranked.image")
        return self.image


@dataclass(frozen=True, eq=False)
class Ranking(Viewed):
    """D documents and their relevance to one query. Iterates from the most to the least relevant."""

    query: str  # its text
    margins: np.ndarray  # float64 [D], nats: logit of yes minus logit of no, in input order
    texts: list[str]  # [D]
    images: list[Image | None]  # [D] first image of each document, downscaled for display
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def pictures(self) -> list[Image | None]:
        """The former name of ``images``."""
        renamed("Ranking.pictures", "Ranking.images")
        return self.images

    @property
    def scores(self) -> np.ndarray:
        """float64 [D]: ``sigmoid(margins)``, in input order."""
        return np.exp(-np.logaddexp(0, -self.margins))

    @property
    def order(self) -> np.ndarray:
        """int64 [D]: indices of the documents, most relevant first; ties keep the input order."""
        return np.argsort(-self.margins, kind="stable")

    def __len__(self) -> int:
        return len(self.margins)

    def __iter__(self) -> Iterator[Ranked]:
        scores = self.scores
        for place in self.order.tolist():
            margin = float(self.margins[place])
            yield Ranked(place, float(scores[place]), margin, self.texts[place], self.images[place])

    def to_pandas(self) -> DataFrame:
        """A ``pandas.DataFrame``, one row per document, the most relevant first."""
        rows = [{"index": each.index, "score": each.score, "margin": each.margin, "text": each.text} for each in self]
        return data_frame(rows, columns=["index", "score", "margin", "text"])

    def plot(self, ax: Any = None, *, most: int = 12) -> Any:
        """Scores as bars, the most relevant document first, beside its text or image. Returns the axes."""
        from vlmprobe.display.plots.ranking import draw_ranking

        order = self.order.tolist()
        texts, images = [self.texts[place] for place in order], [self.images[place] for place in order]
        return draw_ranking(self.query, self.scores[order], texts, images, ax, most=most)

    def _overview(self) -> Overview:
        """The documents, the most relevant first."""
        columns: dict[str, Kind] = {"document": "number", "": "image", "text": "text"}
        columns |= {"relevance": "share", "margin": "number"}
        rows = [
            [str(each.index), each.image, each.text or ("" if each.image is None else "[image]"), each.score,
             nats(each.margin)]
            for each in self
        ]  # fmt: skip
        return Overview(columns, rows, self.query)

    def __repr__(self) -> str:
        shown = ", ".join(f"{each.index}: {each.score:.3f}" for each in list(self)[:4])
        return f"Ranking({self.query[:40]!r}; {shown}{', ...' if len(self) > 4 else ''})"


def rank(
    engine: Engine,
    converse: Converse,
    meta: Mapping[str, Any],
    query: Any,
    documents: Sequence[Any],
    *,
    instruction: str | None = None,
    template: str | None = None,
    yes: str = "yes",
    no: str = "no",
    batch_size: int | Literal["auto"] = "auto",
    progress: bool | None = None,
) -> Ranking:
    """Order documents by their relevance to a query. See :meth:`Probe.rank`."""
    # The query is the question, which a session may be about; documents stand for themselves.
    about = converse(Conversation((Message("user", parts_of(query, "The query")),)), None)
    asked = about.messages[0].parts
    if isinstance(documents, (str, Mapping)) or not isinstance(documents, Sequence):
        raise MessageError(f"documents must be a list of texts and images, not {type(documents).__name__}")
    listed = [parts_of(each, f"Document {place}") for place, each in enumerate(documents)]
    conversations, how = _asked(engine, asked, listed, instruction, template, about.format)
    margins = _engines_own(engine, asked, listed, instruction, about.format) if template is None else None
    if margins is None:
        engine.check(
            conversations, Options(generation=ONE_STEP, demanded=frozenset())
        )  # the scores need no prompt side
        with tracking(progress, len(listed), "documents", "documents") as done:
            found = []
            for margin in _margins(engine, conversations, yes, no, batch_size) if listed else ():
                found.append(margin)
                done(1)
        margins = np.array(found, dtype=np.float64)
    else:
        how = "the engine's reranker"
    return Ranking(
        query=_text(asked),
        margins=margins,
        texts=[_text(each) for each in listed],
        images=[_first_image(each) for each in listed],
        meta={**meta, **about.format.told, "asked_through": how, "yes": yes, "no": no, "instruction": instruction},
    )


def parts_of(source: Any, name: str) -> tuple[Part, ...]:
    """A query or a document as message parts.

    Args:
        source: a text, an image (path object, open file, bytes, PIL image, array), a mapping with ``"image"`` (also a
            URL or the name of a file) and ``"text"``, chat parts, or a list of these.
        name: what it is, for error messages.

    Raises:
        MessageError: for empty or invalid input.
        ImageError: for an image that cannot be read.
    """
    parts = _read(source, name)
    for part in parts:
        if isinstance(part, TextPart) and is_image_file(part.text):
            warnings.warn(
                f"{name} is the text {part.text[:80]!r}, and an image of that name exists: to rank the image, pass "
                "pathlib.Path(...) of it, or {'image': ...}.",
                VlmprobeWarning,
                stacklevel=outside(),
            )
    if not any(isinstance(part, ImagePart) or part.text.strip() for part in parts):
        raise MessageError(f"{name} is empty: give a text or an image.")
    return parts


def _read(source: Any, name: str) -> tuple[Part, ...]:
    if isinstance(source, str):
        return (TextPart(source),)
    if isinstance(source, Mapping) and not is_encoded(source):
        if "type" in source:
            return Conversation.build([{"role": "user", "content": [source]}]).messages[0].parts
        if not source or set(source) - {"image", "text"}:
            raise MessageError(f"{name} must be a mapping with 'image' and 'text', or a chat part with its 'type'.")
        images = source.get("image")
        shown = [] if images is None else images if isinstance(images, (list, tuple)) else [images]
        text = source.get("text") or ""
        if not isinstance(text, str):
            raise MessageError(f"{name} has {type(text).__name__} under 'text': give a string.")
        said = [TextPart(text)] if text else []
        return (*(_image(each) for each in shown), *said)
    if isinstance(source, (list, tuple)):
        return tuple(part for each in source for part in _read(each, name))
    if source is None:
        raise MessageError(f"{name} is None: give a text or an image.")
    return (_image(source),)


def _image(source: Any) -> ImagePart:
    return Conversation.build("?", [source]).image_parts[0]


def _asked(
    engine: Engine,
    query: tuple[Part, ...],
    documents: Sequence[tuple[Part, ...]],
    instruction: str | None,
    own: str | None,
    format: PromptFormat,
) -> tuple[list[Conversation], str]:
    """The conversation about each document, and the kind of template that it uses."""
    adapter = engine.adapter if isinstance(engine, HasAdapter) else None
    template = None
    if own is None and adapter is not None and not format.raw_prompt:
        given = format.chat_template
        template = pair_template({"": given} if given else templates_of(adapter.processor, adapter.tokenizer))
    if adapter is None or template is None:
        pieces = _pieces(PROMPT if own is None else own)
        told = (TextPart(INSTRUCTION if instruction is None else instruction),)
        return [
            Conversation(
                (Message("user", _filled(pieces, {"instruction": told, "query": query, "document": each})),), format
            )
            for each in documents
        ], "prompt"
    system = () if instruction is None else (Message("system", (TextPart(instruction),)),)
    pairs = [Conversation((*system, Message(PAIR[0], query), Message(PAIR[1], each)), format) for each in documents]
    if pairs and "{'type'" in adapter.render(pairs[:1])[0]:
        raise CapabilityError(
            "The chat template with query and document roles is made for a server and inserts contents verbatim. "
            "Set one that reads lists of parts as processor.chat_template, or pass template=."
        )
    return pairs, "chat template"


def _pieces(template: str) -> list[str]:
    """A template split at its fields; every second piece is a field name.

    Raises:
        MessageError: if the query or document field is missing or repeated.
    """
    pieces = re.split(rf"\{{({'|'.join(FIELDS)})\}}", template)
    for name in PAIR:
        if pieces[1::2].count(name) != 1:
            raise MessageError(
                f"template must have the field {{{name}}} once; it may have {{query}}, {{document}}, {{instruction}}."
            )
    return pieces


def _filled(pieces: Sequence[str], fields: Mapping[str, tuple[Part, ...]]) -> tuple[Part, ...]:
    """Message parts, adjacent texts joined."""
    parts: list[Part] = []
    for place, piece in enumerate(pieces):
        for part in fields[piece] if place % 2 else (TextPart(piece),):
            if isinstance(part, TextPart) and parts and isinstance(parts[-1], TextPart):
                parts[-1] = TextPart(parts[-1].text + part.text)
            else:
                parts.append(part)
    return tuple(part for part in parts if isinstance(part, ImagePart) or part.text)


def _engines_own(
    engine: Engine,
    query: tuple[Part, ...],
    documents: Sequence[tuple[Part, ...]],
    instruction: str | None,
    format: PromptFormat,
) -> np.ndarray | None:
    """Margins [D] from an engine that ranks by itself (``rank`` of a reranker server), else None."""
    if not isinstance(engine, Ranks) or not documents or format != AS_BY_DEFAULT:  # a reranker has its own prompt
        return None
    if instruction is not None:
        raise CapabilityError(
            f"{type(engine).__name__} ranks with the instruction of the server's template: leave out "
            "instruction=, or pass template= to prompt a generative model."
        )
    pairs = [Conversation((Message("user", each),)) for each in (query, *documents)]
    try:
        return np.asarray(engine.rank(pairs[0], pairs[1:], activation=False), dtype=np.float64)
    except CapabilityError:  # a server of a generative model, which can be prompted
        return None


def _margins(
    engine: Engine, conversations: Sequence[Conversation], yes: str, no: str, batch_size: int | Literal["auto"]
) -> Iterator[float]:
    """Logit of yes minus logit of no at the end of each prompt, float64."""
    if not isinstance(engine, TokenisesAnswers):  # at one position, log-probabilities and logits have equal differences
        for place, conversation in enumerate(conversations):
            with naming(place, what="document"):
                scores = engine.score(conversation, [yes, no], options_of("stats", None, None, None, {}))
                for text, table in zip((yes, no), scores.tables, strict=True):
                    _only_id(table.tokens, text)
                    if table.bounded:
                        raise CapabilityError(
                            f"The engine does not list {text!r} among the likeliest tokens, so the score is not known. "
                            f"{listed_in(scores.meta).get('more', '')}"
                        )
            yield float(scores.logprobs[0] - scores.logprobs[1])
        return
    first, second = (int(_only_id(engine.answer_ids(conversations[0], text), text)) for text in (yes, no))
    if first == second:
        raise MessageError(f"{yes!r} and {no!r} are the same token: give other words for yes= and no=.")
    options = options_of("logits", False, 1, None, ONE_STEP)
    requests = [Request(conversation) for conversation in conversations]  # type: ignore[arg-type]
    for result in answered(engine, {}, Conversation.build, requests, batch_size, options, False, "raise", "document"):
        assert isinstance(result, Result)  # on_error is "raise"
        row = result.output.logits
        assert row is not None  # requested by keep
        yield float(row[0, first]) - float(row[0, second])


def _only_id(ids: Sequence[Any], text: str) -> Any:
    if len(ids) != 1:
        raise MessageError(
            f"{text!r} is {len(ids)} tokens after this prompt, but the score takes one: give another word for yes= "
            "or no=, such as 'Yes' or ' yes'."
        )
    return ids[0]


def _text(parts: Sequence[Part]) -> str:
    return " ".join(part.text for part in parts if isinstance(part, TextPart)).strip()


def _first_image(parts: Sequence[Part]) -> Image | None:
    return next((thumbnail(part.image, THUMBNAIL) for part in parts if isinstance(part, ImagePart)), None)
