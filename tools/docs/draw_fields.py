"""Draw the plots and write the figures of the page on fields: ``python tools/docs/draw_fields.py``.

Everything is measured on the embedded model that answers with JSON. Takes a minute or two.
"""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
from draw_confidence import save, write
from matplotlib import pyplot

import vlmprobe
from vlmprobe.analysis import calibration, field_alternatives, fields, gating, plots
from vlmprobe.analysis.field_frame import field_frame
from vlmprobe.demo import sample_forms
from vlmprobe.results.result import Result

IMAGES = 600  # half to choose the thresholds from, half to see what they do
ERRORS = 0.01
PATHS = ("left", "right")


def main() -> None:
    """Draw and write everything."""
    mpl.use("Agg")
    probe = vlmprobe.load("demo-forms", device="cpu")
    forms = sample_forms(IMAGES)
    results = list(probe.generate_many(forms, batch_size=64, prompt=False, progress=False))
    draw_one(probe, forms, results)
    draw_gate(results)


def draw_one(probe: Any, forms: list[dict[str, Any]], results: list[Result]) -> None:
    """An image whose left digit is read wrongly, the right one being second: its fields, and what else it might be."""
    for form, result in zip(forms, results, strict=True):
        found, truth = fields(result), form["gold"]["left"]
        if found.paths != list(PATHS) or found.values[0] == truth:
            continue
        others = field_alternatives(probe, result, "left", k=4, image=form["image"])
        if others.values[1] == truth and others.probability[:2].sum() > 0.6:
            break

    def draw() -> Any:
        figure = pyplot.figure(figsize=(9, 4.4), layout="constrained")
        grid = figure.add_gridspec(2, 2, width_ratios=[2, 3], height_ratios=[2, 5])
        ax, above, below = (figure.add_subplot(each) for each in (grid[:, 0], grid[0, 1], grid[1, 1]))
        ax.imshow(form["image"])
        ax.axis("off")
        found.plot(above)
        others.plot(below)
        return above

    save("fields", draw, colours=128)


def draw_gate(results: list[Result]) -> None:
    """Thresholds from the first half of the images, and what they do on the second."""
    rows = field_frame(results, [row["gold"] for row in sample_forms(len(results))])
    rows = rows.dropna(subset="at_least")
    first, second = rows[rows["answer"] < len(results) // 2], rows[rows["answer"] >= len(results) // 2]
    lines = ["| field | right | threshold | a person checks | wrong, of the accepted | wrong in the end |"]
    lines += ["|---|---|---|---|---|---|"]
    curves, points = {}, []
    for path in PATHS:
        part, rest = first[first["path"] == path], second[second["path"] == path]
        value = gating.accept_for_errors(part["at_least"], part["correct"], ERRORS).value
        accepted = (rest["at_least"] >= value).to_numpy()
        wrong = accepted & ~rest["correct"].to_numpy()
        curves[path] = calibration.risk_coverage(rest["at_least"], rest["correct"])
        points.append((accepted.mean(), 100 * wrong.sum() / accepted.sum()))
        lines.append(
            f"| `{path}` | {rest['correct'].mean():.1%} | {value:.4f} | {1 - accepted.mean():.1%} "
            f"| {wrong.sum() / accepted.sum():.1%} | {wrong.mean():.1%} |"
        )
    write("fields", "gate", lines, script="draw_fields")

    def draw() -> Any:
        ax = plots.risk_coverage(curves)
        for place, (share, wrong) in enumerate(points):
            ax.plot(share, wrong, "D", color=plots.COLOURS[place], markersize=9, zorder=4)
        return ax

    save("fields-gate", draw)


if __name__ == "__main__":
    main()
