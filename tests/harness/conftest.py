"""Documents with images for both harnesses: in memory, and as a Parquet file that ``datasets`` has written."""

from __future__ import annotations

import io
import os
import sys

import pytest
from PIL import Image

from vlmprobe.demo import sample_images

WORDS = ["one", "two", "seven", "nine"]


@pytest.fixture(scope="session")
def documents():
    """Three, each with an image of its own; the model is right on two of them."""
    asked = zip(sample_images(), ("left", "right", "left"), ("nine", "two", "seven"), strict=False)
    return [
        {
            "image": Image.open(path).convert("RGB"),
            "question": f"Which digit is on the {side}?",
            "choices": WORDS,
            "answer": WORDS.index(answer),
        }
        for path, side, answer in asked
    ]


@pytest.fixture(scope="session")
def parquet(tmp_path_factory, documents):
    """The path of them as Parquet."""
    datasets = pytest.importorskip("datasets")
    path = tmp_path_factory.mktemp("documents") / "test.parquet"
    rows = []
    for each in documents:
        file = io.BytesIO()
        each["image"].save(file, "png")
        rows.append({**each, "image": {"bytes": file.getvalue(), "path": None}})
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "choices": [datasets.Value("string")],
            "answer": datasets.Value("int64"),
        }
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    return path


@pytest.fixture
def offline(tmp_path):
    """An environment for a command of a harness: no hub, and a cache of its own."""
    own = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    return {**os.environ, **own, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
