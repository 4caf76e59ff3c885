"""``plot()`` of results and figures: bars are as long as the numbers, on the axes given, whatever the text."""

from __future__ import annotations

import ast
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from analysis_cases import outcomes, random_table
from PIL import Image
from render_cases import answer, make_table, scores, two_digits

mpl.use("Agg")

from matplotlib import pyplot
from matplotlib.colors import to_rgb

import vlmprobe.display
from vlmprobe.analysis import calibration, gating, plots, recalibration, uncertainty
from vlmprobe.analysis.compare import Compared, Comparison
from vlmprobe.analysis.image_contrast import Contrast
from vlmprobe.analysis.logit_lens import Lens
from vlmprobe.analysis.token_alignment import align
from vlmprobe.analysis.training import ProbeCallback
from vlmprobe.analysis.words import words
from vlmprobe.analysis.yes_no import YesNoReport
from vlmprobe.display.plots import style
from vlmprobe.errors import MissingExtraError, ResultError
from vlmprobe.probe.rank import Ranking
from vlmprobe.probe.sample import Samples
from vlmprobe.results.asked import Answers, Rating
from vlmprobe.results.grouped import YesNo, grouped

HOSTILE = ["$x_1$", "\ud800", "\x00\x1b[31m", "猫 🐯", "\u202eabc", "a\nb", "", " ", "^{", "\\frac"]
NAN = float("nan")


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def widths(ax):
    return [bar.get_width() for bar in ax.patches]


def names(ax):
    return [each.get_text() for each in ax.get_yticklabels()]


def notes(ax):
    return [each.get_text() for each in ax.texts]


def marks(ax):
    return ax.get_lines()[0].get_xdata()


def says(text, probability, question="What is it?"):
    result = answer(*text.split(" "), probability=probability)
    return replace(result, text=text, meta={**result.meta, "question": question})


def samples():
    """Three meanings: a cat in two wordings, drawn 4 times of 7, one of them twice; a dog twice; nothing once."""
    drawn = [("a cat", 0.6)] * 3 + [("the cat", 0.3), ("a dog", 0.2), ("a dog", 0.2), ("", 0.1)]
    numbers = {text: 100 * place for place, text in enumerate(dict.fromkeys(text for text, _ in drawn))}
    results = []
    for text, probability in drawn:
        result = says(text, probability)
        ids = result.output.ids + numbers[text]
        results.append(replace(result, output=replace(result.output, ids=ids)))
    return Samples(tuple(results))


def lens():
    table = two_digits().output
    layers, count = 4, len(table)
    logprobs = np.log(np.linspace(0.1, 0.9, layers * count)).reshape(layers, count).astype(np.float32)
    says = [[[f"layer {layer}"] for _ in range(count)] for layer in range(layers)]
    return Lens(
        table=table,
        rows=np.arange(count),
        layers=np.arange(layers),
        logprobs=logprobs,
        ranks=np.where(logprobs > np.log(0.5), 0, 3),
        entropy=logprobs,
        logsumexp=logprobs,
        top_ids=np.zeros((layers, count, 1), np.int64),
        top_logprobs=logprobs[:, :, None],
        top_tokens=says,
    )


def contrasted():
    table = two_digits().output
    random = np.random.default_rng(0)
    lost = [replace(table, logprobs=table.logprobs - random.random(len(table)).astype(np.float32)) for _ in range(2)]
    regions = random.normal(size=(2, 3, len(table)))
    return Contrast(table, ["blank", "blur"], lost, regions=regions, image=Image.new("RGB", (90, 60)))


def compared():
    one = random_table(5, 9)
    other = random_table(6, 9, ids=one.ids)
    return Compared(None, "q", ("a", "b"), "same", align(one, other), None, np.zeros(0), True)


def rated(*levels):
    found = scores({name: [0.5 / 2**place] for place, name in enumerate(levels)}, question="How?")
    values = np.arange(1.0, 1 + len(levels))
    return grouped({name: [name] for name in levels}, found, kind=Rating, values=values)


