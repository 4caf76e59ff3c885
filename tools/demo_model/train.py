"""Train the demo model: ``python -m tools.demo_model.train --out DIR`` (under half an hour on two CPU cores)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import transformers
import typer
from einops import rearrange
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.nn import functional

from tools.demo_model.batches import Batch, draw_batch, training_pictures
from tools.demo_model.build import DIGIT_SCENES, WIDTH, build_model, build_processor, build_tokenizer
from tools.demo_model.recipe import Descent, Recipe, Stage
from vlmprobe.demo.drawing import COLOURS
from vlmprobe.demo.handwriting import DIGITS, samples, split
from vlmprobe.demo.scenes import draw_pairs

__all__ = ["Recipe", "Stage", "Trained", "loss_of", "main", "train"]


@dataclass(frozen=True)
class Trained:
    """Result of :func:`train`."""

    model: Any  # InternVLForConditionalGeneration, in evaluation mode
    processor: Any  # InternVLProcessor
    eyes: np.ndarray  # float32 [steps], loss of the first stage: digit plus colour, nats
    whole: np.ndarray  # float32 [steps], loss of the second stage: weighted mean over the answer tokens, nats


class Eyes(nn.Module):
    """A linear classifier on the vision tower: digit and colour of the left and of the right half."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.read = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(DIGITS) + len(COLOURS)))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits over digits [N, 2, 10] and over colours [N, 2, 7]."""
        patches = self.tower(pixel_values=pixels).last_hidden_state[:, 1:]
        halves = rearrange(
            patches, "n (row side column) width -> n side row column width", row=DIGIT_SCENES.grid, side=2
        )
        digits, colours = self.read(halves.mean((2, 3))).split([len(DIGITS), len(COLOURS)], dim=-1)
        return digits, colours


def loss_of(model: Any, batch: Batch, yes_no: float) -> torch.Tensor:
    """Mean cross-entropy of the answer tokens in nats, "same" and "exists" weighted by ``yes_no``."""
    logits = model(**batch.inputs).logits
    weights = torch.from_numpy(np.where(np.isin(batch.kinds, ("same", "exists")), yes_no, 1.0))
    weights = weights.float() * (batch.targets != -100)
    each = functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    return (each * weights.flatten()).sum() / weights.sum()


def train(
    recipe: Recipe, console: Console | None = None, watch: Callable[[str, int, Any], None] | None = None
) -> Trained:
    """Train from random weights. The same recipe on the same machine and threads gives the same weights.

    Args:
        recipe: hyperparameters.
        console: for the progress bars; standard output if None.
        watch: called after each step with the stage's name, its number of completed steps and the model, which it
            must not change.
    """
    tokenizer, pool, targets = build_tokenizer(), split().train, samples()[1]
    model = build_model(tokenizer, recipe.seed).train()
    shown = replace(recipe.curriculum, hidden=0.0, noise=0.0)  # a classifier cannot learn from what is not visible
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        eyes = Eyes(model.model.vision_tower)

    def eyes_loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([recipe.seed, 0, step])
        pairs, colours = draw_pairs(rng, pool, recipe.eyes.scenes, None)
        share = min(1.0, step / (recipe.ease * recipe.eyes.steps))
        digits, shades = eyes(training_pictures(rng, pairs, colours, shown.eased(share)))
        meant = torch.from_numpy(targets[pairs])
        return functional.cross_entropy(digits.flatten(0, 1), meant.flatten()) + functional.cross_entropy(
            shades.flatten(0, 1), torch.from_numpy(colours).flatten()
        )

    def whole_loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([recipe.seed, 1, step])
        settled = step >= (1 - recipe.settle) * recipe.whole.steps
        how = recipe.curriculum.eased(0.5) if settled else recipe.curriculum
        batch = draw_batch(rng, tokenizer, pool, recipe.whole.scenes, how)
        return loss_of(model, batch, recipe.yes_no)

    def look(stage: str) -> Callable[[int], None]:
        return lambda done: watch(stage, done, model) if watch is not None else None

    first = descend("vision tower", eyes, eyes_loss, recipe.eyes, recipe, console, look("eyes"))
    second = descend("whole model", model, whole_loss, recipe.whole, recipe, console, look("whole"))
    return Trained(model.eval(), build_processor(tokenizer), first, second)


def descend(
    title: str,
    module: nn.Module,
    loss_at: Callable[[int], torch.Tensor],
    stage: Stage,
    recipe: Descent,
    console: Console | None,
    look: Callable[[int], None],
) -> np.ndarray:
    """One stage of AdamW on ``module``; returns the loss at each step, float32 [steps]."""
    weights = [list(filter(chosen, module.parameters())) for chosen in (lambda w: w.ndim > 1, lambda w: w.ndim < 2)]
    optimiser = torch.optim.AdamW(
        [{"params": weights[0], "weight_decay": recipe.decay}, {"params": weights[1], "weight_decay": 0.0}],
        lr=stage.peak,
        betas=(0.9, 0.98),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, stage.peak, total_steps=stage.steps, pct_start=stage.warmup, cycle_momentum=False
    )
    losses = np.empty(stage.steps, dtype=np.float32)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}"), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(title, total=stage.steps, loss=float("nan"))
        for step in range(stage.steps):
            loss = loss_at(step)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), recipe.clip)
            optimiser.step()
            schedule.step()
            losses[step] = loss.item()
            look(step + 1)
            bar.update(task, advance=1, loss=float(losses[max(0, step - 49) : step + 1].mean()))
    return losses


def main(
    out: Annotated[Path, typer.Option(help="Folder to write the checkpoint into.")] = Path("demo-checkpoint"),
    seed: Annotated[int, typer.Option(help="Seed of the weights and of all scenes.")] = Recipe.seed,
    scenes: Annotated[int, typer.Option(min=1, help="Number of held-out scenes for evaluation.")] = 1000,
) -> None:
    """Train the demo model, evaluate it on held-out handwriting, and save it with its model card."""
    from tools.demo_model.card import Run, card
    from tools.demo_model.evaluate import measure

    console, recipe, began = Console(stderr=True), Recipe(seed=seed), time.monotonic()
    cpu_began = time.process_time()
    trained = train(recipe, console)
    minutes, cpu_minutes = (time.monotonic() - began) / 60, (time.process_time() - cpu_began) / 60
    trained.model.save_pretrained(out)
    trained.processor.save_pretrained(out)
    console.print(f"evaluating on {scenes} held-out scenes")
    run = Run(
        parameters=trained.model.num_parameters(),
        bytes=(out / "model.safetensors").stat().st_size,
        minutes=minutes,
        cpu_minutes=cpu_minutes,
        threads=torch.get_num_threads(),
        versions=f"torch {torch.__version__.partition('+')[0]}, transformers {transformers.__version__}",
    )
    text = card(recipe, run, measure(trained.model, trained.processor, scenes))
    (out / "README.md").write_text(text, encoding="utf-8")
    console.print(f"wrote {out}; the results are in its README.md")


if __name__ == "__main__":
    typer.run(main)
