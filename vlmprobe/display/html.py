"""Results as HTML: a fragment for Jupyter, scoped and free of scripts, and a self-contained page.

Templates escape whatever they are given. The style sheet is one nested block under a class that carries the
sheet's own hash, so that a fragment affects neither the notebook around it nor another version's fragment.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmprobe.display import view
from vlmprobe.display.shown import Shown, ShownAnswer, ShownResult, ShownScores, ShownTable
from vlmprobe.inputs.images import thumbnail

if TYPE_CHECKING:
    from jinja2 import Environment
    from PIL.Image import Image

__all__ = [
    "document",
    "environment",
    "fragment",
    "image_parts",
    "page",
    "read_template",
    "styles",
    "table_html",
    "wrapped",
]

IMAGE_SIDE = 480  # pixels: twice the width of the column, for high-density screens
THUMB_SIDE = 40
PIXEL_ART = 96  # an image no larger than this is enlarged without smoothing, and stored losslessly
SHOWN_CANDIDATES = 25
TABLE_HEAD, TABLE_TAIL = 40, 10


def fragment(result: Shown) -> str:
    """A ``Result`` or ``Scores`` as an HTML fragment with its own style, for Jupyter. Works without JavaScript."""
    return wrapped(_article(result, legend=True))


def table_html(table: ShownTable) -> str:
    """A table's tokens as shaded text and as rows, the middle left out if there are many."""
    rows = view.rows(table)
    cut = len(rows) > TABLE_HEAD + TABLE_TAIL
    article = (
        environment()
        .get_template("table.html")
        .render(
            rows=rows,
            chips=_chips(table, ()),
            head=rows[:TABLE_HEAD] if cut else rows,
            tail=rows[-TABLE_TAIL:] if cut else [],
            omitted=len(rows) - TABLE_HEAD - TABLE_TAIL if cut else 0,
        )
    )
    return wrapped(article)


def page(results: Sequence[Shown], title: str | None = None) -> str:
    """One self-contained HTML page of several results: it makes no requests and runs only its own script.

    Args:
        results: each a ``Result`` or ``Scores``, in the order to show.
        title: the heading; by default the models' names.
    """
    models = list(dict.fromkeys(str(each.meta["model"]) for each in results if each.meta.get("model")))
    sources = list(dict.fromkeys(" · ".join(view.provenance(each.meta)[1:]) for each in results))
    count = f"{len(results)} results" if len(results) != 1 else ""
    subtitle = " · ".join(filter(None, [count, sources[0] if len(sources) == 1 else ""]))
    return document(
        title or ", ".join(models) or "vlmprobe",
        subtitle,
        [_article(each, legend=False) for each in results],
        shaded=any(isinstance(each, ShownResult) for each in results),  # candidates are not
    )


def document(title: str, subtitle: str, articles: Sequence[str], *, shaded: bool = True) -> str:
    """One self-contained HTML page.

    Args:
        title: the heading, as text.
        subtitle: below it, as text.
        articles: HTML that templates rendered, and so escaped.
        shaded: whether there are tokens shaded by their probability, which the legend explains.
    """
    from markupsafe import Markup

    return (
        environment()
        .get_template("page.html")
        .render(
            title=view.plain(title),
            subtitle=view.plain(subtitle),
            articles=[Markup(each) for each in articles],
            shaded=shaded,
        )
    )


