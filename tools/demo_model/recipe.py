"""Training hyperparameters of the shipped checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field

from tools.demo_model.batches import Curriculum

__all__ = ["Descent", "FormRecipe", "Recipe", "Stage"]


@dataclass(frozen=True)
class Stage:
    """One of the two training stages, each with one cosine learning rate cycle."""

    steps: int
    scenes: int  # per step
    peak: float  # peak learning rate
    warmup: float  # share of the steps with rising learning rate


@dataclass(frozen=True)
class Descent:
    """What is the same in every stage."""

    decay: float = 0.05  # weight decay, AdamW
    clip: float = 1.0  # gradient norm
    seed: int = 0


@dataclass(frozen=True)
class Recipe(Descent):
    """How the shipped checkpoint was trained.

    First the vision tower alone learns to classify digits and colours, through a linear head that is discarded
    afterwards, on distortions that increase from none. Trained end to end from the start, this model stays at
    chance on digits for over a thousand steps.
    """

    eyes: Stage = Stage(steps=3000, scenes=32, peak=2.5e-3, warmup=0.15)
    whole: Stage = Stage(steps=6000, scenes=24, peak=1.5e-3, warmup=0.1)
    ease: float = 0.2  # share of the first stage in which distortions ramp up to full strength
    settle: float = 0.2  # final share of the second stage, in which they are halved
    yes_no: float = 2.0  # loss weight of "same" and "exists": one token among many, and learnt last
    curriculum: Curriculum = field(default_factory=Curriculum)


@dataclass(frozen=True)
class FormRecipe(Descent):
    """How the shipped checkpoint learnt to answer with JSON."""

    stage: Stage = Stage(steps=320, scenes=16, peak=1.5e-3, warmup=0.1)
    curriculum: Curriculum = field(default_factory=Curriculum)