def answered():
    yes_no = grouped({"yes": ["yes"], "no": ["no"]}, scores({"yes": [0.7], "no": [0.2]}), kind=YesNo)
    return Answers({"person": yes_no, "sharp": rated("poor", "fair", "good")})


def callback():
    callback = ProbeCallback([("q")], processor=object())
    callback.history = [
        {"step": step, "probe/confidence": 0.5 + step / 100, "probe/accuracy": step / 50, "probe/perplexity": 9.0}
        | ({"probe/auroc": 0.7} if step else {})
        for step in (0, 10, 30)
    ]
    return callback


SURE, RIGHT = outcomes(1, 300)
PLOTS = {
    "result": lambda: two_digits().plot,
    "table": lambda: two_digits().prompt.plot,
    "long table": lambda: random_table(0, 90).plot,
    "scores": lambda: scores({"yes": [0.7], "no": [0.2]}).plot,
    "rating": lambda: rated("poor", "fair", "good").plot,
    "answers": lambda: answered().plot,
    "choices": lambda: two_digits().top(3).plot,
    "samples": lambda: samples().plot,
    "ranking": lambda: Ranking("q", np.array([1.0, 2.0]), ["a", ""], [None, Image.new("RGB", (9, 5))]).plot,
    "contrast": lambda: contrasted().plot,
    "regions": lambda: lambda ax=None: contrasted().plot_regions(ax=ax),
    "lens": lambda: lens().plot,
    "comparison": lambda: Comparison((compared(),)).plot,
    "compared": lambda: compared().plot,
    "reliability": lambda: calibration.reliability(SURE, RIGHT).plot,
    "risk": lambda: calibration.risk_coverage(SURE, RIGHT).plot,
    "report": lambda: YesNoReport(4, 1, 3, 2, 0.8).plot,
    "words": lambda: words(two_digits()).plot,
    "map": lambda: recalibration.Temperature(2.0).plot,
    "history": lambda: callback().plot,
}


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.parametrize("looks", ["dark_background", "grayscale"])
def test_every_plot_returns_axes_in_the_colours_of_the_style(name, looks):
    with pyplot.style.context(looks):
        ax = PLOTS[name]()()
        assert to_rgb(ax.xaxis.label.get_color()) == to_rgb(mpl.rcParams["axes.labelcolor"])
        ax.figure.canvas.draw()
        for each in ax.texts + ax.get_yticklabels():
            assert to_rgb(each.get_color()) != to_rgb(ax.get_facecolor()) or name in ("lens", "choices", "regions")


@pytest.mark.parametrize("name", PLOTS)
def test_axes_that_are_given_are_used_however_small(name):
    figure, (other, mine) = pyplot.subplots(1, 2, figsize=(5, 2), layout="constrained")
    assert PLOTS[name]()(mine) is mine
    assert not other.has_data()
    figure.canvas.draw()


@pytest.mark.filterwarnings("error:Glyph")
@pytest.mark.filterwarnings("ignore:No installed font")
@pytest.mark.filterwarnings("ignore:Matplotlib currently does not support")
def test_text_from_outside_is_drawn_as_it_stands():
    table = make_table([(text, 0.5, [(other, 0.2)]) for text, other in zip(HOSTILE, reversed(HOSTILE), strict=True)])
    candidates = {text: [0.05] for text in HOSTILE if text}
    shown = [
        table.plot(),
        make_table([(text, 0.5, []) for text in HOSTILE * 9]).plot(),
        table.top(2).plot(),
        replace(scores(candidates), meta={"question": "".join(HOSTILE) * 20}).plot(),
        Ranking("".join(HOSTILE), np.zeros(len(HOSTILE)), HOSTILE, [None] * len(HOSTILE)).plot(),
        Samples(tuple(replace(says("x", 0.4), text=text) for text in HOSTILE)).plot(),
        rated(*(text for text in HOSTILE if text.strip())).plot(),
        Answers({text: rated("poor", text) for text in HOSTILE if text.strip()}).plot(),
    ]
    for ax in shown:
        ax.figure.canvas.draw()  # TeX, a surrogate or a null would raise here
    assert shown[0].get_xticklabels()[0].get_text() == "$x_1$"
    assert "‹U+202E›abc" in names(shown[3])


