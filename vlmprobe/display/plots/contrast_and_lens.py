"""Plots of contrast and lens. Like those of :mod:`vlmprobe.analysis.plots`: on any style, without relying on colour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vlmprobe.analysis.plots import COLOURS, MARKERS, axes
from vlmprobe.errors import ResultError

if TYPE_CHECKING:
    from vlmprobe.analysis.image_contrast import Contrast
    from vlmprobe.analysis.logit_lens import Lens

__all__ = ["draw_gains", "draw_lens", "draw_regions"]

LEAST = 0.25  # nats that the brightest shade stands for at least, so that nothing does not look like something
MOST = 48  # tokens that can be read beside each other
SHADES = "cividis"  # its lightness rises evenly, and stays in order for colour-blind eyes
HEAT = "inferno"  # likewise, and its middle is no grey, so that it stands out from a grey picture


def draw_gains(contrast: Contrast, ax: Any = None) -> Any:
    """Bars of the information in the picture about each token; the gains over each variant where there are several."""
    rows = np.flatnonzero(~np.isnan(contrast.pmi))
    if not 0 < len(rows) <= MOST:
        raise ResultError(f"{len(rows)} tokens cannot be drawn side by side, at most {MOST}: give a shorter answer.")
    ax = axes(ax, size=(max(4.0, 0.4 * len(rows) + 1.4), 3.2))
    at = np.arange(len(rows))
    flagged = np.isin(rows, contrast.unsupported())
    values = contrast.pmi[rows]
    ax.axhline(0, color=_ink(ax), linewidth=0.8)
    ax.bar(at[~flagged], values[~flagged], width=0.7, color=COLOURS[0], label="worth of the picture")
    if flagged.any():
        # An unsupported token's bar is near nothing, so a frame of the others' height shows where it stands.
        frame = np.full(flagged.sum(), max(float(values.max()), 0.1))
        label = "not supported by the picture"
        ax.bar(at[flagged], frame, width=0.7, fill=False, edgecolor=COLOURS[1], hatch="//", label=label)
        ax.bar(at[flagged], values[flagged], width=0.7, color=COLOURS[1])
    if len(contrast.tables) > 1:
        for place, name in enumerate(contrast.names):
            marker = MARKERS[place % len(MARKERS)]
            ax.plot(
                at, contrast.gain[place, rows], marker, color=_ink(ax), markersize=4, alpha=0.8, label=f"over {name}"
            )
    ax.set_xticks(
        at,
        [_shown(contrast.answer.tokens[row]) for row in rows],
        rotation=55,
        ha="right",
        rotation_mode="anchor",
        fontsize="small",
        parse_math=False,
    )
    ax.set(ylabel="log-probability gained (nats)", xlim=(-0.7, len(rows) - 0.3))
    ax.margins(y=0.12)
    handles, labels = ax.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda place: labels[place].startswith("over "))  # bars before marks
    ax.legend(
        [handles[place] for place in order],
        [labels[place] for place in order],
        frameon=False,
        fontsize="small",
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3 if ax.figure.get_figwidth() < 8 else 6,
        columnspacing=1.4,
        borderaxespad=0.2,
    )
    return ax


def draw_regions(
    contrast: Contrast, row: int | slice | None = None, ax: Any = None, *, limit: float | None = None
) -> Any:
    """The picture in grey, each cell tinted by what covering it cost, with the numbers of the cells that matter."""
    if contrast.regions is None or contrast.picture is None:
        raise ResultError("This contrast has no regions: call contrast(..., regions=(rows, columns)).")
    count = len(contrast.answer)
    if isinstance(row, (int, np.integer)):
        if not -count <= row < count:
            raise ResultError(f"There is no token {row}: the answer has {count}.")
        row = slice(int(row) % count, int(row) % count + 1)
    rows = np.arange(count)[row or slice(None)]
    worth = np.nansum(contrast.regions[:, :, rows], axis=-1)
    ax = axes(ax, size=(4.4, 4.0))
    picture = contrast.picture
    ax.imshow(picture.convert("L"), cmap="gray", vmin=0, vmax=255, extent=(0, picture.width, picture.height, 0))
    highest = max(float(np.abs(worth).max()), LEAST) if limit is None else limit
    tint = ax.imshow(
        np.ma.masked_less(worth, 0),
        cmap=HEAT,
        vmin=0,
        vmax=highest,
        alpha=np.clip(np.abs(worth) / highest, 0, 1) ** 0.5 * 0.75,
        extent=(0, picture.width, picture.height, 0),
        interpolation="nearest",
    )
    high, wide = picture.height / worth.shape[0], picture.width / worth.shape[1]
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
    ax.set_xticks(np.linspace(0, picture.width, worth.shape[1] + 1), labels=[])
    ax.set_yticks(np.linspace(0, picture.height, worth.shape[0] + 1), labels=[])
    ax.grid(color="white", linewidth=0.4, alpha=0.5)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    tokens = "".join(contrast.answer.tokens[place] for place in rows).strip()
    ax.set_title(_shown(tokens)[:60], fontsize="medium", parse_math=False)
    bar = ax.figure.colorbar(tint, ax=ax, shrink=0.8, pad=0.03)
    bar.set_label("worth of a region (nats)")
    bar.outline.set_visible(False)
    return ax


def draw_lens(lens: Lens, ax: Any = None) -> Any:
    """Layers upwards, tokens to the right: each cell says the layer's likeliest token."""
    layers, count = lens.logprobs.shape
    if not 0 < count <= MOST:
        raise ResultError(f"{count} tokens cannot be drawn side by side, at most {MOST}: choose rows=.")
    ax = axes(ax, size=(max(3.6, 0.78 * count + 1.8), max(2.4, 0.3 * layers + 1.4)))
    probability = np.exp(lens.logprobs.astype(np.float64))
    shade = ax.imshow(probability, cmap=SHADES, vmin=0, vmax=1, origin="lower", aspect="auto", interpolation="nearest")
    small = max(5.0, min(8.5, 220 / max(layers, 12)))
    for layer in range(layers):
        for place in range(count):
            said = lens.ranks[layer, place] == 0
            ax.text(
                place,
                layer,
                _shown(lens.top_tokens[layer][place][0])[:9],
                ha="center",
                va="center",
                fontsize=small,
                fontweight="bold" if said else "normal",
                color="black" if probability[layer, place] > 0.5 else "white",
                parse_math=False,
            )
    first = lens.leads
    for place in range(count):
        at = np.flatnonzero(lens.layers == first[place])
        if len(at):
            ax.add_patch(_frame(place - 0.5, int(at[0]) - 0.5))
    ax.set_xticks(
        range(count),
        [_shown(token) for token in lens.tokens],
        rotation=45,
        ha="right",
        rotation_mode="anchor",
        fontsize="small",
        parse_math=False,
    )
    step = max(1, layers // 16)
    ax.set_yticks(range(0, layers, step), lens.layers[::step].tolist(), fontsize="small")
    ax.set(xlabel="token that was said", ylabel="decoder layer")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    bar = ax.figure.colorbar(shade, ax=ax, pad=0.02)
    bar.set_label("probability of that token")
    bar.outline.set_visible(False)
    return ax


def _frame(left: float, low: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((left + 0.03, low + 0.05), 0.94, 0.9, fill=False, edgecolor=COLOURS[1], linewidth=2)


def _outline() -> list[Any]:
    from matplotlib import patheffects

    return [patheffects.withStroke(linewidth=1.6, foreground="black")]


def _ink(ax: Any) -> Any:
    return ax.xaxis.label.get_color()


def _shown(token: str) -> str:
    return token.strip(" ").replace("\n", "↵").replace("\t", "⇥") or "␣"
