"""Common style of all plots: colours, lines, markers, axes, legend, and safe rendering of external text.

Readable in greyscale and on a dark background: series differ by marker, line or hatching and not by colour alone, the
colours have about the same contrast to white and to black, and text, ticks and guides take the colour of the style in
use (``with matplotlib.pyplot.style.context("dark_background")``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.cells import cell_len, chop_cells, set_cell_size

from vlmprobe.display import view
from vlmprobe.display.plots.fonts import drawable, families
from vlmprobe.display.plots.import_matplotlib import matplotlib

__all__ = [
    "COLOURS",
    "LINES",
    "MARKERS",
    "NARROW",
    "axes",
    "bars",
    "columns",
    "drawable",
    "heading",
    "inches",
    "ink",
    "legend",
    "letter_size",
    "matplotlib",
    "paper",
    "save",
    "short",
    "shown",
    "verbatim",
    "wrapped",
]

# Blue, orange, green and purple of contrast 3 to 6 with both white and black (WCAG 2).
COLOURS = ("#2f7fd0", "#d9660b", "#2f9460", "#a35bc4")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D")
LETTER = 0.078  # inches: approximate width of a letter of ten points
MOST_LETTERS = 36  # of a bar's name
NARROW = 3.6  # inches below which a legend of two columns does not fit


def axes(ax: Any = None, *, size: tuple[float, float] = (5.0, 4.0)) -> Any:
    """The axes given, or new ones in a figure of ``size`` inches, without a frame above and to the right."""
    pyplot = matplotlib()
    if ax is None:
        ax = pyplot.figure(figsize=size, layout="constrained").add_subplot()
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def legend(ax: Any, where: str = "above", columns: int = 1) -> None:
    """A legend without a frame, inside the axes, or above them if requested or if they are narrow.

    Args:
        ax: axes to draw on.
        where: as in ``Axes.legend``, or ``"above"``.
        columns: maximum number of entries side by side.
    """
    narrow = inches(ax)[0] < NARROW
    style = {"frameon": False, "fontsize": "small", "handlelength": 2.6, "ncols": 1 if narrow else columns}
    if narrow or where == "above":
        style |= {"bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    entries = list(zip(*ax.get_legend_handles_labels(), strict=True))
    bar = matplotlib("container").BarContainer
    entries.sort(key=lambda entry: not isinstance(entry[0], bar))  # bars before marks
    made = ax.legend(*zip(*entries, strict=True), loc="lower left" if "bbox_to_anchor" in style else where, **style)
    for each in made.get_texts():  # names of a user's own
        text = drawable(each.get_text())
        each.set(text=text, **verbatim(text))


def ink(ax: Any) -> Any:
    """The colour of text and ticks under the style in use."""
    return ax.xaxis.label.get_color()


def paper(ax: Any) -> Any:
    """The colour behind the axes."""
    return ax.get_facecolor()


def verbatim(*texts: str) -> dict[str, Any]:
    """Options for text from a model or a person: no math parsing, and fonts that have its characters.

    Args:
        texts: all that is drawn with these options, each made :func:`drawable` before.
    """
    return {"parse_math": False, "family": families("".join(texts))}


def shown(token: str, letters: int | None = None) -> str:
    """A token's text with white space made visible, cut to that many letters if given."""
    if not token:
        return view.PIECE
    return short(token.strip(" ").replace("\n", "↵").replace("\t", "⇥"), letters) or "␣"


def short(text: str, letters: int | None = None) -> str:
    """A text on one line and safe to draw; if wider than that many letters, cut with an ellipsis."""
    line = view.plain(" ".join(text.split()))
    if letters is None or cell_len(line) <= letters:
        return line
    return set_cell_size(line, letters - 1).rstrip() + "…"


def inches(ax: Any) -> tuple[float, float]:
    """Width and height of the part of the figure available to the axes, labels included."""
    figure, spec = ax.figure, ax.get_subplotspec()
    whole = figure.bbox.width / figure.dpi, figure.bbox.height / figure.dpi
    if spec is None:
        box = ax.get_position()
        return float(whole[0] * box.width), float(whole[1] * box.height)
    grid = spec.get_gridspec()
    wide, high = grid.get_width_ratios(), grid.get_height_ratios()
    return (
        float(whole[0] * sum(wide[spec.colspan.start : spec.colspan.stop]) / sum(wide)),
        float(whole[1] * sum(high[spec.rowspan.start : spec.rowspan.stop]) / sum(high)),
    )