def test_short_texts_count_the_width_of_letters():
    assert style.short("abcdef", 4) == "abc…"
    assert style.short("猫猫猫", 4) == "猫…"
    assert style.short("ab  \n cd") == "ab cd"
    assert style.shown("") == "◌"
    assert style.shown("  ") == "␣"
    assert style.wrapped("one two three four", 9, 2) == "one two\nthree fo…"
    assert style.wrapped("猫" * 9, 8, 2) == "猫猫猫猫\n猫猫猫…"


def test_a_table_is_drawn_token_by_token():
    result = two_digits()
    ax = result.plot()
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], uncertainty.surprisal(result))
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), result.output.entropy / np.log(2), rtol=1e-6)
    prompt = result.prompt.plot()
    scored = [
        token.strip() or "↵" for token, known in zip(result.prompt.tokens, result.prompt.scored, strict=True) if known
    ]
    assert [each.get_text() for each in prompt.get_xticklabels()] == scored
    with pytest.raises(ResultError, match="nothing to draw"):
        random_table(0, 3, blank=(0, 1, 2)).plot()


def test_a_long_table_is_drawn_as_a_run_with_its_most_surprising_tokens_named():
    table = random_table(4, 200, blank=(0, 7))
    ax = table.plot()
    bits = uncertainty.surprisal(table)
    (run,) = ax.patches
    values, edges, _ = run.get_data()
    np.testing.assert_allclose(values, np.nan_to_num(bits))
    np.testing.assert_allclose(edges, np.arange(201) - 0.5)
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), table.entropy / np.log(2), rtol=1e-6)
    worst = int(np.nanargmax(bits))
    assert notes(ax)[0] == table.tokens[worst].strip()
    assert ax.texts[0].xy == pytest.approx((worst, bits[worst]))
    assert 3 <= len(ax.texts) <= 8
    assert len(table.plot(most=198).patches) == 198


def test_candidates_are_bars_of_their_probabilities_the_likeliest_first():
    found = scores({"no": [0.2], "yes": [0.5], "may be": [0.1, 0.9]}, question="Is it?")
    ax = found.plot()
    np.testing.assert_allclose(widths(ax), sorted(found.probabilities, reverse=True))
    assert names(ax) == ["yes", "no", "may be"]
    assert notes(ax) == ["63.3%", "25.3%", "11.4%"]
    assert ax.get_title(loc="left") == "Is it?"
    assert "hold 79.0% of" in ax.get_xlabel().replace("\n", " ")


def test_candidates_that_are_left_out_are_added_up_and_those_without_a_number_said_so():
    found = scores({f"{place}": [0.3 / (place + 1)] for place in range(30)})
    ax = found.plot(most=4)
    ordered = np.sort(found.probabilities)[::-1]
    np.testing.assert_allclose(widths(ax), [*ordered[:4], ordered[4:].sum()])
    assert names(ax)[-1] == "26 more"
    unknown = scores({"yes": [0.5], "no": [0.2]})
    nothing = replace(unknown.tables[0], logprobs=np.array([NAN], np.float32))
    ax = replace(unknown, tables=[nothing, unknown.tables[1]]).plot()
    assert names(ax) == ["no", "yes"]
    assert widths(ax) == [1, 0]
    assert notes(ax)[1] == "no log-probability"
    with pytest.raises(ResultError, match="no candidate"):
        scores({}).plot()


def test_answers_of_several_spellings_are_bars_of_their_sums():
    found = scores({"yes": [0.4], "Yes": [0.2], "no": [0.1], "No": [0.05]})
    apart = [replace(table, ids=table.ids + 10 * place) for place, table in enumerate(found.tables)]
    groups = {"yes": ["yes", "Yes"], "no": ["no", "No"]}
    ax = grouped(groups, replace(found, tables=apart), kind=YesNo).plot()
    np.testing.assert_allclose(widths(ax), [0.8, 0.2], rtol=1e-6)
    assert names(ax) == ["yes", "no"]


