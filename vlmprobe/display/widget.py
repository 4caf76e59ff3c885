"""``AnswerWidget``: an answer or candidates as an anywidget, for Jupyter, VS Code, Colab and marimo.

The browser part is ``answer.js``, which pages use too, and ``widget.js``. Needs the extra ``widget``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from PIL.Image import Image

from vlmprobe.display.html import image_parts, read_template
from vlmprobe.errors import MissingExtraError, ResultError

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise MissingExtraError("anywidget", "widget") from error

__all__ = ["AnswerWidget", "HasDocument", "document_of"]


class HasDocument(Protocol):
    """What a widget can show: ``Result`` and ``Scores`` are such."""

    @property
    def images(self) -> Sequence[Image]: ...  # noqa: D102

    def to_dict(self) -> dict[str, Any]:
        """Everything but images, as JSON-ready values."""


def document_of(shown: HasDocument) -> dict[str, Any]:
    """``to_dict()`` of what is shown, with its images as ``data:`` URLs.

    Raises:
        ResultError: for something that is neither an answer nor candidates.
    """
    document = shown.to_dict() if hasattr(shown, "to_dict") and hasattr(shown, "images") else {}
    if "output" not in document and "candidates" not in document:
        raise ResultError(f"A Result or Scores can be shown as a widget, not {type(shown).__name__}.")
    return document | {"images": pictures(shown.images)}


def pictures(images: Sequence[Image]) -> list[str]:
    """Images as ``data:`` URLs, at the size at which they are displayed."""
    return [image_parts(image)["uri"] for image in images]


class AnswerWidget(anywidget.AnyWidget):
    """An answer shaded by the confidence of its tokens, or candidates with bars.

    ``selected`` is what was selected last by a click or the arrow keys, or None: the row of :meth:`Result.to_dict`
    with ``part`` ("output", "prompt" or "candidates") and ``index`` (from 0) beside it. It can be observed as any
    trait: ``w.observe(function, "selected")``.
    """

    _esm = read_template("answer.js") + read_template("widget.js")
    _css = read_template("style.css") + read_template("answer.css")

    document = traitlets.Dict().tag(sync=True)
    lang = traitlets.Unicode().tag(sync=True)
    asks = traitlets.Bool(False).tag(sync=True)  # whether there is a box to ask a question in
    _selection = traitlets.Dict(default_value=None, allow_none=True).tag(sync=True)  # part and index
    selected = traitlets.Dict(default_value=None, allow_none=True, read_only=True)

    def __init__(self, shown: HasDocument | None = None, *, lang: str | None = None, **traits: Any) -> None:
        """Show something.

        Args:
            shown: a result or scores.
            lang: "en" or "zh"; by default the browser's language.
            traits: traits of the widget.

        Raises:
            ResultError: for something that cannot be shown.
        """
        if shown is not None:
            traits["document"] = document_of(shown)
        super().__init__(lang=lang or "", **traits)

    def select(self, index: int | None, part: str | None = None) -> None:
        """Select a row of the answer, of the prompt (``part="prompt"``) or of the candidates; None selects nothing.

        Raises:
            ResultError: for a row that is not there.
        """
        part = part or ("candidates" if "candidates" in self.document else "output")
        chosen: dict[str, Any] | None = None if index is None else {"part": part, "index": index}
        if index is not None and self._row(chosen) is None:
            raise ResultError(f"There is no row {index} of {part}.")
        self._selection = chosen  # type: ignore[assignment]

    def _row(self, selection: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """The row that a selection names, or None."""
        part, index = (selection or {}).get("part"), (selection or {}).get("index")
        if part not in ("output", "prompt", "candidates") or type(index) is not int:
            return None
        rows = self.document.get(part) or []
        return {"part": part, "index": index, **rows[index]} if 0 <= index < len(rows) else None

    @traitlets.observe("_selection", "document")
    def _look_up(self, _: Any) -> None:
        self.set_trait("selected", self._row(self._selection))