def wrapped(text: str, letters: int, lines: int) -> str:
    """A text wrapped to at most that many lines of that many letters, cut if it is longer."""
    found = [""]
    parts = (part for word in short(text, lines * letters).split(" ") for part in chop_cells(word, letters))
    for part in parts:
        joined = f"{found[-1]} {part}".strip()
        if cell_len(joined) <= letters or not found[-1]:
            found[-1] = joined
        else:
            found.append(part)
    return "\n".join([*found[: lines - 1], short(" ".join(found[lines - 1 :]), letters)]).strip()


def heading(ax: Any, text: str, *, beside: float = 0.0, loc: str = "left") -> None:
    """Set a title of at most two lines, cut to the width of the axes.

    Args:
        ax: axes to draw on.
        text: of any length and any origin.
        beside: inches of the width taken by labels and the like.
        loc: alignment, as in ``Axes.set_title``.
    """
    letters = max(12, int((inches(ax)[0] - beside - 0.3) / LETTER))
    title = drawable(wrapped(text, letters, 2))
    ax.set_title(title, loc=loc, fontsize="medium", **verbatim(title))


def columns(ax: Any, names: Sequence[str], rotation: int = 55) -> None:
    """Token names below the axes, at 0, 1, 2, ..., smaller when closer together."""
    written = [drawable(shown(name, 24)) for name in names]
    ax.set_xticks(
        range(len(names)),
        written,
        rotation=rotation,
        ha="right",
        rotation_mode="anchor",
        fontsize=letter_size(ax, len(names)),
        **verbatim(*written),
    )


def letter_size(ax: Any, count: int) -> float:
    """Points of the names of so many things side by side."""
    return max(5.0, min(8.3, 72 * 0.85 * inches(ax)[0] / max(count, 1)))


def bars(
    ax: Any,
    names: Sequence[str],
    shares: np.ndarray,
    notes: Sequence[str],
    *,
    label: str,
    title: str = "",
    marks: np.ndarray | None = None,
    beside: float = 0.0,
) -> Any:
    """Bars from 0 to 1, the first on top, each with its name on the left and a note on the right.

    Args:
        ax: axes to draw on.
        names: [N], cut to a part of the width.
        shares: [N] from 0 to 1; NaN draws no bar.
        notes: [N].
        label: below the axes; each of its lines is wrapped.
        title: above the axes.
        marks: [N] reference value of each bar, drawn as a diamond; NaN draws none.
        beside: inches taken by something else left of the bars.

    Returns:
        The bars, a matplotlib container.
    """
    wide, high = inches(ax)
    size = max(4.5, min(10.0, 0.72 * 72 * (high - 0.8) / len(names)))  # points
    letters = max(10, min(MOST_LETTERS, int(0.45 * wide / LETTER)))
    written = [drawable(short(name, letters)) for name in names]
    beside += LETTER * max(map(cell_len, written))
    known = np.nan_to_num(np.asarray(shares, dtype=np.float64))
    at = np.arange(len(known))
    drawn = ax.barh(at, known, height=0.62, color=COLOURS[0])
    ends = known.copy()
    if marks is not None:
        ax.plot(
            marks, at, "D", color=COLOURS[1], markeredgecolor=paper(ax), markersize=min(6.0, 0.7 * size),
            clip_on=False, zorder=3,
        )  # fmt: skip
        hides = marks > known - 0.02  # the mark would overlap the note
        ends[hides] = marks[hides] + 0.01
    for place, note in enumerate(notes):
        ax.annotate(
            note, (ends[place], place), (5, 0), textcoords="offset points", va="center", fontsize=min(8.3, size)
        )
    ax.set_yticks(at, written, fontsize=size, **verbatim(*written))
    ax.tick_params(axis="y", length=0, pad=7)
    # Room on the right for the notes.
    room = np.array([(0.15 + LETTER * 0.83 * len(note)) / max(wide - beside - 0.3, 0.5) for note in notes])
    right = max(1.02, float((ends / (1 - np.minimum(room, 0.6))).max()))
    ax.set(xlim=(0, right), ylim=(len(names) - 0.5, -0.5))
    ax.set_xticks([0, 0.5, 1] if wide - beside < 2.2 else [0, 0.25, 0.5, 0.75, 1])
    line = max(12, int((wide - beside - 0.1) / LETTER))
    ax.set_xlabel("\n".join(wrapped(part, line, 4) for part in label.split("\n")))
    if title:
        heading(ax, title, beside=beside)
    return drawn


def save(ax: Any, path: Path, *, dpi: int = 160) -> None:
    """Write the figure of the axes to a file, in the format of its extension, and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ax.figure.savefig(path, dpi=dpi)
    matplotlib().close(ax.figure)