def test_levels_are_drawn_in_order_and_several_answers_with_what_they_say():
    ax = rated("poor", "fair", "good").plot()
    assert names(ax) == ["poor", "fair", "good"]
    np.testing.assert_allclose(widths(ax), [4 / 7, 2 / 7, 1 / 7], rtol=1e-6)
    assert ax.get_title(loc="left") == "How? poor, 1.57 of 3 (± 0.73)"
    ax = answered().plot()
    assert names(ax) == ["person: yes", "sharp: poor, 1.57 of 3 (± 0.73)"]
    np.testing.assert_allclose(widths(ax), [7 / 9, 4 / 7], rtol=1e-6)
    with pytest.raises(ResultError, match="27 levels"):
        rated(*map(str, range(27))).plot()


def test_choices_are_shaded_by_their_probability_and_what_was_said_is_framed():
    choices = two_digits().top(3)
    ax = choices.plot()
    assert len(ax.patches) == len(choices)
    for cell, probability, said in zip(ax.patches, choices.probabilities, choices.chosen, strict=True):
        assert cell.get_facecolor()[3] == pytest.approx(0.06 + 0.94 * probability, abs=1e-6)
        assert (cell.get_linewidth() > 0) == said
    assert "seven\n47%" in notes(ax)
    with pytest.raises(ResultError, match="1 to 24"):
        random_table(0, 30).top(2).plot()


def test_samples_are_bars_of_their_share_beside_the_probability_of_what_was_drawn():
    found = samples()
    ax = found.plot()
    cat, the_cat, dog = 0.6**2, 0.3**2, 0.2**2
    assert names(ax) == ["a cat", "a dog", "(nothing)", "the cat"]
    np.testing.assert_allclose(widths(ax), [3 / 7, 2 / 7, 1 / 7, 1 / 7])
    np.testing.assert_allclose(marks(ax), [cat, dog, 0.1, the_cat], rtol=1e-5)
    assert notes(ax)[0] == "3 of 7"
    assert ax.get_title(loc="left") == "What is it?"
    ax = found.plot(groups=found.groups(lambda text: text.split(" ")[-1]), most=1)
    assert names(ax) == ["a cat", "2 more"]
    np.testing.assert_allclose(widths(ax), [4 / 7, 3 / 7])
    np.testing.assert_allclose(marks(ax), [cat + the_cat, dog + 0.1], rtol=1e-5)


def test_a_ranking_that_is_cut_says_so():
    margins = np.linspace(-2, 2, 20)
    ranking = Ranking("a tiger", margins, [f"text {place}" for place in range(20)], [None] * 20)
    ax = ranking.plot(most=5)
    np.testing.assert_allclose(widths(ax), np.sort(ranking.scores)[::-1][:5])
    assert names(ax) == [f"text {place}" for place in range(19, 14, -1)]
    assert "the first 5 of 20 documents" in ax.get_xlabel()
    assert "documents" not in ranking.plot(most=20).get_xlabel()


def test_what_the_image_was_worth_to_each_token():
    found = contrasted()
    ax = found.plot()
    flagged = np.isin(np.arange(len(found.answer)), found.unsupported())
    bars = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in ax.patches if not bar.get_hatch()}
    np.testing.assert_allclose([bars[place] for place in range(len(found.answer))], found.pmi)
    assert sum(bar.get_hatch() is not None for bar in ax.patches) == flagged.sum()
    for place in range(2):
        np.testing.assert_allclose(ax.get_lines()[1 + place].get_ydata(), found.gain[place])


