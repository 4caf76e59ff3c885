"""Plot how cost scales, in a light and a dark version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from benchmarks.growth import SWEEPS

__all__ = ["draw"]

STYLES = {  # marker with line style, and colour, of vlmprobe, the same work without it, and two peers
    "vlmprobe": ("o-", "#0072b2"),
    "model.generate": ("s--", "#e69f00"),
    "prefill": ("s--", "#e69f00"),
    "forward + log_softmax": ("^:", "#009e73"),
    "full forward each": ("^:", "#009e73"),
    "minicons": ("v-.", "#cc79a7"),
}


def draw(held: Mapping[str, Any], folder: Path) -> None:
    """Write ``growth.png`` and ``growth-dark.png``, with a panel for every measured sweep."""
    from matplotlib import pyplot

    found = {name: measured for name in SWEEPS if (measured := _of(held, name))}
    for style, suffix in (("default", ""), ("dark_background", "-dark")):
        with pyplot.style.context(style):
            figure, panels = pyplot.subplots(
                1, len(found), figsize=(3.2 * len(found), 3.2), layout="constrained", squeeze=False
            )
            for panel, (name, measured) in zip(panels[0], found.items(), strict=True):
                _panel(panel, name, measured["seconds"])
            panels[0, 0].set_ylabel("CPU seconds")
            if suffix:
                for part in (figure.patch, *(panel.patch for panel in panels[0])):
                    part.set_facecolor("#0d1117")
            path = folder / f"growth{suffix}.png"
            figure.savefig(path, dpi=90)
            pyplot.close(figure)
        # A plot has few colours: a palette makes the file a third of the size.
        Image.open(path).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def _of(held: Mapping[str, Any], name: str) -> Any:
    return next((each for key, each in held["measured"].items() if key.split("/")[0] == name), None)


def _panel(panel: Any, name: str, seconds: Mapping[str, Any]) -> None:
    from matplotlib.ticker import LogLocator

    variants = dict.fromkeys(variant for each in seconds.values() for variant in each)
    for variant in variants:
        points = [(int(value), median(each[variant]["cpu"])) for value, each in seconds.items() if variant in each]
        line, colour = STYLES[variant]
        panel.plot(*zip(*points, strict=True), line, color=colour, label=variant, markersize=4, linewidth=1.2)
    panel.set(xscale="log", yscale="log", xlabel=SWEEPS[name].along)
    panel.set_xticks([int(value) for value in seconds], [f"{int(value):,}" for value in seconds])
    panel.minorticks_off()
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.legend(fontsize=7)
    panel.spines[["top", "right"]].set_visible(False)
