"""Renders the model card of a demo checkpoint from its evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tools.demo_model.evaluate import Evaluation, summary
from tools.demo_model.recipe import FormRecipe, Recipe

__all__ = ["Run", "card", "forms_card"]

EVALUATED = 500  # scenes of each strength, of the model that answers with JSON
_ASKED = {
    "describe": "Describe the picture. (whole sentence right)",
    "digit": "Which digit is on the left? (or right)",
    "colour": "What colour is the digit on the left? (or right)",
    "same": "Are the two digits the same? (half are)",
    "exists": "Is there a seven? (half are there)",
    "all": "all together",
}


@dataclass(frozen=True)
class Run:
    """Facts about one training run that are not in the recipe."""

    parameters: int
    bytes: int  # of model.safetensors
    minutes: float  # wall time
    cpu_minutes: float  # CPU time over all threads
    threads: int
    versions: str


def _figure(value: float) -> str:
    return "none wrong" if math.isnan(value) else f"{value:.3f}"


def card(recipe: Recipe, run: Run, evaluation: Evaluation) -> str:
    """The text of README.md, in Markdown."""
    rows = "\n".join(
        f"| {_ASKED[kind]} | {number:,} | {100 * accuracy:.1f}% | {_figure(area)} | {error:.3f} |"
        for kind, number, accuracy, area, error in summary(evaluation)
    )
    scenes = len(evaluation.of("describe")[0])
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
license: apache-2.0
language: en
---

# The embedded model of vlmprobe

A vision-language model small enough to ship in a wheel ({run.parameters:,} parameters, {run.bytes / 1e6:.1f} MB,
float32) and real enough to probe: `vlmprobe.load("demo")`. It is an `InternVLForConditionalGeneration` of
transformers, trained from random weights, and answers questions about images of two handwritten digits, one left
and one right, each in one of seven colours.

## What it was trained on

The handwriting is the 1,797 samples (8 x 8 pixels, 13 writers) that scikit-learn bundles: the test split of *Optical
Recognition of Handwritten Digits* (E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning Repository, CC BY 4.0).
1,400 samples are for training and 397 for testing, split once by sample; a writer may be in both. Training images
are shifted, scaled, rotated, sheared, warped and overlaid with noise.

A few training scenes hide a digit, replace the image with noise or come without an image, and keep their answers.
So the model has learnt to be unsure where there is nothing to see.

## Evaluation

On {scenes:,} scenes of test digits only, asked in the plain wording, greedy answers compared word by word. Confidence
is the probability of the whole answer, including its end token. AUROC is the probability that a right answer is more
confident than a wrong one; ECE is the expected calibration error over 15 bins of equal width.

| question | answers | accuracy | AUROC | ECE |
|---|---|---|---|---|
{rows}

The digits of a scene are drawn independently; "Are the two digits the same?" is measured on separate scenes. All
scenes are made from the same 397 test samples, so the figures on digits have a standard error of about 0.7 points.
To reproduce: `python -m tools.demo_model.evaluate`.

## Training

`python -m tools.demo_model.train --seed {recipe.seed}`, in two stages, AdamW with one cosine cycle each. First the
vision tower learns digits and colours through a linear head that is discarded ({recipe.eyes.steps:,} steps of
{recipe.eyes.scenes} scenes, peak rate {recipe.eyes.peak:g}); then the whole model learns to answer
({recipe.whole.steps:,} steps of {recipe.whole.scenes} scenes with {2 + recipe.curriculum.others} questions each, peak
rate {recipe.whole.peak:g}, loss on answer tokens only). It took {run.minutes:.0f} minutes on {run.threads} CPU
threads, {run.cpu_minutes:.0f} minutes of CPU time ({run.versions}). The same seed gives the same weights on the same
machine; elsewhere they differ by rounding.

## Limitations

It knows the questions above, a few other wordings of each, and nothing else: any other question gets one of these
answers, sometimes with high confidence. Any image is resized to 32 x 32 pixels; anything but two coloured digits on a
dark background is out of distribution. It is for learning, tests and demonstrations.
"""


def forms_card(recipe: FormRecipe, run: Run, measured: Mapping[float, Mapping[str, tuple[float, float, float]]]) -> str:
    """The text of README.md of the model that answers with JSON, in Markdown.

    Args:
        recipe: hyperparameters.
        run: of the training.
        measured: by the strength of distortion and by field, the share of right fields, the AUROC of their probability,
            and its calibration error.
    """
    rows = "\n".join(
        f"| {strength:g} | `{path}` | {100 * accuracy:.1f}% | {_figure(area)} | {error:.3f} |"
        for strength, fields in measured.items()
        for path, (accuracy, area, error) in fields.items()
    )
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
license: apache-2.0
language: en
---

# The embedded model of vlmprobe that answers with JSON

The [embedded model](../checkpoint/README.md) ({run.parameters:,} parameters, {run.bytes / 1e6:.1f} MB, float32), taught
one more answer: `vlmprobe.load("demo-forms")`. Asked to "Describe the picture as JSON.", it writes
`{{"left": "nine", "right": "two"}}`.

## Evaluation

On {EVALUATED:,} held-out scenes of each strength (0 as written, 2 about the limit of legibility, beyond the range of
the training), greedy answers. The confidence of a field is the probability of its value's tokens. AUROC is the
probability that a right field is more confident than a wrong one; ECE is the expected calibration error over 15 bins of
equal width.

| strength | field | right | AUROC | ECE |
|---|---|---|---|---|
{rows}

## Training

`python -m tools.demo_model.forms --seed {recipe.seed}`: from the weights of the demo model, whose vision tower stays as
it is, {recipe.stage.steps:,} steps of {recipe.stage.scenes} scenes of the training samples, AdamW with one cosine
cycle, peak rate {recipe.stage.peak:g}, loss on answer tokens only. It took {run.minutes:.0f} minutes on {run.threads}
CPU thread(s) shared with other work, {run.cpu_minutes:.1f} minutes of CPU time ({run.versions}).

## Limitations

It knows this one question in three wordings, and has forgotten how to answer others. Any image is resized to 32 x 32
pixels. It is for learning, tests and demonstrations.
"""