def test_what_the_image_was_worth_to_each_token_of_a_long_answer():
    table = random_table(3, 100)
    lost = replace(table, logprobs=table.logprobs - np.linspace(-1, 2, 100).astype(np.float32))
    found = Contrast(table, ["blank", "blur"], [lost, lost])
    ax = found.plot()
    zeros = [line.get_ydata()[0] for line in ax.get_lines()[:4]]
    assert zeros == sorted(zeros, reverse=True)
    rows = np.repeat(zeros, 25)
    drawn = {}
    for bar in ax.patches:
        if bar.get_hatch() is None:
            row = int(np.argmin(np.abs(np.array(zeros) - bar.get_y())))
            drawn[25 * row + round(bar.get_x() + bar.get_width() / 2)] = bar.get_height()
    np.testing.assert_allclose([drawn[place] for place in range(100)], found.pmi)
    np.testing.assert_allclose(ax.get_lines()[4].get_ydata() - rows, found.gain[0], atol=1e-9)
    low, high = ax.get_ylim()
    assert low < rows[-1] + found.gain.min()
    assert high > found.gain.max()


def test_regions_of_a_word():
    found = contrasted()
    one = found.plot_regions(" seven")
    for other in (found.plot_regions("seven"), found.plot_regions(2)):
        np.testing.assert_array_equal(one.images[1].get_array(), other.images[1].get_array())
    assert found.plot_regions("blue two").get_title() == "blue two"
    with pytest.raises(ResultError, match=r"no ' sevn'\. Did you mean seven"):
        found.plot_regions(" sevn")
    with pytest.raises(ResultError, match=r"'the' 2 times: pass one of these rows: 4, 11\."):
        found.plot_regions("the")


def test_regions_are_the_sums_of_the_rows_asked_for():
    found = contrasted()
    ax = found.plot_regions(slice(2, 5))
    worth = found.regions[:, :, 2:5].sum(axis=-1)
    np.testing.assert_allclose(np.ma.getdata(ax.images[1].get_array()), worth)
    largest = np.abs(worth).max()
    assert sorted(notes(ax)) == sorted(f"{each:.1f}" for each in worth.ravel() if abs(each) >= 0.25 * largest)
    assert ax.get_title() == "seven on the"


def test_a_lens_shows_probabilities_and_says_the_layers_tokens():
    found = lens()
    ax = found.plot()
    np.testing.assert_allclose(ax.images[0].get_array(), np.exp(found.logprobs), rtol=1e-6)
    assert notes(ax)[: len(found.rows)] == ["layer 0"] * len(found.rows)
    framed = {round(frame.get_x() + 0.47): round(frame.get_y() + 0.45) for frame in ax.patches}
    assert framed == {place: lead for place, lead in enumerate(found.leads.tolist()) if lead >= 0}


def test_one_request_under_two_models():
    found = compared()
    ax = found.plot()
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], -found.rows.a / np.log(2), rtol=1e-6)
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), -found.rows.b / np.log(2), rtol=1e-6)
    whole = Comparison((found, found)).plot()
    drawn = np.concatenate([each.get_offsets() for each in whole.collections])
    both = np.stack([np.tile(found.rows.a, 2), np.tile(found.difference, 2)], axis=1)
    np.testing.assert_allclose(drawn[np.argsort(drawn[:, 1])], both[np.argsort(both[:, 1])], rtol=1e-6)


def test_figures_of_confidence_draw_what_the_functions_for_several_draw():
    found = calibration.reliability(SURE, RIGHT)
    np.testing.assert_allclose(
        found.plot().collections[-1].get_offsets(), np.stack([found.confidence, found.accuracy], 1)
    )
    curve = calibration.risk_coverage(SURE, RIGHT)
    threshold = gating.accept_for_accuracy(SURE, RIGHT, 0.7)
    mine, theirs = curve.plot(threshold=threshold), plots.risk_coverage(curve, threshold)
    for one, other in zip(mine.get_lines(), theirs.get_lines(), strict=True):
        np.testing.assert_array_equal(one.get_xydata(), other.get_xydata())
    np.testing.assert_allclose(mine.get_lines()[0].get_ydata(), 100 * curve.risk)


