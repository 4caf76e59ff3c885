"""Saving of results and scores, as safetensors and JSON, and how they are shown in a terminal and in Jupyter."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from PIL.Image import Image, fromarray
from PIL.Image import open as opened

from vlmprobe.errors import ResultError
from vlmprobe.results.replacing import replacing
from vlmprobe.results.table import TokenTable
from vlmprobe.results.written import ELSEWHERE, written

if TYPE_CHECKING:
    from vlmprobe.display.shown import Shown

__all__ = ["ARRAYS", "DOCUMENT", "FORMAT", "SECOND_ARRAYS", "Saved", "pack", "table_of", "unpack"]

FORMAT = 2  # version of the saved layout; 1 kept the pixels of images unpacked
ARRAYS, SECOND_ARRAYS, DOCUMENT = "arrays.safetensors", "arrays-2.safetensors", "result.json"


class Saved:
    """Saving, and display in a terminal and in Jupyter, of results and scores."""

    def save(self, path: str | Path) -> Path:
        """Write to ``path``: one file if it ends in ``.safetensors``, else a folder of safetensors and JSON.

        A save that is interrupted leaves what was there before.

        Raises:
            ResultError: for text or ``meta`` that JSON cannot hold, or a ``path`` that is or names a file of another
                kind.
            OSError: if ``path`` cannot be written.
        """
        from safetensors.numpy import save_file

        arrays, document = self._parts()  # type: ignore[attr-defined]
        document |= {"format": FORMAT, "type": type(self).__name__}
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        path = Path(path)
        single = path.suffix == ".safetensors"
        if not single:
            if path.is_file():
                raise ResultError(f"{path} is a file: save to a folder, or to a name that ends in .safetensors.")
            if path.suffix.lower() in ELSEWHERE and not path.is_dir():
                writes = ELSEWHERE[path.suffix.lower()]
                raise ResultError(f"save writes a folder or a .safetensors file; {writes} writes {path.name}.")
            document["arrays"] = _free_name(path)
        try:
            text = json.dumps(document, ensure_ascii=False, indent=1)
            text.encode()  # before anything is written: a lone surrogate has no UTF-8
        except (TypeError, ValueError) as error:
            raise ResultError(
                f"Text or meta cannot be written as JSON: {error}. Use strings or numbers as ids."
            ) from error
        if single:
            with replacing(path) as unfinished:
                save_file(arrays, unfinished, metadata={"vlmprobe": text})
            return path
        with replacing(path / document["arrays"]) as unfinished:
            save_file(arrays, unfinished)
        with replacing(path / DOCUMENT) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
        (path / (SECOND_ARRAYS if document["arrays"] == ARRAYS else ARRAYS)).unlink(missing_ok=True)
        return path

    def to_dict(self) -> dict[str, Any]:
        """Everything but images, full logits and hidden states as JSON-ready values.

        Numbers that are not finite are None.
        """
        return self._document()  # type: ignore[attr-defined]

    @overload
    def to_json(self, path: None = ...) -> str: ...
    @overload
    def to_json(self, path: str | Path) -> Path: ...
    def to_json(self, path: str | Path | None = None) -> str | Path:
        """:meth:`to_dict` as one line of JSON, or the path of the file that it is written to.

        Raises:
            ResultError: for a ``path`` that holds something else than JSON.
        """
        from vlmprobe.results.document import dumps

        text = dumps(self.to_dict())
        return text if path is None else written(text + "\n", path, "json")

    @overload
    def to_html(self: Shown, path: None = ...) -> str: ...
    @overload
    def to_html(self: Shown, path: str | Path) -> Path: ...
    def to_html(self: Shown, path: str | Path | None = None) -> str | Path:
        """One self-contained HTML page, or the path of the file that it is written to.

        Raises:
            ResultError: for a ``path`` that holds something else than HTML.
        """
        from vlmprobe.display.html import page

        return written(page([self]), path, "html")

    def _repr_html_(self: Shown) -> str:
        from vlmprobe.display import fragment

        return fragment(self)

    def __rich_console__(self: Shown, console: Any, options: Any) -> Any:
        from vlmprobe.display import rich_view

        yield rich_view(self)

    def show(self) -> None:
        """Print to the terminal."""
        from rich.console import Console

        Console().print(self)


def table_of(name: str, arrays: dict[str, np.ndarray], rest: dict[str, Any]) -> TokenTable:
    """The table whose columns are the arrays ``name.COLUMN``."""
    head = f"{name}."
    return TokenTable.from_parts({key[len(head) :]: arrays[key] for key in arrays if key.startswith(head)}, rest)


def _free_name(folder: Path) -> str:
    """The name for new arrays: those that are there stay until the JSON that names them is replaced."""
    return SECOND_ARRAYS if (folder / ARRAYS).exists() else ARRAYS


def pack(images: tuple[Image, ...]) -> dict[str, np.ndarray]:
    """Images as the bytes of PNG files, uint8 [N]."""
    packed = {}
    for place, image in enumerate(images):
        file = BytesIO()
        image.convert("RGB").save(file, "PNG")
        packed[f"image.{place}"] = np.frombuffer(file.getvalue(), np.uint8)
    return packed


def unpack(arrays: dict[str, np.ndarray]) -> tuple[Image, ...]:
    """The images that :func:`pack` packed, or layout 1."""
    count = sum(key.startswith("image.") for key in arrays)
    return tuple(map(_image, (arrays[f"image.{place}"] for place in range(count))))


def _image(array: np.ndarray) -> Image:
    if array.ndim == 3:  # layout 1
        return fromarray(array, mode="RGB")
    image = opened(BytesIO(array.tobytes()), formats=("PNG",))
    image.load()
    return image
