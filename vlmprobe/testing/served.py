"""A served model beside the same one in this process: what both are asked, and the numbers of the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from numbers import Real
from typing import Any

import numpy as np
import torch

from vlmprobe.engines.serving import ServedEngine
from vlmprobe.errors import GenerationOptionError, VlmprobeError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.probe import Probe
from vlmprobe.results.result import Result
from vlmprobe.testing.report import SkipCheck, versions
from vlmprobe.testing.subject import Subject, picture
from vlmprobe.testing.tolerance import log_softmax

__all__ = ["GREEDY", "NEW", "QUESTIONS", "Served"]

NEW = 12  # tokens of an answer
GREEDY: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
QUESTIONS = {
    "question": ("What is in the picture?", ()),
    "count": ("Count from one to five.", ()),
    "chinese": ("请用中文写一句话，并加上一个表情符号。", ()),
    "picture": ("What is in the picture?", ((1, 112, 112),)),
    "wide picture": ("Describe the picture in one sentence.", ((2, 112, 84),)),
}


class Served:
    """A served model, and the same one here. Answers that several checks need are asked for once."""

    def __init__(self, served: Probe, local: Probe, tolerance: float, image_tolerance: float) -> None:
        if not isinstance(getattr(served, "engine", None), ServedEngine):
            raise TypeError(f"the first probe must be one of a server (vlmprobe.connect), not {served!r}")
        for name, value in (("tolerance", tolerance), ("image_tolerance", image_tolerance)):
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < 100:
                raise GenerationOptionError(f"{name} is a difference in nats, above 0, not {value!r}")
        self.probe, self.local = served, local
        self.engine: ServedEngine = served.engine  # type: ignore[assignment]
        self.here = Subject(local)
        self.tolerances = float(tolerance), float(image_tolerance)
        self._answers: dict[str, Result] = {}
        self._logits: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}

    @property
    def meta(self) -> dict[str, Any]:
        """The meta record of a report."""
        known = self.probe.meta
        return {
            **{name: known.get(name) for name in ("model", "engine", "engine_version", "url")},
            "against": self.local.meta.get("model"),
            "tolerances": dict(zip(("text", "image"), self.tolerances, strict=True)),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
        }

    @property
    def names(self) -> list[str]:
        """The questions that both can be asked."""
        return [name for name in QUESTIONS if self.engine.abilities.images or not QUESTIONS[name][1]]

    def tolerance(self, name: str) -> float:
        """The greatest allowed difference of a log-probability in the answer to a question."""
        return self.tolerances[bool(QUESTIONS[name][1])]

    def asked(self, name: str) -> dict[str, Any]:
        """A question and its image, as arguments of a probe."""
        question, images = QUESTIONS[name]
        return {"question": question, "image": picture(*images[0]) if images else None}

    def answer(self, name: str) -> Result:
        """The greedy answer of the server."""
        if name not in self._answers:
            self._answers[name] = self.probe.generate(**self.asked(name), **GREEDY)
        return self._answers[name]

    def ids(self, name: str, result: Result) -> list[int]:
        """The ids of an answer, up to the first that is not known.

        Raises:
            SkipCheck: if the engine gives none and the texts of its tokens do not tell them.
        """
        if result.output.ids is not None:
            found = result.output.ids.tolist()
            return found[: found.index(-1)] if -1 in found else found
        with suppress(VlmprobeError):
            ids = self.local.engine.answer_ids(self.conversation(name), result.text)  # type: ignore[attr-defined]
            if self.here.adapter.tokenizer.batch_decode([[each] for each in ids]) == result.output.tokens[: len(ids)]:
                return list(ids)
        raise SkipCheck("the engine sends no ids, and the texts of its tokens are not those of the text tokenised here")

    def conversation(self, name: str) -> Conversation:
        """A question as the local model reads it."""
        return Conversation.build(**dict(zip(("prompt", "image"), self.asked(name).values(), strict=True)))

    def logits(self, name: str, ids: Sequence[int]) -> np.ndarray:
        """float64 [T, V]: from which the local model's own forward draws each of these ids after a question."""
        key = name, tuple(ids)
        if key not in self._logits:
            adapter = self.here.adapter
            inputs = adapter.encode([self.conversation(name)]).inputs
            if len(ids) > 1:
                inputs = adapter.extend(inputs, torch.tensor([list(ids[:-1])]))
            rows = self.here.forward(self.here.on_device(dict(inputs))).logits[0][-len(ids) :]
            self._logits[key] = rows.double().cpu().numpy()
        return self._logits[key]

    def own(self, name: str, ids: Sequence[int]) -> np.ndarray:
        """float64 [T, V]: the log-probabilities of these rows."""
        return log_softmax(self.logits(name, ids))
