"""Draw the plot of the page on fields: ``python tools/docs/draw_fields.py``.

The embedded model writes no JSON; the bars are its answers to five questions about one scene.
"""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from draw_confidence import save

import vlmprobe
from vlmprobe.demo import sample_questions
from vlmprobe.display.plots.fields import draw_fields

SCENES = 12
PATHS = ("left.digit", "right.digit", "left.colour", "right.colour", "same")


def main() -> None:
    """Draw the scene with the least sure answer."""
    mpl.use("Agg")
    probe = vlmprobe.load("demo", device="cpu")
    asked = [row for place, row in enumerate(sample_questions(7 * SCENES, strength=2.0)) if 1 <= place % 7 <= 5]
    results = list(probe.generate_many(asked, prompt=False, progress=False))
    scenes = [results[first : first + 5] for first in range(0, len(results), 5)]
    scene = min(scenes, key=lambda each: min(result.confidence for result in each))
    names = [f"{path}: {result.text}" for path, result in zip(PATHS, scene, strict=True)]
    sure = np.array([result.confidence for result in scene])
    save("fields", lambda: draw_fields(names, sure, sure))


if __name__ == "__main__":
    main()
