"""Did it look? The same answer with another picture: what the picture was worth to every token.

The tokens of one answer are scored after the real prompt and after prompts whose picture is blank, blurred, another
one, covered in one place, or left out. What a token loses is what the picture told the model about it. Each variant
encodes its picture once and runs its prompt once.

What this cannot show: a token that loses nothing was not necessarily invented. The words before it may decide it
already, the picture may say what the model expected anyway, and a variant may keep what matters (a blurred picture
keeps its colours). A token that loses much was drawn from the picture, and may still be wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.Image import Image

from vlmprobe.analysis.pictures import Cover, cells, covered, exchanged, variant
from vlmprobe.engines.answer_ids import answer_ids, require_no_options
from vlmprobe.engines.base import ONE_STEP, Options, ScoresIds, require
from vlmprobe.errors import CapabilityError, MessageError, ResultError
from vlmprobe.inputs.images import THUMBNAIL, thumbnail
from vlmprobe.inputs.messages import Conversation, Prompt
from vlmprobe.results.frame import data_frame
from vlmprobe.results.result import Result
from vlmprobe.results.table import TokenTable

if TYPE_CHECKING:
    from vlmprobe.probe import Probe

__all__ = ["Contrast", "contrast"]

BATCH = 8  # variants that run together, where the model's numbers stay those of single calls


@dataclass(frozen=True, eq=False)
class Contrast:
    """One answer of T tokens with its picture and with V others in its place. Numbers in nats."""

    answer: TokenTable  # T rows, with the real picture
    names: list[str]  # [V], what was asked about in its place
    tables: list[TokenTable]  # [V] of T rows
    regions: np.ndarray | None = None  # float64 [rows, columns, T], what covering each cell costs each token
    picture: Image | None = None  # the real one, reduced for display
    pictures: list[Image | None] = field(default_factory=list)  # [V], likewise; None where there was none
    meta: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def gain(self) -> np.ndarray:
        """float64 [V, T]: log-probability of each token with the picture, less that with each variant."""
        return self.answer.logprobs.astype(np.float64) - self._others

    @cached_property
    def entropy_drop(self) -> np.ndarray:
        """float64 [V, T]: entropy with each variant, less that with the picture: how far the picture settled it."""
        others = np.array([table.entropy for table in self.tables], dtype=np.float64).reshape(len(self.tables), -1)
        return others - self.answer.entropy

    @cached_property
    def pmi(self) -> np.ndarray:
        """float64 [T]: pointwise mutual information of each token and the picture, given the prompt and what was said.

        ``log p(token | picture, text) - log p(token | text)``, where the second is the mixture of the variants: they
        stand for the pictures that might have been there, equally likely before anything was said, and weighed by how
        well each explains the words so far. So the column sums to the information of the whole answer. With one
        variant it is ``gain``.
        """
        if not self.tables:
            raise ResultError("There is no variant to compare with: give against=.")
        others = self._others
        before = np.cumsum(np.nan_to_num(others), axis=1)
        before = np.concatenate([np.zeros((len(others), 1)), before[:, :-1]], axis=1)
        with np.errstate(invalid="ignore"):  # a token without a log-probability stays NaN
            mixture = np.logaddexp.reduce(before + others, axis=0) - np.logaddexp.reduce(before, axis=0)
        return self.answer.logprobs.astype(np.float64) - mixture

    def unsupported(self, below: float = 0.1, *, decided: float = 0.9) -> np.ndarray:
        """The rows of text tokens that the picture did not support: a hint at what may be made up, no proof.

        Args:
            below: nats; listed are tokens whose ``pmi`` is smaller (0.1: the picture made it at most a tenth likelier).
            decided: tokens at least so probable without the picture are left out: the words before them leave no room
                for a picture to add anything (function words, ends of words). So is an invention that the model takes
                for granted; 1 lists those too.

        Returns:
            int64 [U], ascending.
        """
        without = np.exp(self.answer.logprobs.astype(np.float64) - self.pmi)
        text = np.array([kind == "text" for kind in self.answer.kinds], dtype=bool)
        with np.errstate(invalid="ignore"):
            return np.flatnonzero(text & (self.pmi < below) & ((without < decided) | (decided >= 1)))

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame``, one row per token: logprob, and gain and entropy drop per variant, nats."""
        columns: dict[str, Any] = {"token": self.answer.tokens, "logprob": self.answer.logprobs}
        if not self.tables:
            return data_frame(columns)
        columns["pmi"] = self.pmi
        for place, name in enumerate(self.names):
            columns |= {f"gain {name}": self.gain[place], f"entropy drop {name}": self.entropy_drop[place]}
        columns["unsupported"] = np.isin(np.arange(len(self.answer)), self.unsupported())
        return data_frame(columns)

    def plot(self, ax: Any = None) -> Any:
        """What the image was worth to each token, as bars; unsupported tokens are marked. Returns the axes."""
        from vlmprobe.display.plots.contrast_and_lens import draw_gains

        rows = np.flatnonzero(~np.isnan(self.pmi))
        tokens = [self.answer.tokens[row] for row in rows]
        several = {name: self.gain[place, rows] for place, name in enumerate(self.names)} if len(self.names) > 1 else {}
        return draw_gains(tokens, self.pmi[rows], np.isin(rows, self.unsupported()), several, ax)

    def plot_regions(self, row: int | slice | None = None, ax: Any = None, *, limit: float | None = None) -> Any:
        """What each region was worth, drawn over the image. Returns the axes.

        Args:
            row: of the answer: one token, or several whose worth is added; all where None.
            ax: axes to draw on.
            limit: nats of the brightest shade, for plots that are to be compared; the highest worth where None.

        Raises:
            ResultError: for a contrast without regions, or a token that does not exist.
        """
        from vlmprobe.display.plots.contrast_and_lens import draw_regions

        if self.regions is None or self.picture is None:
            raise ResultError("This contrast has no regions: call contrast(..., regions=(rows, columns)).")
        count = len(self.answer)
        if isinstance(row, (int, np.integer)):
            if not -count <= row < count:
                raise ResultError(f"There is no token {row}: the answer has {count}.")
            row = slice(int(row) % count, int(row) % count + 1)
        rows = np.arange(count)[row or slice(None)]
        title = "".join(self.answer.tokens[place] for place in rows)
        return draw_regions(np.nansum(self.regions[:, :, rows], axis=-1), self.picture, title, ax, limit=limit)

    @property
    def _others(self) -> np.ndarray:
        return np.array([table.logprobs for table in self.tables], dtype=np.float64).reshape(len(self.tables), -1)

    def __repr__(self) -> str:
        text = "".join(self.answer.tokens)[:60]
        worth = f": {np.nansum(self.pmi):.2f} nats" if self.tables else ""
        return f"Contrast({text!r} against {', '.join(self.names) or 'regions'}{worth})"


