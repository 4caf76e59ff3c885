"""The look of every plot: colours, lines, markers, axes, legend, and how a text from outside is written.

Readable in greyscale and on a dark background: series differ by marker, line or hatching and not by colour alone, the
colours have about the same contrast to white and to black, and text, ticks and guides take the colour of the style in
use (``with matplotlib.pyplot.style.context("dark_background")``).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from rich.cells import cell_len, set_cell_size

from vlmprobe.display import view
from vlmprobe.errors import MissingExtraError

__all__ = [
    "COLOURS",
    "LINES",
    "MARKERS",
    "axes",
    "bars",
    "columns",
    "ink",
    "legend",
    "matplotlib",
    "paper",
    "save",
    "short",
    "shown",
    "verbatim",
]

# Blue, orange, green and purple of contrast 3 to 6 with both white and black (WCAG 2).
COLOURS = ("#2f7fd0", "#d9660b", "#2f9460", "#a35bc4")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D")
# Fonts with the letters that matplotlib's own lacks (Chinese, Japanese, Korean), of which a machine may have one.
FONTS = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "SimHei", "Noto Sans CJK JP", "Hiragino Sans", "Yu Gothic"),
    *("IPAexGothic", "Noto Sans CJK KR", "Apple SD Gothic Neo", "Malgun Gothic", "Arial Unicode MS"),
)


def matplotlib(module: str = "pyplot") -> Any:
    """A module of matplotlib.

    Raises:
        MissingExtraError: where matplotlib is not installed.
    """
    try:
        return import_module(f"matplotlib.{module}")
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot") from error


def axes(ax: Any = None, *, size: tuple[float, float] = (5.0, 4.0)) -> Any:
    """The axes given, or new ones in a figure of ``size`` inches, without a frame above and to the right."""
    pyplot = matplotlib()
    if ax is None:
        ax = pyplot.figure(figsize=size, layout="constrained").add_subplot()
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def legend(ax: Any, where: str, columns: int = 1) -> None:
    """A legend without a frame, inside the axes."""
    ax.legend(loc=where, frameon=False, fontsize="small", ncols=columns, handlelength=2.6)


def ink(ax: Any) -> Any:
    """The colour of text and ticks under the style in use."""
    return ax.xaxis.label.get_color()


def paper(ax: Any) -> Any:
    """The colour behind the axes."""
    return ax.get_facecolor()


def verbatim() -> dict[str, Any]:
    """Options of a text that a model or a person wrote: no formula is read in it, and letters of all scripts are found.

    A letter that no font of the machine has is drawn as a box, with a warning of matplotlib.
    """
    installed = {font.name for font in matplotlib("font_manager").fontManager.ttflist}
    family = matplotlib().rcParams["font.family"]
    return {"parse_math": False, "family": [*family, *(name for name in FONTS if name in installed)]}


def shown(token: str, letters: int | None = None) -> str:
    """A token's text with white space made visible, cut to so many letters where given."""
    if not token:
        return view.PIECE
    return short(token.strip(" ").replace("\n", "↵").replace("\t", "⇥"), letters) or "␣"


def short(text: str, letters: int | None = None) -> str:
    """A text on one line and safe to draw; where it is wider than so many letters, its beginning with an ellipsis."""
    line = view.plain(" ".join(text.split()))
    if letters is None or cell_len(line) <= letters:
        return line
    return set_cell_size(line, letters - 1).rstrip() + "…"


def columns(ax: Any, names: Sequence[str], rotation: int = 55) -> None:
    """Names of tokens below the axes, at 0, 1, 2, ..."""
    ax.set_xticks(
        range(len(names)),
        [shown(name, 24) for name in names],
        rotation=rotation,
        ha="right",
        rotation_mode="anchor",
        fontsize="small",
        **verbatim(),
    )


def bars(
    ax: Any,
    names: Sequence[str],
    lengths: np.ndarray,
    notes: Sequence[str],
    *,
    beyond: np.ndarray | None = None,
) -> Any:
    """Bars to the right, the first on top, each with its name before it and a note behind it.

    Args:
        ax: axes to draw on.
        names: [N].
        lengths: [N]; a NaN is no bar.
        notes: [N].
        beyond: [N] places that the notes must not cover, where there are any.

    Returns:
        The bars, a matplotlib container.
    """
    known = np.nan_to_num(np.asarray(lengths, dtype=np.float64))
    drawn = ax.barh(np.arange(len(known)), known, height=0.62, color=COLOURS[0])
    for place, note in enumerate(notes):
        at = known[place] if beyond is None else np.nanmax([known[place], beyond[place]])
        ax.annotate(note, (at, place), (5, 0), textcoords="offset points", va="center", fontsize="small")
    ax.set_yticks(range(len(names)), names, **verbatim())
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    return drawn


def save(ax: Any, path: Path, *, dpi: int = 160) -> None:
    """Write the figure of some axes to a file, in the format that its name ends in, and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ax.figure.savefig(path, dpi=dpi)
    matplotlib().close(ax.figure)
