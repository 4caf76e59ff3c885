"""Training batches: each scene is encoded once, with all its questions packed into one row.

A row is the image followed by several question-answer segments. The attention mask lets a segment attend to the
image and itself, never to another segment, and positions restart with each, so that a row computes the same as
that many single conversations for a fraction of the cost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from tools.demo_model.build import DIGIT_SCENES, Look
from vlmprobe.demo.drawing import COLOURS, placement, render
from vlmprobe.demo.handwriting import samples
from vlmprobe.demo.scenes import QA, draw_asked, draw_pairs, questions
from vlmprobe.demo.wordings import wordings

__all__ = ["Batch", "Curriculum", "draw_batch", "normalised", "pack", "training_pictures"]


@dataclass(frozen=True)
class Curriculum:
    """Distribution of training scenes: shares of scenes, or augmentation strengths."""

    same: float = 0.3  # show the same digit twice
    reworded: float = 0.4  # questions in another wording
    chatter: float = 0.06  # questions prefixed with a word unknown to the model
    hidden: float = 0.05  # digits removed, labels kept: the calibrated answer is then the prior
    noise: float = 0.02  # noise images
    blind: float = 0.06  # without an image
    strength: float = 1.0  # of rotation and shear
    warp: float = 0.04  # standard deviation of the displacement, as a fraction of half a sample
    ink: float = 0.13  # standard deviation of the log stroke thickness
    shade: float = 0.035  # standard deviation of a colour channel
    others: int = 2  # questions per scene besides its description and "are they the same", drawn from the five

    def eased(self, share: float) -> Curriculum:
        """The same curriculum with all distortions scaled by ``share``."""
        return replace(self, strength=self.strength * share, warp=self.warp * share, ink=self.ink * share)


@dataclass(frozen=True)
class Batch:
    """N packed rows of length L."""

    input_ids: torch.Tensor  # int64 [N, L]
    position_ids: torch.Tensor  # int64 [N, L]
    attention_mask: torch.Tensor  # bool [N, 1, L, L], True where position i attends to position j
    pixel_values: torch.Tensor  # float32 [N, 3, side, side], normalised
    targets: torch.Tensor  # int64 [N, L], the token after each position; -100 outside answers
    kinds: np.ndarray  # str [N, L], the kind of question at each position, "" elsewhere

    @property
    def inputs(self) -> dict[str, Any]:
        """The keyword arguments of the model's forward."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": self.attention_mask,
            "pixel_values": self.pixel_values,
        }


def draw_batch(rng: np.random.Generator, tokenizer: Any, pool: np.ndarray, count: int, how: Curriculum) -> Batch:
    """A batch of ``count`` scenes of samples in ``pool``, fully determined by ``rng``."""
    pairs, colours = draw_pairs(rng, pool, count, how.same)
    digits = samples()[1][pairs]
    asked, names = draw_asked(rng, digits), list(COLOURS)
    asks = [
        [
            (qa, _worded(rng, qa, how))
            for qa in _chosen(
                rng,
                questions(
                    (int(digits[row, 0]), int(digits[row, 1])),
                    (names[colours[row, 0]], names[colours[row, 1]]),
                    int(asked[row]),
                ),
                how.others,
            )
        ]
        for row in range(count)
    ]
    pixels = training_pictures(rng, pairs, colours, how)
    return pack(tokenizer, asks, pixels, blind=rng.random(count) < how.blind)


