"""The report of a run as HTML: the page of figures, the page of a row, and the files they share.

Scripts and styles are files beside the pages, since a page of a hundred thousand rows is read from them piece by piece.
Nothing is loaded from anywhere else, and templates escape whatever they are given.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlmprobe.display import view
from vlmprobe.display.html import environment, read_template, styles
from vlmprobe.display.plots.calibration import wilson
from vlmprobe.display.shown import ShownReliability, ShownRiskCoverage

__all__ = ["assets", "index_page", "row_page", "rows_script", "written"]

POINTS = 200  # of the curve of risk and coverage


def assets() -> dict[str, str]:
    """The files that pages share: names and texts."""
    return {
        "report.css": styles() + read_template("run_report.css"),
        "report.js": read_template("run_report.js"),
        "keys.js": read_template("keys.js"),
    }


def rows_script(number: int, rows: Sequence[Sequence[Any]]) -> str:
    """A script that hands a piece of the table to the page: plain data, also if it is put inside of HTML."""
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f"vlmprobeRows({number}, {text.encode('utf-8', 'replace').decode()});\n"


def written(value: Any) -> str:
    """A cell as text: nothing for None, several with a stroke between them."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    several = value if isinstance(value, list | tuple) else [value]
    return view.plain(" / ".join(map(str, several)))


def index_page(found: Mapping[str, Any]) -> str:
    """The page of figures and the table.

    Args:
        found: what the report has found; see ``vlmprobe.runs.report``.
    """
    against = found["against"]
    config = {"pieces": found["pieces"], "rows": found["overview"].rows, "judged": bool(found["judged"])}
    return (
        environment()
        .get_template("run_report.html")
        .render(
            found,
            written=written,
            model=_model(found["about"]),
            options=_options(found["about"]),
            shown_metrics=[(_label(name), *_interval(each)) for name, each in found["metrics"].items()],
            reliability_plot=None if found["reliability"] is None else _reliability(found["reliability"]),
            risk_plot=None if found["risk"] is None else _risk(found["risk"]),
            other_model="" if against is None else _model(against["about"]),
            compared=[] if against is None else _compared(against.get("metrics")),
            p="" if against is None or against.get("test") is None else _p(against["test"].p),
            rate=lambda share: view.DASH if math.isnan(share) else f"{share:.1%}",
            config=json.dumps(config | {"against": against is not None}),
        )
    )


def row_page(found: Mapping[str, Any]) -> str:
    """The page of one row.

    Args:
        found: what the report has found of it; see ``vlmprobe.runs.report``.
    """
    result = found["result"]
    return (
        environment()
        .get_template("run_report_row.html")
        .render(
            found,
            written=written,
            tokens=[] if result is None else view.rows(result.output),
            figures=[] if result is None else view.figures(result),
            choices=_choices(found),
        )
    )


def _choices(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scored candidates, the likeliest first."""
    names, held = found["candidates"] or [], found["candidate_logprobs"]
    if held is None or not names:
        return []
    logprobs = np.array([np.nan if each is None else each for each in held], dtype=np.float64)
    if np.isnan(logprobs).all():
        return []
    shares = np.exp(logprobs - np.nanmax(logprobs))
    shares = shares / np.nansum(shares)
    order = np.argsort(-np.nan_to_num(shares, nan=-1), kind="stable")
    return [
        {
            "name": view.label(names[place]),
            "share": view.percent(float(shares[place])),
            "width": 0 if np.isnan(shares[place]) else round(100 * float(shares[place])),
            "logprob": view.nats(float(logprobs[place])),
            "best": not rank,
        }
        for rank, place in enumerate(order)
    ]


def _model(about: Mapping[str, Any]) -> str:
    parts = (about.get(name) for name in ("model", "revision", "dtype", "engine"))
    return view.plain(" · ".join(str(each) for each in parts if each))


def _options(about: Mapping[str, Any]) -> str:
    return view.plain(", ".join(f"{name}={value!r}" for name, value in (about.get("options") or {}).items()))


def _label(name: str) -> str:
    words = {"auroc": "AUROC", "ece": "ECE", "adaptive_ece": "adaptive ECE", "brier": "Brier score", "aurc": "AURC"}
    return (words | {"confidence": "mean confidence", "Brier": "Brier score"}).get(name, name)


def _interval(each: Any) -> tuple[str, str]:
    """A value and its interval."""
    low, high = (f"{end:.3f}" for end in (each.low, each.high))
    interval = "" if math.isnan(each.low) else f"{low} to {high}"
    return (view.DASH if math.isnan(each.value) else f"{each.value:.3f}"), interval


def _compared(metrics: Mapping[str, Any] | None) -> list[tuple[str, tuple[str, ...]]]:
    """Of each metric its name, the other run's value, this one's, the difference and its interval."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for name, each in (metrics or {}).items():
        low, high = each.difference.low, each.difference.high
        difference, interval = f"{each.difference.value:+.3f}", f"{low:+.3f} to {high:+.3f}"
        values = f"{each.a:.3f}", f"{each.b:.3f}", difference.replace("-", "−"), interval.replace("-", "−")
        found.append((_label(name), values))
    return found


def _p(p: float) -> str:
    return "below 0.001" if p < 0.001 else f"{p:.3f}"


def _reliability(found: ShownReliability) -> dict[str, Any]:
    """The bins as points of a plot of 100 by 100, the origin below: x, y, radius, ends of the
    interval, and what is told of it."""
    widest = float(np.sqrt(found.count.max()))
    low, high = wilson(found)
    return {
        "ece": f"{found.ece:.3f}",
        "points": [
            {
                "x": round(100 * float(x), 2),
                "y": round(100 - 100 * float(y), 2),
                "r": round(1.2 + 2.2 * float(np.sqrt(n)) / widest, 2),
                "low": round(100 - 100 * float(bottom), 2),
                "high": round(100 - 100 * float(top), 2),
                "told": f"confidence {x:.2f}: {y:.1%} of {int(n):,} right",
            }
            for x, y, n, bottom, top in zip(found.confidence, found.accuracy, found.count, low, high, strict=True)
        ],
    }


def _risk(found: ShownRiskCoverage) -> dict[str, Any]:
    """The curve as points of a plot of 100 by 100."""
    highest = max(float(found.risk.max()), 0.01)
    top = math.ceil(highest * 20) / 20  # the axis ends at a multiple of 5 %
    places = np.unique(np.linspace(0, len(found.coverage) - 1, POINTS).round().astype(int))
    points = [(100 * float(found.coverage[at]), 100 - 100 * float(found.risk[at]) / top) for at in places]
    return {
        "line": " ".join(f"{x:.2f},{y:.2f}" for x, y in points),
        "area": f"{found.area:.3f}",
        "top": f"{top:.0%}",
        "half": f"{top / 2:.1%}".replace(".0%", "%"),
        "all": f"{float(found.risk[-1]):.1%}",
    }
