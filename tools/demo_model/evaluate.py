"""Evaluate a demo checkpoint on held-out handwriting: ``python -m tools.demo_model.evaluate``.

Uses transformers only, so that its figures are independent of the probe.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from vlmprobe.demo import checkpoint as shipped
from vlmprobe.demo.scenes import Scene, held_out

__all__ = ["Answered", "Evaluation", "answer", "auroc", "ece", "measure"]

KINDS = ("describe", "digit", "colour", "same", "exists")


@dataclass(frozen=True)
class Answered:
    """One question, the model's answer, and its confidence."""

    kind: str
    question: str
    expected: str
    answer: str
    confidence: float  # probability of the whole answer, end token included: exp of the summed logprobs

    @property
    def correct(self) -> bool:
        """Whether the answer matches the expected one exactly."""
        return self.answer == self.expected


@dataclass(frozen=True)
class Evaluation:
    """Answers to many questions, and metrics over them."""

    answered: tuple[Answered, ...]

    def of(self, kind: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Confidence, float64 [N], and correctness, bool [N], of one kind of question, or of all."""
        chosen = [each for each in self.answered if kind in (None, each.kind)]
        return np.array([each.confidence for each in chosen]), np.array([each.correct for each in chosen], dtype=bool)

    def accuracy(self, kind: str | None = None) -> float:
        """Share of right answers; NaN if there are no answers."""
        correct = self.of(kind)[1]
        return float(correct.mean()) if len(correct) else float("nan")

    def auroc(self, kind: str | None = None) -> float:
        """See :func:`auroc`."""
        return auroc(*self.of(kind))

    def ece(self, kind: str | None = None) -> float:
        """See :func:`ece`."""
        return ece(*self.of(kind))


def auroc(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Probability that a right answer is more confident than a wrong one; ties count half.

    Args:
        confidence: float [N].
        correct: bool [N].

    Returns:
        The area under the ROC curve; NaN if all answers are right, or all are wrong.
    """
    right, wrong = confidence[correct], np.sort(confidence[~correct])
    if not len(right) or not len(wrong):
        return float("nan")
    below = np.searchsorted(wrong, right, side="left")
    up_to = np.searchsorted(wrong, right, side="right")
    return float((below + up_to).mean() / (2 * len(wrong)))


def ece(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error over ``bins`` of equal width (Guo et al. 2017); NaN if there are no answers."""
    if not len(confidence):
        return float("nan")
    place = np.clip((confidence * bins).astype(int), 0, bins - 1)
    gaps = [
        abs(confidence[place == each].mean() - correct[place == each].mean()) * (place == each).mean()
        for each in np.unique(place)
    ]
    return float(sum(gaps))


@torch.inference_mode()
def answer(
    model: Any, processor: Any, scenes: Iterable[Scene], *, kinds: Sequence[str] = KINDS, batch: int = 64
) -> list[Answered]:
    """Answer the questions of these kinds about every scene with greedy decoding, in batches of ``batch``."""
    asked = [(scene.picture, qa) for scene in scenes for qa in scene.questions if qa.kind in kinds]
    end, found = model.generation_config.eos_token_id, []
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": qa.question}]}]
            for image, qa in part
        ]
        inputs = processor.apply_chat_template(
            chats,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        out = model.generate(**inputs, do_sample=False, return_dict_in_generate=True, output_logits=True)
        written = out.sequences[:, inputs["input_ids"].shape[1] :]
        logprobs = torch.stack(out.logits, dim=1).double().log_softmax(-1).gather(-1, written[..., None])[..., 0]
        ended = (written == end).long().cumsum(-1) - (written == end).long() > 0
        confidence = logprobs.masked_fill(ended, 0.0).sum(-1).exp().tolist()
        texts = processor.batch_decode(written, skip_special_tokens=True)
        found += [
            Answered(qa.kind, qa.question, qa.answer, text, sure)
            for (_, qa), text, sure in zip(part, texts, confidence, strict=True)
        ]
    return found


def measure(model: Any, processor: Any, scenes: int, *, seed: int = 0) -> Evaluation:
    """Answers on ``scenes`` held-out scenes of independent digits, and on as many for "are they the same".

    Independent digits match in only one scene out of ten, so that question gets separate scenes in which half
    match; always answering "no" then scores 50%.
    """
    independent = [kind for kind in KINDS if kind != "same"]
    plain = answer(model, processor, held_out(scenes, seed=seed), kinds=independent)
    halves = answer(model, processor, held_out(scenes, seed=seed + 1, same=0.5), kinds=["same"])
    return Evaluation((*plain, *halves))


def summary(evaluation: Evaluation) -> list[tuple[str, int, float, float, float]]:
    """Rows of kind, number of answers, accuracy, AUROC and ECE; the last over all kinds."""
    rows: list[tuple[str, str | None]] = [*((kind, kind) for kind in KINDS), ("all", None)]
    return [
        (name, len(evaluation.of(kind)[0]), evaluation.accuracy(kind), evaluation.auroc(kind), evaluation.ece(kind))
        for name, kind in rows
    ]


def main(
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint folder; the shipped one by default.")] = None,
    scenes: Annotated[int, typer.Option(min=1, help="Number of held-out scenes.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the scenes.")] = 0,
) -> None:
    """Print accuracy, AUROC and calibration error on held-out handwriting."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = checkpoint or shipped()
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    evaluation = measure(model, AutoProcessor.from_pretrained(folder), scenes, seed=seed)
    table = Table("question", "answers", "accuracy", "AUROC", "ECE", title=f"{scenes} held-out scenes")
    for kind, number, accuracy, area, error in summary(evaluation):
        table.add_row(kind, str(number), f"{accuracy:.2%}", f"{area:.3f}", f"{error:.3f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