def training_pictures(
    rng: np.random.Generator, pairs: np.ndarray, colours: np.ndarray, how: Curriculum
) -> torch.Tensor:
    """Augmented images of sample ``pairs`` [N, 2] in ``colours`` [N, 2], normalised: [N, 3, side, side]."""
    count, side = len(pairs), DIGIT_SCENES.picture

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))

    images = render(
        pairs,
        colours,
        placement(rng, count, strength=how.strength),
        side=2 * side,
        warp=how.warp * normal(2 * count, 2, 4, 4),
        ink=torch.exp(how.ink * normal(count, 2)),
        shades=how.shade * normal(count, 2, 3),
        visible=torch.from_numpy(rng.random((count, 2)) >= how.hidden),
    )
    images = functional.interpolate(images, (side, side), mode="bicubic", antialias=True)
    grain = torch.from_numpy(rng.uniform(0, 0.03, (count, 1, 1, 1)).astype(np.float32))
    images = images + grain * normal(count, 3, side, side)
    noisy = torch.from_numpy(rng.random(count) < how.noise)
    images[noisy] = torch.from_numpy(rng.random((int(noisy.sum()), 3, side, side), dtype=np.float32))
    return normalised(images.clamp(0, 1), DIGIT_SCENES)


def normalised(images: torch.Tensor, look: Look) -> torch.Tensor:
    """Images [N, 3, side, side] in 0 to 1 as the processor normalises them."""
    return (images - torch.tensor(look.mean)[:, None, None]) / torch.tensor(look.std)[:, None, None]


def pack(
    tokenizer: Any,
    asks: list[list[tuple[QA, str]]],
    pixels: torch.Tensor,
    blind: np.ndarray,
    look: Look = DIGIT_SCENES,
) -> Batch:
    """Pack the questions of N scenes into N rows.

    Args:
        tokenizer: of :func:`tools.demo_model.build.build_tokenizer`.
        asks: for each scene its questions and their wordings.
        pixels: [N, 3, side, side], normalised.
        blind: bool [N]; True masks the image from the questions, as if there were none.
        look: what the model takes.
    """
    user, assistant, end = tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>", "<|end|>"])
    image = tokenizer.convert_tokens_to_ids(["<img>", *["<image>"] * look.tokens, "</img>"])
    rows: list[list[tuple[int, int, int, int, str]]] = []  # (id, position, segment, target, kind)
    for row, scene in enumerate(asks):
        packed = [(token, place, -1, -100, "") for place, token in enumerate([user, *image])]
        start = 1 if blind[row] else len(packed)
        for segment, (qa, wording) in enumerate(scene):
            prompt = [*tokenizer(wording).input_ids, end, assistant]
            answer = [*tokenizer(qa.answer).input_ids, end]
            tokens = prompt + answer
            aims = [-100] * (len(prompt) - 1) + answer + [-100]
            packed += [
                (token, start + place, segment, target, qa.kind)
                for place, (token, target) in enumerate(zip(tokens, aims, strict=True))
            ]
        rows.append(packed)
    longest = max(len(row) for row in rows)
    padding = (tokenizer.pad_token_id, 0, -2, -100, "")
    columns = [list(zip(*(row + [padding] * (longest - len(row))), strict=True)) for row in rows]
    ids, positions, segments, targets = (
        torch.tensor([row[part] for row in columns], dtype=torch.long) for part in range(4)
    )
    shown = segments == -1
    shown[torch.from_numpy(blind), 1:] = False
    own = segments[:, :, None] == segments[:, None, :]
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    return Batch(
        input_ids=ids,
        position_ids=positions,
        attention_mask=((own | shown[:, None, :]) & causal)[:, None],
        pixel_values=pixels,
        targets=targets,
        kinds=np.array([row[4] for row in columns]),
    )


def _chosen(rng: np.random.Generator, every: tuple[QA, ...], others: int) -> list[QA]:
    always = [qa for qa in every if qa.kind in ("describe", "same")]
    rest = [qa for qa in every if qa.kind not in ("describe", "same")]
    return always + [rest[place] for place in rng.permutation(len(rest))[:others]]


def _worded(rng: np.random.Generator, qa: QA, how: Curriculum) -> str:
    ways = wordings(qa)
    wording = ways[rng.integers(1, len(ways))] if rng.random() < how.reworded else ways[0]
    if rng.random() < how.chatter:
        word = "".join(chr(rng.integers(97, 123)) for _ in range(rng.integers(2, 8)))
        wording = f"{word} {wording[0].lower()}{wording[1:]}" if rng.random() < 0.5 else f"{word}, {wording}"
    return wording
