"""Draw the plots and write the figures of the pages on contrast and lens: ``python tools/docs/draw_looking.py``.

Everything is measured on the embedded demo model and held-out handwriting. Takes a minute.
"""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from draw_confidence import save, write
from matplotlib import pyplot
from PIL import Image

import vlmprobe
from vlmprobe.analysis import calibration, contrast, lens, plots
from vlmprobe.analysis.image_variants import covered
from vlmprobe.demo.bundle import bundled
from vlmprobe.demo.drawing import BACKGROUND
from vlmprobe.demo.handwriting import DIGITS
from vlmprobe.demo.scenes import Scene, held_out

QUESTION = "Describe the picture."
OTHERS = ("blank", "blur", "noise")
SCENES = 100


def main() -> None:
    """Draw and write everything."""
    mpl.use("Agg")
    probe = vlmprobe.load("demo", device="cpu")
    named = bundled()
    clear = next(iter(named.values()))
    unsure = next(scene for name, scene in named.items() if name.startswith("unsure"))
    scenes = list(held_out(SCENES))
    draw_contrast(probe, clear)
    draw_regions(probe, clear)
    measure_worth(probe, scenes)
    draw_lens(probe, unsure)
    draw_layers(probe, scenes)


def draw_contrast(probe: Any, scene: Scene) -> None:
    """What the image contributed to each word, with both digits present and with one painted over."""
    for name, image in (("contrast", scene.picture), ("unsupported", half_hidden(scene))):
        found = contrast(probe, QUESTION, image, against=OTHERS)
        save(name, lambda image=image, found=found: beside(image, found.plot, 3.4))


def draw_regions(probe: Any, scene: Scene) -> None:
    """What each half of the image, and each cell of a finer grid, contributed to each word."""
    words = {*scene.colours, *DIGITS}
    grids = [contrast(probe, QUESTION, scene.picture, regions=grid, cover=BACKGROUND) for grid in ((1, 2), (5, 5))]
    rows = [row for row, token in enumerate(grids[0].answer.tokens) if token.strip() in words]

    def draw() -> Any:
        figure, axes = pyplot.subplots(2, len(rows), figsize=(2.3 * len(rows), 4.8), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.1)
        for line, found in zip(axes, grids, strict=True):
            limit = found.regions[:, :, rows].max()
            for ax, row in zip(line, rows, strict=True):
                found.plot_regions(row, ax, limit=limit)
                if row != rows[-1]:
                    ax.images[-1].colorbar.remove()
        return axes[0, 0]

    save("regions", draw, colours=160)


def measure_worth(probe: Any, scenes: list[Scene]) -> None:
    """How well ``pmi`` separates digits that are there from digits that are painted over."""
    worth: list[float] = []
    listed: list[tuple[bool, bool]] = []
    for image in [*(scene.picture for scene in scenes), *(half_hidden(scene) for scene in scenes)]:
        found = contrast(probe, "Which digit is on the right?", image, against=OTHERS)
        worth.append(float(found.pmi[0]))
        listed.append((0 in found.unsupported(), 0 in found.unsupported(below=1.5)))
    there = np.arange(2 * len(scenes)) < len(scenes)
    area = calibration.bootstrap(calibration.auroc, worth, there)
    values = np.array(worth)
    lines = [
        "| the digit on the right | median `pmi` (nats) | listed by `unsupported()` | by `unsupported(below=1.5)` |",
        "|---|---|---|---|",
        *(
            f"| {name} | {np.median(values[at]):.2f} | {share[0]:.0%} | {share[1]:.0%} |"
            for name, at in (("is there", there), ("is painted over", ~there))
            for share in [np.array(listed)[at].mean(axis=0)]
        ),
        "",
        f"{len(scenes)} scenes each. `pmi` separates the two with an AUROC of {area}.",
    ]
    write("contrast", "figures", lines, "draw_looking")


def draw_lens(probe: Any, scene: Scene) -> None:
    """Layers by tokens."""
    found = lens(probe, QUESTION, scene.picture)
    save("lens", lambda: beside(scene.picture, found.plot, 2.9), colours=160)


def draw_layers(probe: Any, scenes: list[Scene]) -> None:
    """The probability that each layer gives to the final word, by kind of word."""
    kinds: dict[str, list[np.ndarray]] = {"grammar": [], "colour": [], "digit": []}
    layers = np.empty(0)
    for scene in scenes:
        found = lens(probe, QUESTION, scene.picture)
        layers = found.layers
        for row, token in enumerate(found.tokens):
            word = token.strip()
            kind = "digit" if word in DIGITS else "colour" if word in scene.colours else "grammar"
            kinds[kind].append(np.exp(found.logprobs[:, row]))
    mean = {kind: np.mean(columns, axis=0) for kind, columns in kinds.items()}

    def draw() -> Any:
        ax = plots.axes(None, size=(5.4, 3.2))
        for place, (kind, values) in enumerate(mean.items()):
            line = plots.MARKERS[place] + plots.LINES[place]
            ax.plot(layers, values, line, color=plots.COLOURS[place], label=kind)
        ax.set(ylim=(0, 1.03), xticks=layers, xlabel="decoder layer", ylabel="probability of the final word")
        ax.legend(frameon=False, fontsize="small")
        return ax

    save("lens-layers", draw)
    head = "| " + " | ".join(["kind of word", *(f"layer {layer}" for layer in layers)]) + " |"
    rows = ["| " + " | ".join([kind, *(f"{value:.2f}" for value in values)]) + " |" for kind, values in mean.items()]
    count = {kind: len(columns) for kind, columns in kinds.items()}
    told = f"Mean over {', '.join(f'{number} {kind} words' for kind, number in count.items())}."
    write("lens", "figures", [head, "|---" * (len(layers) + 1) + "|", *rows, "", told], "draw_looking")


def half_hidden(scene: Scene) -> Image.Image:
    """The image with its right half painted over in the background colour."""
    wide, high = scene.picture.size
    return covered(scene.picture, (wide // 2, 0, wide, high), BACKGROUND)


def beside(image: Image.Image, plot: Any, high: float) -> Any:
    """A plot with its image on the left."""
    _, (view, ax) = pyplot.subplots(1, 2, figsize=(10.5, high), layout="constrained", width_ratios=[1, 4.6])
    view.imshow(image)
    view.axis("off")
    return plot(ax)


if __name__ == "__main__":
    main()
