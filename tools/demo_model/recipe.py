"""How the shipped checkpoint was trained, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from tools.demo_model.batches import Curriculum

__all__ = ["Recipe", "Stage"]


@dataclass(frozen=True)
class Stage:
    """One of the two stages of training, one cosine cycle of the learning rate each."""

    steps: int
    scenes: int  # a step
    peak: float  # learning rate at the top of the cycle
    warmup: float  # share of the steps in which the rate rises


@dataclass(frozen=True)
class Recipe:
    """How the shipped checkpoint was trained.

    First the vision tower alone learns to tell digits and colours, through a linear head that is thrown away
    afterwards, on distortions that grow from none. From pixels to sentences at once, this model sits at
    chance on digits for over a thousand steps.
    """

    eyes: Stage = Stage(steps=3000, scenes=32, peak=2.5e-3, warmup=0.15)
    whole: Stage = Stage(steps=6000, scenes=24, peak=1.5e-3, warmup=0.1)
    ease: float = 0.2  # share of the first stage in which distortions grow to their strength
    settle: float = 0.2  # share of the second stage, its end, in which they are halved
    decay: float = 0.05  # of the weights, AdamW
    clip: float = 1.0  # norm of the gradient
    yes_no: float = 2.0  # weight of the loss on "same" and "exists", one token among many and learnt last
    seed: int = 0
    curriculum: Curriculum = field(default_factory=Curriculum)
