"""What a probe returns: ``Result`` of a generation, ``Scores`` of candidates. Frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL.Image import Image

from vlmprobe.errors import ResultError
from vlmprobe.results.bounds import Bounded, open_mass
from vlmprobe.results.choices import StaysReadOnly, read_only
from vlmprobe.results.frame import DataFrame, data_frame, stacked
from vlmprobe.results.nested import disjoint
from vlmprobe.results.saved import Saved, pack, table_of, unpack
from vlmprobe.results.table import Ids, TokenTable

if TYPE_CHECKING:
    from vlmprobe.display.shown import ShownResult, ShownScores
    from vlmprobe.results.choices import Choices

__all__ = ["Result", "Scores"]


@dataclass(frozen=True, eq=False)
class Result(Saved, StaysReadOnly):
    """The answer to one request, with statistics of every token of prompt and answer."""

    text: str  # the answer, special tokens removed
    prompt: TokenTable | None  # one row per prompt token, one per image; None with prompt=False
    output: TokenTable  # one row per generated token, the end token included
    input_ids: Ids  # int64 [S], the prompt in the model's own sequence, image placeholders included
    meta: dict[str, Any] = field(default_factory=dict)  # model, adapter, dtype, device, versions, options, timings, ...
    images: tuple[Image, ...] = ()  # the input images, downscaled for display

    @property
    def finish_reason(self) -> str:
        """``"stop"`` (an end token or stop string), or ``"length"`` (``max_new_tokens`` was reached)."""
        return str(self.meta["finish_reason"])

    @property
    def tokens(self) -> list[str]:
        """[T] the texts of the answer's tokens: ``output.tokens``."""
        return self.output.tokens

    @property
    def logprobs(self) -> np.ndarray:
        """float32 [T], nats: the log-probabilities of the answer's tokens: ``output.logprobs``."""
        return self.output.logprobs

    @property
    def confidence(self) -> float:
        """Probability of the whole answer given the prompt: ``exp`` of the sum of the output's log-probabilities.

        It falls with every token, to 1e-16 and less for a long answer; :attr:`mean_confidence` does not. NaN if the
        engine gives only a bound for one of them.
        """
        return float(np.exp(self.output.logprob))

    @property
    def mean_confidence(self) -> float:
        """Mean probability of the answer's tokens, geometric: ``exp`` of the mean of their log-probabilities.

        NaN as :attr:`confidence`.
        """
        return 1 / self.output.perplexity

    @property
    def mass_allowed(self) -> float:
        """Of a constrained answer: probability of drawing only allowed tokens, had there been no constraint.

        The product of the column ``mass_allowed`` of ``output``; at each step the tokens before it are those of this
        answer. NaN without a constraint, and from an engine that does not give it.
        """
        mass = self.output.mass_allowed
        return float("nan") if mass is None else float(np.exp(np.log(mass[~np.isnan(mass)].astype(np.float64)).sum()))

    def top(self, k: int = 5) -> Choices:
        """The top alternatives at each step of the answer; see :meth:`TokenTable.top`."""
        return self.output.top(k)

    def plot(self, ax: Any = None, *, most: int = 40) -> Any:
        """Surprisal of each token of the answer; see :meth:`TokenTable.plot`. Returns the axes."""
        return self.output.plot(ax, most=most)

    def to_pandas(self, side: Literal["output", "prompt", "both"] = "output") -> DataFrame:
        """A ``pandas.DataFrame``, one row per token.

        Args:
            side: the tokens of the answer, of the prompt, or of both, the prompt first; a column ``side`` then tells
                which row is of which.

        Raises:
            ResultError: for the prompt of a result made with ``prompt=False``.
        """
        if side not in ("output", "prompt", "both"):
            raise ValueError(f"side must be 'output', 'prompt' or 'both', not {side!r}")
        if side == "output":
            return self.output.to_pandas()
        if self.prompt is None:
            raise ResultError("This result has no prompt side: it was made with prompt=False, or by a server.")
        if side == "prompt":
            return self.prompt.to_pandas()
        return stacked("side", {"prompt": self.prompt.to_pandas(), "output": self.output.to_pandas()})

    def __repr__(self) -> str:
        from vlmprobe.display.view import LONG, counted, least_sure, tiny

        shown = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        whole = f"{self.confidence:.3g}" if self.confidence else tiny(self.output.logprob)  # below what a float holds
        sure = f"confidence {whole}, {self.mean_confidence:.3f} per token"
        if len(self.output) >= LONG:
            sure += f", least sure {', '.join(f'{token!r} {p}' for _, token, p in least_sure(self.output))}"
        return f"Result({shown!r}, {counted(len(self.output), 'token')}, {sure})"

    def _document(self) -> dict[str, Any]:
        from vlmprobe.results.document import result_document

        return result_document(self)

    def _parts(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays: dict[str, np.ndarray] = {} if self.input_ids is None else {"input_ids": self.input_ids}
        document: dict[str, Any] = {"text": self.text, "meta": self.meta}
        if self.input_ids is None:
            document["input_ids"] = None
        for name in ("prompt", "output"):
            table = getattr(self, name)
            if table is not None:
                columns, document[name] = table.to_parts()
                arrays |= {f"{name}.{column}": array for column, array in columns.items()}
        return arrays | pack(self.images), document

    @classmethod
    def _from_parts(cls, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> Result:
        return cls(
            text=document["text"],
            prompt=table_of("prompt", arrays, document["prompt"]) if "prompt" in document else None,
            output=table_of("output", arrays, document["output"]),
            input_ids=arrays["input_ids"] if "input_ids" in arrays else document["input_ids"],
            meta=document["meta"],
            images=unpack(arrays),
        )


@dataclass(frozen=True, eq=False)
class Scores(Bounded, Saved, StaysReadOnly):
    """Log-probabilities of C candidate answers, each placed right after the prompt. The arrays are read-only."""

    candidates: list[str]  # [C]
    tables: list[TokenTable]  # [C], one row per candidate token
    boundaries: list[str | None]  # [C], what was done if the tokenizer merged across the boundary, else None
    meta: dict[str, Any] = field(default_factory=dict)
    images: tuple[Image, ...] = ()  # the input images, downscaled for display

    @cached_property
    def logprobs(self) -> np.ndarray:
        """float64 [C], nats: log-probability of each candidate, summed over all its tokens; NaN where one has none."""
        return read_only(np.array([table.logprobs.sum(dtype=np.float64) for table in self.tables]))

    @property
    def means(self) -> np.ndarray:
        """float64 [C], nats per token."""
        return self.logprobs / np.array([len(table) for table in self.tables])

    @property
    def per_byte(self) -> np.ndarray:
        """float64 [C], nats per UTF-8 byte of the candidate: comparable between tokenizers."""
        return self.logprobs / np.array([len(candidate.encode()) for candidate in self.candidates])

    @cached_property
    def probabilities(self) -> np.ndarray:
        """float64 [C]: softmax of ``logprobs`` over the candidates, so they sum to 1.

        A candidate that begins with another one (``"no idea"`` and ``"no"``) is part of it and never likelier: give
        both an end to compare them.

        A candidate without a log-probability (it contains an id beyond the head) is NaN and excluded.
        """
        if np.isnan(self.logprobs).all():
            return self.logprobs
        shifted = np.exp(self.logprobs - np.nanmax(self.logprobs))
        return read_only(shifted / np.nansum(shifted))

    @property
    def mass(self) -> float:
        """Probability that the answer begins with one of the candidates: how much of what the model would say they are.

        A candidate that begins with another one, token by token, is part of it and adds nothing, nor does one without a
        log-probability.
        """
        return float(np.nansum(np.exp(self.logprobs[disjoint(self.tables)])))

    @property
    def best(self) -> str:
        """The candidate with the greatest summed log-probability.

        Raises:
            ResultError: if none has one, or another one may be likelier (:attr:`decided`).
        """
        if np.isnan(self.logprobs).all():
            raise ResultError("no candidate has a log-probability: all hold ids beyond the model's head")
        if not self.decided:
            raise ResultError("a candidate that the engine does not list may be the likeliest: see logprob_bounds")
        return self.candidates[int(np.nanargmax(self.logprobs))]

    def to_pandas(self) -> DataFrame:
        """A ``pandas.DataFrame``, one row per candidate, in order: its log-probability (nats), its probability among
        the candidates, its mean per token and per UTF-8 byte (nats), and how many tokens it has; ``logprob_at_most``
        where only a bound is known of some."""
        columns = {
            "candidate": self.candidates,
            "logprob": self.logprobs,
            "probability": self.probabilities,
            "mean": self.means,
            "per_byte": self.per_byte,
            "tokens": [len(table) for table in self.tables],
        }
        return data_frame(columns | ({"logprob_at_most": self.logprob_bounds[:, 1]} if self.bounded else {}))

    def plot(self, ax: Any = None, *, most: int = 12) -> Any:
        """Probabilities among the candidates as bars, the likeliest on top. Returns the axes.

        Args:
            ax: axes to draw on.
            most: how many candidates to draw, the likeliest first; the others share one bar.
        """
        from vlmprobe.display.plots.scores import draw_scores

        return draw_scores(self, ax, most=most)

    def __repr__(self) -> str:
        order = np.argsort(-self.logprobs)[:3].tolist()
        shown = ", ".join(f"{self.candidates[place]!r} {self._share(place)}" for place in order)
        return f"Scores({shown}{', ...' if len(self.candidates) > 3 else ''})"

    def _open(self) -> tuple[np.ndarray, np.ndarray]:
        pairs = zip(self.candidates, self.tables, strict=True)
        found = [open_mass({text: table}, self.meta) for text, table in pairs]
        tail, other = np.array(found, dtype=np.float64).reshape(-1, 2).T
        return tail, other

    def _document(self) -> dict[str, Any]:
        from vlmprobe.results.document import scores_document

        return scores_document(self)

    def _parts(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays: dict[str, np.ndarray] = {}
        tables = []
        for place, table in enumerate(self.tables):
            columns, rest = table.to_parts()
            arrays |= {f"{place}.{column}": array for column, array in columns.items()}
            tables.append(rest)
        document = {"candidates": self.candidates, "boundaries": self.boundaries, "tables": tables, "meta": self.meta}
        return arrays | pack(self.images), document

    @classmethod
    def _from_parts(cls, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> Scores:
        return cls(
            candidates=document["candidates"],
            tables=[table_of(str(place), arrays, rest) for place, rest in enumerate(document["tables"])],
            boundaries=document["boundaries"],
            meta=document["meta"],
            images=unpack(arrays),
        )


if TYPE_CHECKING:  # mypy checks here that display can show both
    _SHOWN: tuple[type[ShownResult], type[ShownScores]] = (Result, Scores)
