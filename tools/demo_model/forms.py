"""Teach the demo model to answer with JSON: ``python -m tools.demo_model.forms --out DIR`` (a few minutes).

It starts from the shipped demo checkpoint, whose vision tower stays as it is; the rest learns one more answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import transformers
import typer
from rich.console import Console

import vlmprobe
from tools.demo_model.batches import pack, training_pictures
from tools.demo_model.card import EVALUATED, Run, forms_card
from tools.demo_model.evaluate import auroc, ece
from tools.demo_model.recipe import FormRecipe
from tools.demo_model.train import Trained, descend, loss_of
from vlmprobe.analysis.field_frame import field_frame
from vlmprobe.demo import checkpoint, sample_forms
from vlmprobe.demo.forms import WORDINGS, form_answer
from vlmprobe.demo.handwriting import samples, split
from vlmprobe.demo.scenes import QA, SIDES, draw_pairs

__all__ = ["main", "measure", "save", "train"]


def train(
    recipe: FormRecipe, console: Console | None = None, watch: Callable[[int, Any], None] | None = None
) -> Trained:
    """Train from the shipped weights. The same recipe on the same machine and threads gives the same weights.

    Args:
        recipe: hyperparameters.
        console: for the progress bar; standard output if None.
        watch: called after each step with the number of completed steps and the model, which it must not change.
    """
    folder, pool = checkpoint(), split().train
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).train()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model.model.vision_tower.requires_grad_(False)

    def loss_at(step: int) -> torch.Tensor:
        rng = np.random.default_rng([recipe.seed, 4, step])
        pairs, colours = draw_pairs(rng, pool, recipe.stage.scenes, None)
        asks = [
            [(QA("form", WORDINGS[0], form_answer((int(left), int(right)))), WORDINGS[rng.integers(len(WORDINGS))])]
            for left, right in samples()[1][pairs]
        ]
        pixels = training_pictures(rng, pairs, colours, replace(recipe.curriculum, hidden=0.0, noise=0.0))
        blind = rng.random(len(pairs)) < recipe.curriculum.blind
        return loss_of(model, pack(processor.tokenizer, asks, pixels, blind), 1.0)

    def look(done: int) -> None:
        if watch is not None:
            watch(done, model)

    losses = descend("answers", model, loss_at, recipe.stage, recipe, console, look)
    model.generation_config.max_new_tokens = 64
    return Trained(model.requires_grad_(True).eval(), processor, np.zeros(0, np.float32), losses)


def measure(model: Any, processor: Any, scenes: int, strength: float) -> dict[str, tuple[float, float, float]]:
    """Of each field of held-out scenes the share that is right, and AUROC and calibration error of its probability."""
    rows = sample_forms(scenes, strength=strength)
    probe = vlmprobe.wrap(model, processor)
    table = field_frame(probe.generate_many(rows, batch_size=64, prompt=False, progress=False), "gold")
    found = {}
    for path, part in table.groupby("path", sort=False):
        sure, right = part["at_least"].fillna(0.0).to_numpy(), part["correct"].to_numpy()
        if path in SIDES:
            found[str(path)] = (float(right.mean()), auroc(sure, right), ece(sure, right))
    return found


def save(out: Path, trained: Trained, recipe: FormRecipe, minutes: float, cpu_minutes: float) -> None:
    """Write the checkpoint with its model card, for which it is evaluated."""
    trained.model.save_pretrained(out)
    trained.processor.save_pretrained(out)
    run = Run(
        parameters=trained.model.num_parameters(),
        bytes=(out / "model.safetensors").stat().st_size,
        minutes=minutes,
        cpu_minutes=cpu_minutes,
        threads=torch.get_num_threads(),
        versions=f"torch {torch.__version__.partition('+')[0]}, transformers {transformers.__version__}",
    )
    measured = {each: measure(trained.model, trained.processor, EVALUATED, each) for each in (0.0, 2.0)}
    (out / "README.md").write_text(forms_card(recipe, run, measured), encoding="utf-8")


def main(
    out: Annotated[Path, typer.Option(help="Folder to write the checkpoint into.")] = Path("forms-checkpoint"),
    seed: Annotated[int, typer.Option(help="Seed of all scenes.")] = FormRecipe.seed,
) -> None:
    """Train, evaluate on held-out handwriting, and save with a model card."""
    console, recipe = Console(stderr=True), FormRecipe(seed=seed)
    began, cpu_began = time.monotonic(), time.process_time()
    trained = train(recipe, console)
    minutes, cpu_minutes = (time.monotonic() - began) / 60, (time.process_time() - cpu_began) / 60
    console.print(f"evaluating on {EVALUATED} held-out scenes of each strength")
    save(out, trained, recipe, minutes, cpu_minutes)
    console.print(f"wrote {out}; the results are in its README.md")


if __name__ == "__main__":
    typer.run(main)