@pytest.mark.parametrize(
    "found",
    [
        recalibration.Temperature(1.7),
        recalibration.Platt(0.6, -0.4),
        recalibration.Isotonic(np.array([0.2, 0.6]), np.array([0.1, 0.9])),
    ],
)
def test_a_map_of_confidences_is_its_curve(found):
    ax = found.plot()
    x, y = ax.get_lines()[1].get_xydata().T
    np.testing.assert_allclose(y, found(x))
    assert (x[0], x[-1]) == (0, 1)
    assert ax.get_legend().get_texts()[0].get_text() == type(found).__name__


def test_a_poll_is_bars_of_its_metrics():
    report = YesNoReport(true_yes=41, false_yes=9, true_no=30, false_no=20, auroc=0.93)
    ax = report.plot()
    np.testing.assert_allclose(widths(ax), list(report.metrics().values()))
    assert names(ax) == ["accuracy", "precision", "recall", "f1", "yes rate", "auroc"]
    np.testing.assert_allclose(marks(ax), [NAN] * 4 + [0.61, 0.5])
    assert notes(ax)[0] == "0.710"
    assert "100 questions" in ax.get_xlabel()
    empty = YesNoReport(0, 0, 5, 0, NAN).plot()
    assert notes(empty) == ["1.000", "–", "–", "–", "0.000", "–"]
    np.testing.assert_allclose(marks(empty), [NAN] * 4 + [0.0, NAN])


def test_words_are_bars_of_their_surprisal():
    table = random_table(3, 6, tokens=["a", " b", "c", " d", " e", "f"])
    found = words(table)
    ax = found.plot()
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], -found.summed / np.log(2))
    assert [each.get_text() for each in ax.get_xticklabels()] == ["a", "bc", "d", "ef"]
    assert "its tokens" in ax.get_ylabel()
    corrected = replace(found, logprobs=np.array([-1.0, -2.0, NAN, -3.0]))
    ax = corrected.plot()
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], np.array([1, 2, 3]) / np.log(2))
    assert "the word" in ax.get_ylabel()
    long = words(random_table(0, 60))
    np.testing.assert_allclose([bar.get_height() for bar in long.plot().patches], -long.summed / np.log(2))


def test_the_history_of_training_is_a_line_for_each_number():
    found = callback()
    ax = found.plot()
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.get_lines()}
    assert lines == {
        "confidence": [[0, 0.5], [10, 0.6], [30, 0.8]],
        "accuracy": [[0, 0], [10, 0.2], [30, 0.6]],
        "auroc": [[10, 0.7], [30, 0.7]],
    }
    assert len({(line.get_marker(), line.get_linestyle()) for line in ax.get_lines()}) == 3
    assert [line.get_label() for line in found.plot(names=["perplexity"]).get_lines()] == ["perplexity"]
    with pytest.raises(ResultError, match="Did you mean perplexity"):
        found.plot(names=["perplexities"])
    found.history = []
    with pytest.raises(ResultError, match="train first"):
        found.plot()


def test_what_is_missing_is_named(monkeypatch):
    result = two_digits()
    for name in [each for each in sys.modules if each == "matplotlib" or each.startswith("matplotlib.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (result.plot, result.top(2).plot, scores({"yes": [0.5]}).plot, PLOTS["ranking"]()):
        with pytest.raises(MissingExtraError, match="matplotlib"):
            draw()


def test_the_former_place_of_draw_choices():
    from vlmprobe.analysis.choices_plot import draw_choices
    from vlmprobe.display.plots import choices

    assert draw_choices is choices.draw_choices


def test_display_imports_nothing_above_it():
    """Neither when a type is checked nor inside a function; matplotlib comes in by one door."""
    below = {"display", "inputs", "errors", "_version"}
    for path in Path(vlmprobe.display.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                first, *rest = module.split(".")
                assert first != "matplotlib", path
                assert first != "vlmprobe" or (rest and rest[0] in below), f"{path} imports {module}"
