"""Plots of contrast and lens: the image's contribution to each token, and each layer's likeliest token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL.Image import Image

from vlmprobe.display.plots.strip import Strip
from vlmprobe.display.plots.style import (
    COLOURS,
    MARKERS,
    axes,
    columns,
    drawable,
    heading,
    inches,
    ink,
    legend,
    matplotlib,
    shown,
    verbatim,
)
from vlmprobe.errors import ResultError

__all__ = ["draw_gains", "draw_lens", "draw_regions"]

LEAST = 0.25  # least nats of the brightest shade, so that noise does not look like signal
MOST = 48  # tokens that fit side by side
SHADES = "cividis"  # perceptually uniform, also for colour-blind viewers
HEAT = "inferno"  # likewise, and not grey in the middle, so that it stands out from a grey image


def draw_gains(
    tokens: Sequence[str],
    worth: np.ndarray,
    unsupported: np.ndarray,
    gains: Mapping[str, np.ndarray],
    ax: Any = None,
) -> Any:
    """Bars of the image's information about each token, and marks of the gain over each variant.

    Args:
        tokens: [T].
        worth: float [T], nats.
        unsupported: bool [T], the tokens to mark.
        gains: float [T], nats, by the name of the variant; empty if there is a single variant.
        ax: axes to draw on.

    Returns:
        The axes.

    Raises:
        ResultError: without a token.
    """
    if not len(tokens):
        raise ResultError("No token has a log-probability, so there is nothing to draw.")
    flagged = np.asarray(unsupported, dtype=bool)
    drawn = np.concatenate([worth, *gains.values()])
    low, high = min(0.0, float(np.nanmin(drawn))), max(0.1, float(np.nanmax(drawn)))
    room = 0.12 * (high - low)
    strip = Strip(tokens, low - room * (low < 0), high + room, ax, most=MOST)
    ax, at, base = strip.ax, strip.x, strip.base
    if strip.rows == 1:
        strip.zero()
        ax.set_ylim(low - room * (low < 0), high + room)
    ax.bar(
        at[~flagged], worth[~flagged], bottom=base[~flagged], width=0.7, color=COLOURS[0], label="worth of the image"
    )
    if flagged.any():
        # An unsupported token's bar is near zero, so a frame of the others' height marks it.
        frame = np.full(flagged.sum(), max(float(worth.max()), 0.1))
        label, below = "not supported by the image", base[flagged]
        style = {"fill": False, "edgecolor": COLOURS[1], "hatch": "//", "label": label}
        ax.bar(at[flagged], frame, bottom=below, width=0.7, **style)
        ax.bar(at[flagged], worth[flagged], bottom=below, width=0.7, color=COLOURS[1])
    for place, (name, gain) in enumerate(gains.items()):
        marker = MARKERS[place % len(MARKERS)]
        ax.plot(at, base + gain, marker, color=ink(ax), markersize=4, alpha=0.8, label=f"over {name}")
    ax.set(ylabel="log-probability gained (nats)")
    legend(ax, columns=3 if inches(ax)[0] < 8 else 6)
    return ax


def draw_regions(worth: np.ndarray, image: Image, title: str, ax: Any = None, *, limit: float | None = None) -> Any:
    """The image in grey, each cell tinted by the loss from masking it, with numbers in the cells that matter.

    Args:
        worth: float [rows, columns], nats.
        image: tiled by the cells.
        title: above the axes.
        ax: axes to draw on.
        limit: nats of the brightest shade; the highest worth if None.

    Returns:
        The axes.
    """
    ax = axes(ax, size=(4.4, 4.0))
    extent = (0, image.width, image.height, 0)
    ax.imshow(image.convert("L"), cmap="gray", vmin=0, vmax=255, extent=extent)
    highest = max(float(np.abs(worth).max()), LEAST) if limit is None else limit
    tint = ax.imshow(
        np.ma.masked_less(worth, 0),
        cmap=HEAT,
        vmin=0,
        vmax=highest,
        alpha=np.clip(np.abs(worth) / highest, 0, 1) ** 0.5 * 0.75,
        extent=extent,
        interpolation="nearest",
    )
    high, wide = image.height / worth.shape[0], image.width / worth.shape[1]
    for place in np.argwhere(np.abs(worth) >= 0.25 * highest):
        value = float(worth[tuple(place)])
        bright = value > 0.6 * highest
        ax.text(
            (place[1] + 0.5) * wide,
            (place[0] + 0.5) * high,
            f"{value:.1f}",
            ha="center",
            va="center",
            fontsize=max(6.5, min(9.0, 64 / worth.shape[1])),
            color="black" if bright else "white",
            path_effects=[] if bright else _outline(),
        )
    ax.set_xticks(np.linspace(0, image.width, worth.shape[1] + 1), labels=[])
    ax.set_yticks(np.linspace(0, image.height, worth.shape[0] + 1), labels=[])
    ax.grid(color="white", linewidth=0.4, alpha=0.5)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    heading(ax, shown(title), beside=0.3 * inches(ax)[0], loc="center")
    bar = ax.figure.colorbar(tint, ax=ax, shrink=0.8, pad=0.03)
    bar.set_label("worth of a region (nats)")
    bar.outline.set_visible(False)
    return ax


def draw_lens(
    tokens: Sequence[str],
    layers: np.ndarray,
    logprobs: np.ndarray,
    ranks: np.ndarray,
    says: Sequence[Sequence[str]],
    leads: np.ndarray,
    ax: Any = None,
) -> Any:
    """Layers upwards, tokens to the right: each cell shows the layer's likeliest token. Returns the axes.

    Args:
        tokens: [R] the actual ones.
        layers: int [L], indices of the layers, ascending.
        logprobs: float [L, R], nats, of the actual token.
        ranks: int [L, R] of the actual token.
        says: [L][R], each layer's likeliest token.
        leads: int [R], the layer whose cell is framed; -1 for none.
        ax: axes to draw on.

    Raises:
        ResultError: for more tokens than fit side by side, or none.
    """
    height, count = logprobs.shape
    if not 0 < count <= MOST:
        raise ResultError(f"{count} tokens cannot be drawn side by side, at most {MOST}: choose rows=.")
    ax = axes(ax, size=(max(3.6, 0.78 * count + 1.8), max(2.4, 0.3 * height + 1.4)))
    probability = np.exp(logprobs.astype(np.float64))
    shade = ax.imshow(probability, cmap=SHADES, vmin=0, vmax=1, origin="lower", aspect="auto", interpolation="nearest")
    small = max(5.0, min(8.5, 220 / max(height, 12)))
    letters = max(2, min(9, int(72 * 0.8 * inches(ax)[0] / count / (0.62 * small))))
    for layer in range(height):
        for place in range(count):
            said, text = ranks[layer, place] == 0, drawable(shown(says[layer][place], letters))
            ax.text(
                place,
                layer,
                text,
                ha="center",
                va="center",
                fontsize=small,
                fontweight="bold" if said else "normal",
                color="black" if probability[layer, place] > 0.5 else "white",
                **verbatim(text),
            )
    for place in range(count):
        at = np.flatnonzero(layers == leads[place])
        if len(at):
            ax.add_patch(_frame(place - 0.5, int(at[0]) - 0.5))
    columns(ax, tokens, rotation=45)
    step = max(1, height // 16)
    ax.set_yticks(range(0, height, step), layers[::step].tolist(), fontsize="small")
    ax.set(xlabel="token that was said", ylabel="decoder layer")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    bar = ax.figure.colorbar(shade, ax=ax, pad=0.02)
    bar.set_label("probability of that token")
    bar.outline.set_visible(False)
    return ax


def _frame(left: float, low: float) -> Any:
    rectangle = matplotlib("patches").Rectangle
    return rectangle((left + 0.03, low + 0.05), 0.94, 0.9, fill=False, edgecolor=COLOURS[1], linewidth=2)


def _outline() -> list[Any]:
    return [matplotlib("patheffects").withStroke(linewidth=1.6, foreground="black")]
