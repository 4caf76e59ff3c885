"""Image contrast: how much the image contributed to every token of an answer.

The tokens of one answer are scored after the real prompt and after prompts whose image is blank, blurred, another one,
masked in one place, or removed. What a token loses is what the image told the model about it. Each variant encodes its
image once and prefills its prompt once.

What this cannot show: a token that loses nothing is not necessarily hallucinated. The preceding text may already
determine it, the image may show what the model expected anyway, and a variant may keep what matters (a blurred image
keeps its colours). A token that loses much depends on the image, and may still be wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.Image import Image

from vlmprobe.analysis.image_variants import Cover, cells, covered, exchanged, variant
from vlmprobe.analysis.words import rows_of_text
from vlmprobe.display.overview import Kind, Overview, Viewed
from vlmprobe.display.view import nats
from vlmprobe.engines.answer_ids import answer_ids, require_no_options
from vlmprobe.engines.base import ONE_STEP, Options, ScoresIds, require
from vlmprobe.errors import CapabilityError, MessageError, ResultError, renamed
from vlmprobe.inputs.images import THUMBNAIL, thumbnail
from vlmprobe.inputs.messages import Conversation, Prompt
from vlmprobe.probe.request import with_meta
from vlmprobe.results.frame import DataFrame, data_frame
from vlmprobe.results.result import Result
from vlmprobe.results.table import TokenTable

if TYPE_CHECKING:
    from vlmprobe.probe import Probe

__all__ = ["Contrast", "contrast"]

BATCH = 8  # variants in one batch, if batching leaves the model's numbers unchanged


@dataclass(frozen=True, eq=False)
class Contrast(Viewed):
    """One answer of T tokens with its image and with V variants in its place. Numbers in nats."""

    answer: TokenTable  # T rows, with the real image
    names: list[str]  # [V], of the variants
    tables: list[TokenTable]  # [V] of T rows
    regions: np.ndarray | None = None  # float64 [rows, columns, T], what each token loses by masking each cell
    image: Image | None = None  # the real one, downscaled for display
    variants: list[Image | None] = field(default_factory=list)  # [V], likewise; None where there was none
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def picture(self) -> Image | None:
        """The former name of ``image``."""
        renamed("Contrast.picture", "Contrast.image")
        return self.image

    @property
    def pictures(self) -> list[Image | None]:
        """The former name of ``variants``."""
        renamed("Contrast.pictures", "Contrast.variants")
        return self.variants

    @cached_property
    def gain(self) -> np.ndarray:
        """float64 [V, T]: log-probability of each token with the image, minus that with each variant."""
        return self.answer.logprobs.astype(np.float64) - self._others

    @cached_property
    def entropy_drop(self) -> np.ndarray:
        """float64 [V, T]: entropy with each variant minus that with the image: uncertainty that the image removed."""
        others = np.array([table.entropy for table in self.tables], dtype=np.float64).reshape(len(self.tables), -1)
        return others - self.answer.entropy

    @cached_property
    def pmi(self) -> np.ndarray:
        """float64 [T]: pointwise mutual information of each token and the image, given the prompt and preceding tokens.

        ``log p(token | image, text) - log p(token | text)``, where the second is the mixture of the variants: they
        stand for the possible images, with a uniform prior, weighted by how well each explains the tokens so far. So
        the column sums to the information of the whole answer. With one variant it is ``gain``.
        """
        if not self.tables:
            raise ResultError("There is no variant to compare with: pass against=.")
        others = self._others
        before = np.cumsum(np.nan_to_num(others), axis=1)
        before = np.concatenate([np.zeros((len(others), 1)), before[:, :-1]], axis=1)
        with np.errstate(invalid="ignore"):  # a token without a log-probability stays NaN
            mixture = np.logaddexp.reduce(before + others, axis=0) - np.logaddexp.reduce(before, axis=0)
        return self.answer.logprobs.astype(np.float64) - mixture

    def unsupported(self, below: float = 0.1, *, decided: float = 0.9) -> np.ndarray:
        """The rows of text tokens that the image did not support: possible hallucinations, not proof.

        Args:
            below: nats; tokens with a smaller ``pmi`` are listed (0.1: the image made them at most a tenth likelier).
            decided: tokens at least this probable without the image are left out: the preceding text leaves nothing
                for an image to add (function words, word endings). So is a hallucination that the model takes for
                granted; 1 lists those too.

        Returns:
            int64 [U], ascending.
        """
        without = np.exp(self.answer.logprobs.astype(np.float64) - self.pmi)
        text = np.array([kind == "text" for kind in self.answer.kinds], dtype=bool)
        with np.errstate(invalid="ignore"):
            return np.flatnonzero(text & (self.pmi < below) & ((without < decided) | (decided >= 1)))

    def to_pandas(self) -> DataFrame:
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
        """Contribution of the image to each token, as bars; unsupported tokens are marked. Returns the axes."""
        from vlmprobe.display.plots.contrast_and_lens import draw_gains

        rows = np.flatnonzero(~np.isnan(self.pmi))
        tokens = [self.answer.tokens[row] for row in rows]
        several = {name: self.gain[place, rows] for place, name in enumerate(self.names)} if len(self.names) > 1 else {}
        return draw_gains(tokens, self.pmi[rows], np.isin(rows, self.unsupported()), several, ax)

    def plot_regions(self, row: int | slice | str | None = None, ax: Any = None, *, limit: float | None = None) -> Any:
        """Contribution of each region, drawn over the image. Returns the axes.

        Args:
            row: of the answer: one token, or several whose contributions are summed; all if None. A text is a token or
                a run of tokens that the answer has once, such as a word.
            ax: axes to draw on.
            limit: nats of the brightest shade, for plots to be compared; the highest contribution if None.

        Raises:
            ResultError: for a contrast without regions, or a token that does not exist or is not the only such one.
        """
        from vlmprobe.display.plots.contrast_and_lens import draw_regions

        if self.regions is None or self.image is None:
            raise ResultError("This contrast has no regions: call contrast(..., regions=(rows, columns)).")
        count = len(self.answer)
        if isinstance(row, str):
            row = rows_of_text(self.answer, row)
        if isinstance(row, (int, np.integer)):
            if not -count <= row < count:
                raise ResultError(f"There is no token {row}: the answer has {count}.")
            row = slice(int(row) % count, int(row) % count + 1)
        rows = np.arange(count)[row or slice(None)]
        title = "".join(self.answer.tokens[place] for place in rows)
        return draw_regions(np.nansum(self.regions[:, :, rows], axis=-1), self.image, title, ax, limit=limit)

    def _overview(self) -> Overview:
        """Each token with the image and with each variant, and the region that it loses most by."""
        count = len(self.answer)
        columns: dict[str, Kind] = {"token": "token"}
        cells: list[list[Any]] = [[token, p] for token, p in zip(self.answer.tokens, _exp(self.answer), strict=True)]
        rows: list[list[Any]] = [[cell] for cell in cells]
        figures = [("tokens", f"{count:,}", "of the answer")]
        if self.tables:
            unsupported = set(self.unsupported().tolist())
            columns |= {f"with {name}": "share" for name in self.names}
            columns |= {"worth of image": "number", "supported": "number"}
            for place, row in enumerate(rows):
                row += [float(_exp(table)[place]) for table in self.tables]
                row += [nats(float(self.pmi[place])), "no" if place in unsupported else ""]
            figures += [
                ("worth of the image", f"{nats(float(np.nansum(self.pmi)))} nats", "information about all tokens"),
                ("not supported", f"{len(unsupported):,}", "tokens that the image did not make likelier"),
            ]
        if self.regions is not None:
            columns |= {"region": "number", "worth of region": "number"}
            for place, row in enumerate(rows):
                row += _neediest(self.regions[:, :, place])
        images = [each for each in (self.image, *self.variants) if each is not None]
        return Overview(columns, rows, str(self.meta.get("question") or ""), figures, images)

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
    """Compare the probabilities of an answer's tokens with the image and with variants in its place.

    Args:
        probe: whose model is run.
        question, image: as in :meth:`Probe.generate`.
        answer: to analyse: a text, a result of this question about these images, or token ids; generated if None.
            The tokens of a result are scored anew, by the model as it is now.
        against: what replaces the image: ``"blank"`` (its mean colour), ``"blur"``, ``"noise"``, ``"diffused"``,
            ``"none"`` (no image at all), an image, a list of these, or a mapping of names to them.
        regions: rows and columns of a grid (or one number for both); each cell is masked once.
        cover: fill of a masked cell: ``"blank"``, ``"blur"``, ``"noise"``, or a colour (r, g, b).
        which: index of the image to replace if there are several; all if None.
        alternatives: K of the tables.
        **generation: as in :meth:`Probe.generate`, if the answer is generated.

    Raises:
        CapabilityError: without an image; for ``"none"`` with a model that needs one; if the engine cannot score a
            given answer.
        MessageError: for an unknown variant, an answer that merges with the end of the prompt, or a result of another
            prompt or of other images.
    """
    conversation = probe.conversation(question, image)
    if not conversation.images:
        raise CapabilityError("There is no image to contrast: pass image=, or messages with an image in them.")
    places = list(range(len(conversation.images))) if which is None else [which]
    exchanged(conversation, dict.fromkeys(places))  # rejects an image that does not exist
    changed = {
        name: {place: variant(conversation.images[place], each) for place in places}
        for name, each in _named(against).items()
    }
    grid = (regions, regions) if isinstance(regions, int) else regions
    boxes = []
    if grid is not None:
        if len(places) > 1:
            raise CapabilityError(f"regions are of one image, and there are {len(places)}: pass which=0, 1, ...")
        image = conversation.images[places[0]]
        boxes = [(row, column, covered(image, box, cover)) for row, column, box in cells(image.size, grid)]
    asked = [exchanged(conversation, images) for images in changed.values()]
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
    shown = [images[places[0]] for images in changed.values()]
    found = Contrast(
        answer=table,
        names=list(changed),
        tables=tables[: len(changed)],
        regions=worth,
        image=thumbnail(conversation.images[places[0]], THUMBNAIL),
        variants=[None if each is None else thumbnail(each, THUMBNAIL) for each in shown],
        meta=meta,
    )
    return with_meta(found, probe.meta, conversation)


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
    return _scored(probe, [conversation], ids, options)[0], {}


def _scored(probe: Probe, asked: Sequence[Conversation], ids: list[int], options: Options) -> list[TokenTable]:
    """The tables of the answer after each prompt, batched over prompts with equally many images."""
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


def _exp(table: TokenTable) -> np.ndarray:
    return np.exp(table.logprobs.astype(np.float64))


def _neediest(lost: np.ndarray) -> list[str]:
    """Row and column of the cell of the largest loss, and that loss, as text."""
    if np.isnan(lost).all():
        return ["", nats(float("nan"))]
    row, column = np.unravel_index(int(np.nanargmax(lost)), lost.shape)
    return [f"{row}, {column}", nats(float(lost[row, column]))]


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