def contrast(
    probe: Probe,
    question: Prompt,
    /,
    image: Any = None,
    *,
    answer: str | Result | Sequence[int] | None = None,
    against: Any = "blank",
    regions: int | tuple[int, int] | None = None,
    cover: Cover = "blank",
    which: int | None = None,
    alternatives: int = 10,
    **generation: Any,
) -> Contrast:
    """Compare an answer's tokens with the picture and with others in its place.

    Args:
        probe: whose model is asked.
        question, image: as in :meth:`Probe.generate`.
        answer: to look at: a text, a result of this very question, or token ids; generated where None.
        against: what to put in the picture's place: ``"blank"`` (its mean colour), ``"blur"``, ``"noise"``,
            ``"diffused"``, ``"none"`` (no picture at all), an image, a list of these, or a mapping of names to them.
        regions: rows and columns of a grid (or one number for both); each cell is covered once.
        cover: how: ``"blank"``, ``"blur"``, ``"noise"``, or a colour (r, g, b).
        which: number of the picture to exchange where there are several; all where None.
        alternatives: K of the tables.
        **generation: as in :meth:`Probe.generate`, where the answer is generated.

    Raises:
        CapabilityError: without a picture; for a model that needs one and ``"none"``; where the engine cannot score a
            given answer.
        MessageError: for an unknown variant, or an answer that merges with the end of the prompt.
    """
    conversation = Conversation.build(question, image)
    if not conversation.images:
        raise CapabilityError("There is no picture to contrast: pass image=, or messages with a picture in them.")
    places = list(range(len(conversation.images))) if which is None else [which]
    exchanged(conversation, dict.fromkeys(places))  # refuses a picture that does not exist
    changed = {
        name: {place: variant(conversation.images[place], each) for place in places}
        for name, each in _named(against).items()
    }
    grid = (regions, regions) if isinstance(regions, int) else regions
    boxes = []
    if grid is not None:
        if len(places) > 1:
            raise CapabilityError(f"regions are of one picture, and there are {len(places)}: say which=0, 1, ...")
        picture = conversation.images[places[0]]
        boxes = [(row, column, covered(picture, box, cover)) for row, column, box in cells(picture.size, grid)]
    asked = [exchanged(conversation, pictures) for pictures in changed.values()]
    asked += [exchanged(conversation, {places[0]: each}) for _, _, each in boxes]
    options = Options(alternatives=alternatives, generation=ONE_STEP)
    probe.engine.check(asked, options)
    require(probe.engine, ScoresIds)
    table, meta = _answer(probe, conversation, answer, options, generation)
    tables = _scored(probe, asked, table.ids.tolist(), options)
    worth = None
    if grid is not None:
        worth = np.full((*grid, len(table)), np.nan)
        for (row, column, _), each in zip(boxes, tables[len(changed) :], strict=True):
            worth[row, column] = table.logprobs.astype(np.float64) - each.logprobs
    shown = [pictures[places[0]] for pictures in changed.values()]
    return Contrast(
        answer=table,
        names=list(changed),
        tables=tables[: len(changed)],
        regions=worth,
        picture=thumbnail(conversation.images[places[0]], THUMBNAIL),
        pictures=[None if each is None else thumbnail(each, THUMBNAIL) for each in shown],
        meta={**probe.meta, "question": conversation.question, **meta},
    )