def _article(result: Shown, legend: bool) -> str:
    """A result as one ``<article>``; its kind is determined by its attributes."""
    common = {
        "legend": legend,
        "images": [image_parts(image) for image in result.images],
        "question": view.plain(str(result.meta.get("question") or "")),
        "provenance": view.provenance(result.meta),
        "meta": [(view.label(str(name)), _value(value)) for name, value in result.meta.items() if name != "question"],
    }
    if isinstance(result, ShownScores):
        lines = _candidates(result)
        thought = result.thought if isinstance(result, ShownAnswer) else None
        return (
            environment()
            .get_template("scores.html")
            .render(
                common
                | {
                    "candidates": lines[:SHOWN_CANDIDATES],
                    "more": lines[SHOWN_CANDIDATES:],
                    "mass": view.held(result),
                    "little": isinstance(result, ShownAnswer) and result.mass < view.LITTLE,  # the note says so
                    "said": view.plain(result.said) if isinstance(result, ShownAnswer) else "",
                    "note": view.plain(result.note) if isinstance(result, ShownAnswer) else "",
                    "thought": [] if thought is None else view.rows(thought.output),
                    "thought_told": "" if thought is None else view.plain(_capital(thought.told)),
                    "rates": not bool(np.isnan(result.means).all()),
                }
            )
        )
    if not isinstance(result, ShownResult):
        raise TypeError(f"a Result or Scores can be shown, not {type(result).__name__}")
    prompt = result.prompt
    return (
        environment()
        .get_template("result.html")
        .render(
            common
            | {
                "figures": view.figures(result),
                "output": view.rows(result.output),
                "chips": _chips(result.output, result.images),
                "prompt": [] if prompt is None else view.rows(prompt),
                "prompt_chips": {} if prompt is None else _chips(prompt, result.images),
                "prompt_summary": "" if prompt is None else _prompt_summary(prompt),
            }
        )
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def wrapped(article: str) -> str:
    """An article inside the scope of its style."""
    scope, style = _style()
    return f'<div class="{scope}"><style>{style}</style>{article}</div>'


def _candidates(scores: ShownScores) -> list[dict[str, Any]]:
    """The candidates, best first. If the tokens spell more than the candidate, its name is shown instead."""
    probabilities, means, per_byte = scores.probabilities, scores.means, scores.per_byte
    lines = []
    for rank, place in enumerate(view.order(scores)):
        table, name, probability = scores.tables[place], scores.candidates[place], float(probabilities[place])
        lines.append(
            {
                "name": view.label(name),
                "tokens": view.rows(table, alternatives=3) if "".join(table.tokens).strip() == name.strip() else [],
                "boundary": view.plain(scores.boundaries[place] or ""),
                "best": not rank,
                "probability": view.share(scores, place),
                "width": 0 if math.isnan(probability) else round(100 * probability),
                "logprob": view.summed(scores, place),
                "mean": view.nats(float(means[place])),
                "per_byte": view.nats(float(per_byte[place])),
            }
        )
    return lines


def _chips(table: ShownTable, images: Sequence[Image]) -> dict[int, dict[str, Any]]:
    """Per image row: its number, its count of positions, and a thumbnail if the image is available."""
    chips = {}
    for row, kind in enumerate(table.kinds):
        if kind == "image":
            image, count, runs = view.positions(table, row)
            thumb = _uri(thumbnail(images[image], THUMB_SIDE)) if image < len(images) else None
            chips[row] = {"number": image + 1, "positions": count, "runs": runs, "thumb": thumb}
    return chips


def _prompt_summary(prompt: ShownTable) -> str:
    images = prompt.kinds.count("image")
    words = [view.counted(len(prompt) - images, "token")]
    if images:
        words.append(view.counted(images, "image"))
    if not np.isnan(prompt.perplexity):
        words.append(f"perplexity {view.short(prompt.perplexity)}")
    return " · ".join(words)


def image_parts(image: Image) -> dict[str, Any]:
    """An image for the templates: its ``data:`` URL and its size."""
    small = max(image.size) <= PIXEL_ART
    shown = image if small else thumbnail(image, IMAGE_SIDE)
    return {"uri": _uri(shown), "width": shown.width, "height": shown.height, "small": small}


def _uri(image: Image) -> str:
    """A ``data:`` URL: PNG for a small image, JPEG for a photograph, which PNG would make ten times larger."""
    kind = "PNG" if max(image.size) <= PIXEL_ART else "JPEG"
    file = io.BytesIO()
    image.convert("RGB").save(file, kind, **({"optimize": True} if kind == "PNG" else {"quality": 85}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _value(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return view.plain(json.dumps(value, ensure_ascii=False, default=str))
    return view.plain(f"{value:.4g}" if isinstance(value, float) else str(value))


@cache
def environment() -> Environment:
    """The templates, with their common filters and globals."""
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    made = Environment(
        loader=PackageLoader("vlmprobe.display"), autoescape=True, trim_blocks=True, keep_trailing_newline=False
    )
    scope, _ = _style()
    made.filters |= {"percent": view.percent, "nats": view.nats, "digest": _digest}
    made.globals |= {
        "bounds": view.LEVELS,
        "scope": scope,
        "style": Markup(styles()),
        "script": Markup(_script()),
    }
    return made


@cache
def _style() -> tuple[str, str]:
    """The scoping class, and the style sheet with the widths of bars filled in."""
    widths = "".join(f".w{width}{{--w:{width / 100:g}}}" for width in range(1, 101))
    sheet = read_template("style.css") + f".vlmprobe {{{widths}}}"
    scope = f"vlmprobe-{hashlib.sha256(sheet.encode()).hexdigest()[:8]}"
    return scope, sheet.replace(".vlmprobe ", f".{scope} ")


def _script() -> str:
    """The script of a page: its keys, and its words in Chinese, which are those of the component of ``answer.js``."""
    words = read_template("answer.js").split("// --- Words")[1].split("---\n", 1)[1].split("// --- End")[0]
    return f"{read_template('keys.js')}{{\n{words}{read_template('chinese.js')}}}\n"


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def styles() -> str:
    """The style sheet of a page."""
    return _style()[1] + read_template("page.css")


def read_template(name: str) -> str:
    """The text of a template, a style sheet or a script."""
    return files("vlmprobe.display").joinpath("templates", name).read_text(encoding="utf-8")
