"""Display of a gallery: examples with images, question, right answer, and one answer or two side by side."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from vlmprobe.display import view
from vlmprobe.display.html import document, environment, image_parts, wrapped
from vlmprobe.display.shown import ShownExample, ShownGallery, ShownResult

__all__ = ["gallery_html", "gallery_page", "gallery_rich"]

FAINT = Style(dim=True)
MARKS = {True: "✓", False: "✗"}
WORDS = {True: "right", False: "wrong"}


def gallery_html(gallery: ShownGallery) -> str:
    """A gallery as an HTML fragment with its own style, for Jupyter."""
    head = environment().get_template("gallery.html").render(title=view.plain(gallery.title), count=_count(gallery))
    return wrapped(head + "".join(_article(each, gallery) for each in gallery.examples))


def gallery_page(gallery: ShownGallery) -> str:
    """A gallery as one self-contained HTML page."""
    return document(gallery.title, _count(gallery), [_article(each, gallery) for each in gallery.examples])


def gallery_rich(gallery: ShownGallery) -> RenderableType:
    """A gallery for a terminal, one line per example."""
    grid = Table(box=None, pad_edge=False, padding=(0, 1), header_style=FAINT, expand=False)
    for name in ("id", "question", "right answer", *map(view.label, gallery.names)):
        grid.add_column(Text(name), overflow="fold")
    for each in gallery.examples:
        said = [
            Text(f"{MARKS[each.correct[place]]} " if each.correct else "")
            .append(view.plain(text))
            .append(f" {view.percent(each.confidences[place])}", style=FAINT)
            for place, text in enumerate(each.texts)
        ]
        question = Text(view.plain("\n".join(each.questions)))
        grid.add_row(Text(_shown(each.id)), question, Text(_shown(each.gold)), *said)
    return Group(Text(f"{view.plain(gallery.title)}: {_count(gallery)}", style=FAINT), grid)


def _article(example: ShownExample, gallery: ShownGallery) -> str:
    answers: list[dict[str, Any]] = [
        {
            "name": view.plain(name),
            "text": view.plain(example.texts[place]),
            "rows": view.rows(answer.output) if isinstance(answer, ShownResult) else [],
            "confidence": view.percent(example.confidences[place]),
            "verdict": f"{MARKS[example.correct[place]]} {WORDS[example.correct[place]]}" if example.correct else "",
        }
        for place, (name, answer) in enumerate(zip(gallery.names, example.answers, strict=True))
    ]
    return (
        environment()
        .get_template("example.html")
        .render(
            id=_shown(example.id),
            images=[image_parts(image) for image in example.images],
            questions=[view.plain(each) for each in example.questions],
            gold=_shown(example.gold),
            answers=answers,
        )
    )


def _count(gallery: ShownGallery) -> str:
    shown = len(gallery.examples)
    if not shown:
        return "none"
    examples = "example" if gallery.total == 1 else "examples"
    return f"{shown:,} of {gallery.total:,} {examples}" if shown < gallery.total else f"{shown:,} {examples}"


def _shown(value: Any) -> str:
    """An id or a right answer, which may be several texts; nothing for None."""
    if value is None:
        return ""
    several = value if isinstance(value, list | tuple | set | frozenset) else [value]
    return view.plain(" / ".join(map(str, several)))
