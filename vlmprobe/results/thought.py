"""``Thought``: what a model wrote before its answer, with a confidence of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmprobe.display.view import counted, least_sure, percent
from vlmprobe.results.document import finite, token_rows
from vlmprobe.results.table import TokenTable

__all__ = ["BUDGET", "CLOSED", "STOPPED", "Thought"]

# How a thought ended: the model closed it; its tokens were used up; the model ended its whole answer within it.
CLOSED, BUDGET, STOPPED = "closed", "budget", "stopped"
HEAD = "thought."  # of the names of saved arrays
TOLD = {BUDGET: "cut at its budget", STOPPED: "ended without an answer"}


@dataclass(frozen=True, eq=False, repr=False)
class Thought:
    """A thought of T tokens, after which an answer was scored."""

    text: str  # without the marks around it
    output: TokenTable  # one row per token that the model drew, the mark that ends the thought included
    ended: str  # "closed" by the model, "budget" or "stopped"
    opening: str  # text between prompt and thought that was put there; empty if the prompt, or the model, opens it
    closing: str  # text between the last token drawn and the answer that was put there

    def __len__(self) -> int:
        return len(self.output)

    @property
    def cut(self) -> bool:
        """Whether the budget cut it."""
        return self.ended == BUDGET

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of its tokens, nats; NaN without any."""
        return float(-np.log(self.output.perplexity))

    @property
    def mean_confidence(self) -> float:
        """Mean probability of its tokens, geometric, as that of a :class:`~vlmprobe.Result`."""
        return 1 / self.output.perplexity

    @property
    def least_sure(self) -> int | None:
        """The row of ``output`` with the least likely token; None without a probability."""
        return int(np.nanargmin(self.output.logprobs)) if self.output.scored.any() else None

    @property
    def told(self) -> str:
        """How long it is and how sure: ``"thought of 57 tokens, 83.1% per token, least sure 'not' 12.0%"``."""
        parts = [f"thought of {counted(len(self), 'token')}"]
        parts += [TOLD[self.ended]] if self.ended in TOLD else []
        if worst := least_sure(self.output)[:1]:
            parts += [f"{percent(self.mean_confidence)} per token", f"least sure {worst[0][1]!r} {worst[0][2]}"]
        return ", ".join(parts)

    @property
    def short(self) -> str:
        """How long it is: ``"57 tokens of thought"``."""
        said = f"{counted(len(self), 'token')} of thought"
        return f"{said}, {TOLD[self.ended]}" if self.ended in TOLD else said

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return finite(
            {
                "text": self.text,
                "ended": self.ended,
                "opening": self.opening,
                "closing": self.closing,
                "mean_logprob": self.mean_logprob,
                "mean_confidence": self.mean_confidence,
                "tokens": token_rows(self.output),
            }
        )

    def parts(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and a document, to be saved; :meth:`from_parts` reads them."""
        columns, rest = self.output.to_parts()
        texts = {name: getattr(self, name) for name in ("text", "ended", "opening", "closing")}
        return {f"{HEAD}{name}": array for name, array in columns.items()}, texts | {"output": rest}

    @classmethod
    def from_parts(cls, arrays: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> Thought:
        """From what :meth:`parts` gave, among other arrays."""
        own = {name.removeprefix(HEAD): array for name, array in arrays.items() if name.startswith(HEAD)}
        texts = {name: str(document[name]) for name in ("text", "ended", "opening", "closing")}
        return cls(output=TokenTable.from_parts(own, document["output"]), **texts)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        shown = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        return f"Thought({shown!r}, {self.told.removeprefix('thought of ')})"