def _answer(
    probe: Probe, conversation: Conversation, answer: Any, options: Options, generation: Mapping[str, Any]
) -> tuple[TokenTable, dict[str, Any]]:
    """The table of the answer after the real prompt."""
    if answer is None:
        asked: Any = conversation
        result = probe.generate(asked, prompt=False, alternatives=options.alternatives, **generation)
        return result.output, result.meta
    require_no_options(generation, "The answer is given")
    ids = answer_ids(probe.engine, conversation, answer)
    if isinstance(answer, Result):
        return answer.output, answer.meta
    return _scored(probe, [conversation], ids, options)[0], {}


def _scored(probe: Probe, asked: Sequence[Conversation], ids: list[int], options: Options) -> list[TokenTable]:
    """The tables of the answer after each prompt, those with equally many pictures in batches."""
    size = probe.engine.batch_size(BATCH, options)
    tables: list[TokenTable] = []
    batch: list[Conversation] = []
    for each in asked:
        if batch and (len(batch) == size or len(each.images) != len(batch[0].images)):
            tables += probe.engine.score_ids(batch, ids, options)  # type: ignore[attr-defined]
            batch = []
        batch.append(each)
    if batch:
        tables += probe.engine.score_ids(batch, ids, options)  # type: ignore[attr-defined]
    return tables


def _named(against: Any) -> dict[str, Any]:
    if against is None:
        return {}
    if isinstance(against, Mapping):
        return {str(name): each for name, each in against.items()}
    listed = list(against) if isinstance(against, (list, tuple)) else [against]
    named: dict[str, Any] = {}
    for place, each in enumerate(listed):
        name = each if isinstance(each, str) and len(each) <= 40 else f"picture {place}"
        if name in named:
            raise MessageError(f"The variant {name!r} is given twice.")
        named[name] = each
    return named
