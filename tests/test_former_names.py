"""Former names work as the new ones do, with a warning; docs/reference/renamed.md lists them."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from common import DOCS
from PIL import Image

from vlmprobe import demo
from vlmprobe.analysis import image_variants
from vlmprobe.analysis.image_contrast import Contrast
from vlmprobe.probe.rank import Ranking

PAGE = (DOCS / "reference" / "renamed.md").read_text(encoding="utf-8")
RED = Image.new("RGB", (4, 4), "red")
RANKING = Ranking("q", np.zeros(1), ["d"], [RED])


@pytest.mark.parametrize(
    ("thing", "old", "new"),
    [
        (RANKING, "pictures", "images"),
        (next(iter(RANKING)), "picture", "image"),
        (Contrast(None, [], [], image=RED, variants=[RED]), "picture", "image"),
        (Contrast(None, [], [], image=RED, variants=[RED]), "pictures", "variants"),
    ],
)
def test_attributes(thing, old, new):
    named = f"{type(thing).__name__}.{old}"
    with pytest.warns(DeprecationWarning, match=rf"{named} is now {type(thing).__name__}\.{new};"):
        assert getattr(thing, old) is getattr(thing, new)
    assert named in PAGE


def test_images_of_the_demo():
    with pytest.warns(DeprecationWarning, match=r"vlmprobe\.demo\.pictures is now vlmprobe\.demo\.sample_images;"):
        assert demo.pictures() == demo.sample_images()


@pytest.mark.parametrize(
    ("old", "new"),
    [("vlmprobe.analysis.pictures", image_variants), ("vlmprobe.messages", None), ("vlmprobe.result", None)],
)
def test_modules(old, new):
    assert importlib.import_module(old) is new or new is None
    assert f"| `{old}` |" in PAGE
