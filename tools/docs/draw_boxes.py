"""Draw the plot of the page on boxes: ``python tools/docs/draw_boxes.py``.

The embedded model writes no boxes. The answer is made by hand: two boxes in PaliGemma's notation about one of its
scenes, and for each side a normal distribution over the location tokens, or two of them.
"""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from draw_confidence import save
from PIL import Image

from vlmprobe.analysis import boxes
from vlmprobe.demo import sample_images
from vlmprobe.results.result import Result
from vlmprobe.results.table import TokenTable, empty_numbers, joined

BINS = 1023
SCENE = (  # label and its probability; y1, x1, y2, x2: places in pixels, their standard deviations, and probabilities
    (" blue nine", 0.93, ((86, 3, 1.0),), ((27, 2, 1.0),), ((214, 3, 0.7), (158, 5, 0.3)), ((107, 2, 1.0),)),
    (" purple six", 0.88, ((37, 9, 1.0),), ((154, 2, 1.0),), ((159, 2, 1.0),), ((216, 2, 1.0),)),
)


def side_of(modes: tuple[tuple[float, float, float], ...], pixels: int) -> np.ndarray:
    """Probabilities of the 1,024 location tokens."""
    places = np.arange(BINS + 1) * pixels / BINS
    found = sum(share * np.exp(-(((places - mean) / spread) ** 2) / 2) / spread for mean, spread, share in modes)
    return np.asarray(found) / np.sum(found)


def answer(image: Image.Image) -> Result:
    """An answer whose tokens have these probabilities."""
    tokens: list[str] = []
    rows: list[np.ndarray] = []
    for label, sure, *sides in SCENE:
        for modes in sides:
            rows.append(side_of(modes, image.width))
            tokens.append(f"<loc{int(np.argmax(rows[-1])):04}>")
        rows.append(np.array([sure]))
        tokens.append(label)
        rows.append(np.array([1.0]))
        tokens.append(" ;")
    numbers = empty_numbers(len(tokens), BINS + 1)
    top_tokens = []
    for place, (token, row) in enumerate(zip(tokens, rows, strict=True)):
        numbers["logprobs"][place] = np.log(row.max())
        with np.errstate(divide="ignore"):
            numbers["top_logprobs"][place, : len(row)] = np.log(row)
        top_tokens.append([f"<loc{each:04}>" if len(row) > 1 else token for each in range(BINS + 1)])
    table = TokenTable(
        ids=None,
        tokens=tokens,
        kinds=["text"] * len(tokens),
        positions=np.arange(len(tokens)),
        offsets=joined(tokens),
        top_tokens=top_tokens,
        **numbers,
    )
    return Result("".join(tokens), None, table, None, {"image_sizes": [list(image.size)]}, (image,))


def main() -> None:
    """Draw the boxes on the scene."""
    mpl.use("Agg")
    with Image.open(sample_images()[0]) as image:
        result = answer(image.convert("RGB"))
    save("boxes", boxes(result).plot)


if __name__ == "__main__":
    main()
