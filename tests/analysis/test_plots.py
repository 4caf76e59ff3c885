"""Plots: what is drawn is what was given, on the axes given, in the colours of the style in use."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from analysis_cases import outcomes, random_table

mpl.use("Agg")

from matplotlib import pyplot
from matplotlib.colors import to_rgb
from scipy.stats import binomtest

from vlmprobe.analysis import calibration, gating, plots, uncertainty
from vlmprobe.errors import ResultError


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def luminance(colour):
    """Relative luminance of WCAG 2."""
    linear = [each / 12.92 if each <= 0.03928 else ((each + 0.055) / 1.055) ** 2.4 for each in to_rgb(colour)]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_colours_are_read_on_white_and_on_black():
    for colour in plots.COLOURS:
        assert 1.05 / (luminance(colour) + 0.05) >= 3
        assert (luminance(colour) + 0.05) / 0.05 >= 3


def test_reliability_diagram_shows_its_bins():
    found = calibration.reliability(*outcomes(1, 500, sharpness=2), bins=10)
    ax = plots.reliability_diagram(found)
    np.testing.assert_allclose(ax.collections[-1].get_offsets(), np.stack([found.confidence, found.accuracy], 1))
    low, high = np.array([line[:, 1] for line in ax.collections[0].get_segments()]).T
    for place in range(len(found.count)):
        right = round(found.accuracy[place] * found.count[place])
        exact = binomtest(right, int(found.count[place])).proportion_ci(method="wilson")
        assert (low[place], high[place]) == pytest.approx((exact.low, exact.high), abs=1e-4)
    assert f"ECE {found.ece:.3f}, 500 answers" in ax.get_legend().get_texts()[0].get_text()
    both = plots.reliability_diagram({"before": found, "after": found})
    assert [each.get_text().split(":")[0] for each in both.get_legend().get_texts()] == ["before", "after"]
    markers = [each.get_marker() for each in both.get_lines() if each.get_label().startswith(("before", "after"))]
    assert len(set(markers)) == 2  # not told apart by colour alone


def test_axes_that_are_given_are_used():
    _, ax = pyplot.subplots()
    found = calibration.reliability(*outcomes(2, 50))
    assert plots.reliability_diagram(found, ax) is ax


def test_risk_coverage_shows_the_curve_and_the_threshold():
    sure, right = outcomes(3, 800)
    curve = calibration.risk_coverage(sure, right)
    threshold = gating.accept_for_accuracy(sure, right, 0.9)
    ax = plots.risk_coverage({"all": curve}, threshold)
    line = ax.get_lines()[0]
    np.testing.assert_allclose(line.get_ydata(), 100 * curve.risk)
    np.testing.assert_allclose(line.get_xdata(), curve.coverage)
    at = ax.get_lines()[-1].get_xydata()[0]
    np.testing.assert_allclose(at, [threshold.coverage, 100 * threshold.wrong / threshold.kept])


def test_tokens_show_surprisal_and_entropy_in_bits():
    table = random_table(4, 9, blank=(0,))
    ax = plots.tokens(table)
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], uncertainty.surprisal(table)[1:])
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), table.entropy[1:] / np.log(2), rtol=1e-6)
    assert [each.get_text() for each in ax.get_xticklabels()] == [token.strip() for token in table.tokens[1:]]
    with pytest.raises(ResultError, match="nothing to draw"):
        plots.tokens(random_table(5, 2, blank=(0, 1)))


@pytest.mark.parametrize(("count", "most", "rows"), [(40, 40, 1), (41, 40, 2), (200, 40, 8), (9, 4, 3), (1, 1, 1)])
def test_more_tokens_are_wrapped_into_rows_of_one_scale(count, most, rows):
    table = random_table(4, count)
    ax = plots.tokens(table, most=most)
    bits, each = uncertainty.surprisal(table), -(-count // rows)
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], bits)
    row, column = np.divmod(np.arange(count), each)
    np.testing.assert_allclose([bar.get_x() + bar.get_width() / 2 for bar in ax.patches], column)
    bases = np.array([bar.get_y() for bar in ax.patches])
    assert len(set(bases)) == rows
    pitch = bases[0] - bases[-1] if rows > 1 else 0.0
    np.testing.assert_allclose(bases, -row * pitch / max(rows - 1, 1), atol=1e-9)
    assert rows == 1 or pitch / (rows - 1) > max(bits.max(), table.entropy.max() / np.log(2))  # none reaches another
    points = ax.get_lines()[-1]
    np.testing.assert_allclose(points.get_ydata() - bases, table.entropy / np.log(2), rtol=1e-5, atol=1e-6)
    named = [each.get_text() for each in (ax.texts if rows > 1 else ax.get_xticklabels())]
    assert named == [token.strip() for token in table.tokens]
    if rows > 1:
        heights = [each.xy[1] for each in ax.texts]
        np.testing.assert_allclose(heights, bases)
        ticks = dict(zip(ax.get_yticks(), [each.get_text() for each in ax.get_yticklabels()], strict=True))
        assert {ticks[base] for base in set(bases)} == {"0"}
    low, high = ax.get_ylim()
    assert low <= bases.min()
    assert high >= bits.max()


def test_rows_are_drawn_on_small_axes_too():
    figure, (other, mine) = pyplot.subplots(1, 2, figsize=(5, 2), layout="constrained")
    assert plots.tokens(random_table(4, 90), mine) is mine
    figure.canvas.draw()
    assert not other.has_data()


def test_tokens_are_shown_as_they_are():
    table = random_table(6, 4, tokens=["$x_1$", "\n", " ", "^{"])
    ax = plots.tokens(table)
    assert [each.get_text() for each in ax.get_xticklabels()] == ["$x_1$", "↵", "␣", "^{"]
    ax.figure.canvas.draw()  # TeX would raise here


def test_scores_of_groups():
    ax = plots.scores({"usual": [0.1, 0.2, np.nan], "noise": [0.8, 0.9, 1.0]}, label="entropy (nats)")
    assert [each.get_text() for each in ax.get_yticklabels()] == ["usual", "noise"]
    np.testing.assert_allclose(ax.get_lines()[0].get_xdata(), [0.1, 0.2])
    with pytest.raises(ResultError, match="holds no numbers"):
        plots.scores({"none": []})


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_guides_take_the_colour_of_the_style(style):
    with pyplot.style.context(style):
        ax = plots.reliability_diagram(calibration.reliability(*outcomes(7, 100)))
        assert to_rgb(ax.get_lines()[0].get_color()) == to_rgb(mpl.rcParams["axes.labelcolor"])
        ax.figure.canvas.draw()
