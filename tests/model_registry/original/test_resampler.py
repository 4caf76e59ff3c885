"""Resamplers, position codes and slicing against numbers of the original implementations."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from common import GOLDEN
from PIL import Image
from safetensors.torch import load_file

from vlmprobe.model_registry.original.minicpmv.slicing import plan_slices, slice_image
from vlmprobe.model_registry.original.minicpmv.vision import grid_positions, patch_positions
from vlmprobe.model_registry.original.resampler import AdaptiveResampler, GridResampler, sincos_grid

UNITS = GOLDEN / "_units"


def loaded(name: str, resampler: torch.nn.Module) -> dict[str, torch.Tensor]:
    held = load_file(UNITS / f"resampler_{name}.safetensors")
    resampler.load_state_dict({key.removeprefix("weight."): held[key] for key in held if key.startswith("weight.")})
    return held


def grids(sizes: torch.Tensor) -> list[tuple[int, int]]:
    return [(rows, columns) for rows, columns in sizes.tolist()]


@torch.no_grad()
def test_adaptive_keys_of_2_0():
    resampler = GridResampler(9, 256, 48, adaptive=True)
    held = loaded("minicpmv20_2heads", resampler)
    torch.testing.assert_close(resampler(held["x"], tuple(held["tgt_size"].tolist())), held["out"], atol=2e-5, rtol=0)


@torch.no_grad()
def test_stored_keys_of_omnilmm():
    resampler = GridResampler(9, 256, 48, adaptive=False)
    held = loaded("omnilmm_2heads", resampler)
    torch.testing.assert_close(resampler(held["x"], (8, 8)), held["out"], atol=2e-5, rtol=0)
    torch.testing.assert_close(resampler(held["x_same_grid"], (3, 3)), held["out_same_grid"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("suffix", ["", "_big"])  # big: beyond the table that the original keeps
@torch.no_grad()
def test_padded_slices_of_2_5_and_later(suffix):
    resampler = AdaptiveResampler(5, 256, 48)
    held = loaded("minicpmv25_26_2heads", resampler)
    out = resampler(held[f"x{suffix}"], grids(held[f"tgt_sizes{suffix}"]))
    torch.testing.assert_close(out, held[f"out{suffix}"], atol=2e-5, rtol=0)


@torch.no_grad()
def test_padding_does_not_reach_the_features():
    resampler = AdaptiveResampler(5, 256, 48)
    held = loaded("minicpmv25_26_2heads", resampler)
    shapes = grids(held["tgt_sizes"])
    item, (rows, columns) = min(enumerate(shapes), key=lambda each: each[1][0] * each[1][1])
    alone = resampler(held["x"][item : item + 1, : rows * columns], [(rows, columns)])
    torch.testing.assert_close(alone, held["out"][item : item + 1], atol=2e-5, rtol=0)


def test_position_codes_by_hand():
    codes = sincos_grid(3, 5, 16)
    for row, column in ((0, 0), (2, 1), (1, 4)):
        halves = []
        for place in (column, row):  # columns first
            angles = place / 10000 ** (np.arange(4, dtype=np.float64) / 4)
            halves += [np.sin(angles), np.cos(angles)]
        np.testing.assert_allclose(codes[row * 5 + column], np.concatenate(halves), atol=1e-6)


def test_slices_of_212_image_sizes():
    rows = json.loads((UNITS / "minicpmv_slices.json").read_text())
    assert len(rows) == 212
    for size, source, grid, piece in rows:
        plan = plan_slices(tuple(size), max_slices=9, resolution=448, patch=14)
        assert [plan.source, plan.grid, plan.slice] == [each and tuple(each) for each in (source, grid, piece)], size


def test_slices_come_row_by_row():
    picture = np.zeros((60, 180, 3), dtype=np.uint8)
    picture[:, 90:] = 255  # dark left, light right
    plan = plan_slices((180, 60), max_slices=9, resolution=56, patch=14)
    pieces = slice_image(Image.fromarray(picture), plan)
    columns, rows = plan.grid
    assert len(pieces) == 1 + columns * rows
    means = [np.asarray(piece).mean() for piece in pieces[1:]]
    for row in range(rows):
        in_row = means[row * columns : (row + 1) * columns]
        assert in_row == sorted(in_row)
        assert in_row[0] < 10 < 240 < in_row[-1]


def test_one_slice_at_most_is_no_slice():
    assert plan_slices((4000, 3000), max_slices=1, resolution=448, patch=14).grid is None


def test_positions_round_as_the_original():
    """Among these lengths are such where exact fractions would fall on the other side of a boundary."""
    held = json.loads((UNITS / "siglip_positions.json").read_text())
    exact = {}
    for name, expected in held.items():
        length = int(name)
        assert patch_positions([(1, length)], length, 70)[0].tolist() == expected
        if length <= 70:
            square = grid_positions([(length, length)], length**2, 70)[0].reshape(length, length)
            assert square[0].tolist() == expected
            assert (square[:, 0] // 70).tolist() == expected
        exact[length] = [place * 70 // length for place in range(length)] == expected
    assert exact[32]
    assert not exact[25]
