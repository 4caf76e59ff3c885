"""Finds the images of a few rows of a run again, and writes thumbnails of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmprobe.errors import VlmprobeError
from vlmprobe.inputs.images import load_image, thumbnail
from vlmprobe.runs.images import Images
from vlmprobe.runs.remembered import FOLDER, read_known

__all__ = ["Found"]

SIDE = 480  # pixels of a thumbnail
PIXEL_ART = 96  # an image no larger than this is stored losslessly


class Found:
    """The image files that rows were asked about, by the hash of their content.

    A run keeps no pixels. It remembers the paths of files by their hashes; a file that is not there any more, or has
    another content now, is not shown.

    Args:
        folder: of the run.
        rows: that may be shown.
        root: where paths of the data set start, for files that have been moved.
    """

    def __init__(self, folder: Path, rows: Sequence[Mapping[str, Any]], root: Path | None = None) -> None:
        wanted = {image["hash"] for row in rows for image in row["images"] or ()}
        self._paths = {known[2]: path for path, known in read_known(folder / FOLDER).items() if known[2] in wanted}
        self._root = root

    def write(self, row: Mapping[str, Any], folder: Path, place: int) -> tuple[list[dict[str, Any]], list[str]]:
        """Write thumbnails of a row's images: what a page needs to show them, and why others are not shown."""
        shown, gone = [], []
        for number, image in enumerate(row["images"] or ()):
            path, why = self.path(image)
            if path is None:
                gone.append(why)
                continue
            try:
                loaded = load_image(path)
            except (VlmprobeError, OSError) as error:
                gone.append(f"{image['path'] or f'image {number + 1}'} cannot be read: {error}")
                continue
            small = max(loaded.size) <= PIXEL_ART
            made = loaded if small else thumbnail(loaded, SIDE)
            name = f"image-{place}-{number}.{'png' if small else 'jpg'}"
            with (folder / name).open("xb") as file:
                made.convert("RGB").save(file, "PNG" if small else "JPEG")
            shown.append({"file": name, "width": made.width, "height": made.height, "small": small})
        return shown, gone

    def path(self, image: Mapping[str, Any]) -> tuple[Path | None, str]:
        """The file of one image of a row; None, and why, if it is not found as it was."""
        kind = str(image["hash"]).partition(":")[0] if ":" in str(image["hash"]) else "file"
        name = image["path"] or "the image"
        if kind == "address":
            return None, f"{name} is an address, which a report does not fetch."
        if kind == "pixels" or image["path"] is None:
            return None, "The image came as data, of which a run keeps no copy."
        if kind != "file":
            return None, f"{name} could not be read when it was asked about."
        known = self._paths.get(image["hash"])
        roots = ([(None, known)] if known else []) + [(self._root, image["path"])]
        for root, text in roots:
            if Images(root).seen(text).hash == image["hash"]:
                return (Path(text) if root is None else root / text), ""
        return None, f"{name} is not there any more, or has another content now."
