"""The bundled images: ``python -m vlmprobe.demo.bundle`` regenerates them from the held-out scenes."""

from __future__ import annotations

from pathlib import Path

from vlmprobe.demo.handwriting import DIGITS
from vlmprobe.demo.scenes import Scene, scene_at

__all__ = ["PLACES", "bundled", "write"]

SEED = 7
PLACES = (0, 2, 5, 23, 35)  # indices into the held-out scenes of this seed
UNSURE = (500,)  # scenes with a digit that is hard to read, for people as for the shipped model


def bundled() -> dict[str, Scene]:
    """Scenes by file name."""
    named = {}
    for place in (*PLACES, *UNSURE):
        scene = scene_at(SEED, place)
        parts = [f"{colour}_{DIGITS[digit]}" for colour, digit in zip(scene.colours, scene.digits, strict=True)]
        named[f"{'unsure_' if place in UNSURE else ''}{'_and_'.join(parts)}.png"] = scene
    return named


def write(folder: Path) -> None:
    """Write every bundled image into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, scene in bundled().items():
        scene.picture.save(folder / name, optimize=True)


if __name__ == "__main__":
    write(Path(__file__).resolve().parent / "pictures")
