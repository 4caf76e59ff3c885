"""Train the model of receipts: ``python -m tools.demo_model.receipts --out DIR`` (about half an hour on two CPU cores).

As the model of handwriting, in two stages: first the vision tower alone learns which character stands where, of which
field and at which place in it, then the whole model learns to answer with the JSON of date and total.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import transformers
import typer
from einops import rearrange
from PIL import Image
from rich.console import Console
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput

from tools.demo_model.batches import Batch, normalised, pack
from tools.demo_model.build import WIDTH, Look, build_model, build_processor, build_tokenizer
from tools.demo_model.card import Run, receipts_card
from tools.demo_model.evaluate import Evaluation, answer
from tools.demo_model.recipe import ReceiptRecipe
from tools.demo_model.train import Trained, descend, loss_of
from vlmprobe.demo.receipts import WORDINGS, Glyph, Receipt, draw_receipt, held_out
from vlmprobe.demo.scenes import QA

__all__ = ["LOOK", "Drawn", "draw", "main", "measure", "save", "tokenizer", "train"]

LOOK = Look(picture=96, patch=8, mean=(0.84, 0.84, 0.84), std=(0.2, 0.2, 0.2))
ANSWER_PARTS = ('{"', "date", '":', ' "', '",', "total", "}")  # all but digits, dots and hyphens
CHARACTERS = "0123456789.-"
DATE, TOTAL = 10, 5  # characters of the longest
OTHER = len(CHARACTERS)  # class of all other characters
NOWHERE = DATE + TOTAL  # class of those of no field
MOST = 64  # glyphs on a receipt


@dataclass(frozen=True)
class Drawn:
    """N receipts for training."""

    receipts: list[str]  # [N], the right answers
    pixels: np.ndarray  # uint8 [N, LOOK.picture, LOOK.picture], grey
    centres: np.ndarray  # float32 [N, MOST, 2]: x, y of each glyph from -1 to 1
    characters: np.ndarray  # int64 [N, MOST], place in CHARACTERS, OTHER, or -100 where there is no glyph
    places: np.ndarray  # int64 [N, MOST], place in the date, DATE + place in the total, or NOWHERE; -100 likewise


def tokenizer() -> Any:
    """The tokenizer of the model: digits are single tokens, the structure of the JSON has tokens of its own."""
    return build_tokenizer(WORDINGS, ANSWER_PARTS)


def draw(count: int, seed: int) -> Drawn:
    """Receipts for training, none with the date and total of one for tests."""
    drawn = Drawn(
        [],
        np.zeros((count, LOOK.picture, LOOK.picture), np.uint8),
        np.zeros((count, MOST, 2), np.float32),
        np.full((count, MOST), -100),
        np.full((count, MOST), -100),
    )
    for row in range(count):
        receipt = draw_receipt(np.random.default_rng([seed, 3, row]), held_out=False, side=2 * LOOK.picture)
        _fill(drawn, row, receipt)
    return drawn


def _fill(drawn: Drawn, row: int, receipt: Receipt) -> None:
    drawn.receipts.append(receipt.answer)
    small = receipt.picture.convert("L").resize((LOOK.picture, LOOK.picture), Image.Resampling.BICUBIC)
    drawn.pixels[row] = np.asarray(small)
    seen = [glyph for glyph in receipt.glyphs if glyph.character != " "]
    drawn.centres[row, : len(seen)] = [[2 * x - 1, 2 * y - 1] for x, y in (glyph.centre for glyph in seen)]
    drawn.characters[row, : len(seen)] = [CHARACTERS.find(glyph.character) % (OTHER + 1) for glyph in seen]
    drawn.places[row, : len(seen)] = [_place(glyph) for glyph in seen]


def _place(glyph: Glyph) -> int:
    return glyph.place if glyph.field == "date" else DATE + glyph.place if glyph.field == "total" else NOWHERE


class Seen(nn.Module):
    """In place of a vision tower that is not trained: what it makes of the receipts, computed once."""

    def __init__(self, tower: nn.Module, drawn: Drawn) -> None:
        super().__init__()
        self.rows = np.zeros(0, np.int64)  # that are looked at next
        grey = torch.from_numpy(drawn.pixels)
        with torch.inference_mode():
            parts = [tower(pixel_values=_coloured(part.float() / 255)).last_hidden_state for part in grey.split(64)]
        self.features = torch.cat(parts).clone()

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutput:
        """The features of ``rows``."""
        return BaseModelOutput(last_hidden_state=self.features[torch.from_numpy(self.rows)])


class Eyes(nn.Module):
    """A linear classifier on the vision tower's output at the centre of each glyph: its character and its place."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.read = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, OTHER + 1 + NOWHERE + 1))

    def forward(self, pixels: torch.Tensor, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits over characters [N, MOST, 13] and over places [N, MOST, 16]."""
        patches = self.tower(pixel_values=pixels).last_hidden_state[:, 1:]
        image = rearrange(patches, "n (row column) width -> n width row column", row=LOOK.grid)
        there = functional.grid_sample(image, centres[:, None], padding_mode="border", align_corners=False)
        characters, places = self.read(there[:, :, 0].mT).split([OTHER + 1, NOWHERE + 1], dim=-1)
        return characters, places


def train(
    recipe: ReceiptRecipe, console: Console | None = None, watch: Callable[[str, int, Any], None] | None = None
) -> Trained:
    """Train from random weights; see :func:`tools.demo_model.train.train`."""
    words, drawn = tokenizer(), draw(recipe.receipts, recipe.seed)
    model = build_model(words, recipe.seed, LOOK).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        eyes = Eyes(model.model.vision_tower)
    tower = eyes.tower

    def eyes_loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([recipe.seed, 0, step])
        rows = rng.integers(0, recipe.receipts, recipe.eyes.scenes)
        pixels, shift = _pixels(rng, drawn.pixels[rows])
        centres = torch.from_numpy(drawn.centres[rows] + shift[:, None])
        characters, places = eyes(pixels, centres)
        return functional.cross_entropy(
            characters.flatten(0, 1), torch.from_numpy(drawn.characters[rows]).flatten()
        ) + functional.cross_entropy(places.flatten(0, 1), torch.from_numpy(drawn.places[rows]).flatten())

    def whole_loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([recipe.seed, 1, step])
        rows = rng.integers(0, recipe.receipts, recipe.whole.scenes)
        if step == 0:
            model.model.vision_tower = Seen(tower, drawn)
        elif step == int(recipe.frozen * recipe.whole.steps):
            model.model.vision_tower = tower
        if isinstance(model.model.vision_tower, Seen):
            model.model.vision_tower.rows = rows
        return loss_of(model, _batch(rng, words, drawn, rows, recipe.blind), 1.0)

    def look(stage: str) -> Callable[[int], None]:
        return lambda done: watch(stage, done, model) if watch is not None else None

    first = descend("vision tower", eyes, eyes_loss, recipe.eyes, recipe, console, look("eyes"))
    second = descend("whole model", model, whole_loss, recipe.whole, recipe, console, look("whole"))
    return Trained(model.eval(), build_processor(words, LOOK), first, second)


def measure(
    model: Any, processor: Any, receipts: int, *, seed: int = 0, strength: float = 1.0
) -> tuple[Evaluation, dict[str, float]]:
    """Answers about held-out receipts, and of each field the share that is right."""
    drawn = list(held_out(receipts, seed=seed, strength=strength))
    answered = answer(model, processor, drawn, kinds=["receipt"], batch=32)
    read = [_read(each.answer) for each in answered]
    shares = {
        name: sum(each.get(name) == receipt.gold[name] for each, receipt in zip(read, drawn, strict=True)) / receipts
        for name in ("date", "total")
    }
    return Evaluation(tuple(answered)), shares


def _read(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def save(out: Path, trained: Trained, recipe: ReceiptRecipe, minutes: float, cpu_minutes: float, receipts: int) -> None:
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
    measured = {
        strength: measure(trained.model, trained.processor, receipts, strength=strength) for strength in (0.0, 1.0, 2.0)
    }
    (out / "README.md").write_text(receipts_card(recipe, run, measured), encoding="utf-8")


def main(
    out: Annotated[Path, typer.Option(help="Folder to write the checkpoint into.")] = Path("receipts-checkpoint"),
    seed: Annotated[int, typer.Option(help="Seed of the weights and of all receipts.")] = ReceiptRecipe.seed,
    receipts: Annotated[int, typer.Option(min=1, help="Number of held-out receipts for evaluation.")] = 500,
) -> None:
    """Train the model of receipts, evaluate it on held-out receipts, and save it with its model card."""
    console, recipe = Console(stderr=True), ReceiptRecipe(seed=seed)
    began, cpu_began = time.monotonic(), time.process_time()
    trained = train(recipe, console)
    minutes, cpu_minutes = (time.monotonic() - began) / 60, (time.process_time() - cpu_began) / 60
    console.print(f"evaluating on {receipts} held-out receipts")
    save(out, trained, recipe, minutes, cpu_minutes, receipts)
    console.print(f"wrote {out}; the results are in its README.md")


def _batch(rng: np.random.Generator, words: Any, drawn: Drawn, rows: np.ndarray, blind: float) -> Batch:
    wordings = rng.integers(len(WORDINGS), size=len(rows))
    asks = [
        [(QA("receipt", WORDINGS[0], drawn.receipts[row]), WORDINGS[wording])]
        for row, wording in zip(rows, wordings, strict=True)
    ]
    return pack(words, asks, _pixels(rng, drawn.pixels[rows])[0], rng.random(len(rows)) < blind, LOOK)


def _pixels(rng: np.random.Generator, grey: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Images as the model takes them, each moved by up to two pixels, with fresh grain; and the shifts, -1 to 1."""
    moves = rng.integers(-2, 3, (len(grey), 2))
    moved = np.stack([np.roll(each, (y, x), (0, 1)) for each, (x, y) in zip(grey, moves, strict=True)])
    images = moved.astype(np.float32) / 255
    images += rng.uniform(0, 0.03, (len(grey), 1, 1)).astype(np.float32) * rng.standard_normal(
        images.shape, dtype=np.float32
    )
    return _coloured(torch.from_numpy(images.clip(0, 1))), (2 * moves / LOOK.picture).astype(np.float32)


def _coloured(grey: torch.Tensor) -> torch.Tensor:
    """Grey images [N, side, side] from 0 to 1 as the model takes them."""
    return normalised(grey[:, None].expand(-1, 3, -1, -1), LOOK)


if __name__ == "__main__":
    typer.run(main)
