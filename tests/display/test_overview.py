"""Tables of analyses and of many results: their numbers, in Jupyter and in a terminal, and all text escaped."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from render_cases import answer, make_table, nothing, scores, two_digits
from rich.console import Console

import vlmprobe
from vlmprobe.analysis import calibration
from vlmprobe.analysis.image_contrast import Contrast
from vlmprobe.analysis.logit_lens import Lens
from vlmprobe.analysis.yes_no import YesNoReport
from vlmprobe.display import overview
from vlmprobe.display.overview import Overview, Viewed, trend
from vlmprobe.errors import ResultError
from vlmprobe.probe.failure import Failure
from vlmprobe.probe.rank import Ranking
from vlmprobe.probe.sample import Samples

HOSTILE = "<script>alert('owned')</script>"
NAN = float("nan")


def contrast(token=" seven", question="q", names=("blank",), regions=None):
    table = make_table([(token, 0.8, []), (" on", 0.5, [])])
    lost = [replace(table, logprobs=np.log(np.array([0.2, 0.5], np.float32))) for _ in names]
    images = [Image.new("RGB", (40, 30)) for _ in names]
    return Contrast(table, list(names), lost, regions, Image.new("RGB", (40, 30)), images, {"question": question})


def lens(token=" seven", question="q"):
    probabilities = np.array([[0.01, 0.1], [0.3, NAN], [0.9, 0.6]], np.float32)
    return Lens(
        table=make_table([(token, 0.9, []), (" on", 0.6, [])]),
        rows=np.arange(2),
        layers=np.array([0, 2, 4]),
        logprobs=np.log(probabilities),
        ranks=np.array([[5, 3], [0, -1], [0, 0]]),
        entropy=probabilities,
        logsumexp=probabilities,
        top_ids=np.zeros((3, 2, 1), np.int64),
        top_logprobs=np.zeros((3, 2, 1), np.float32),
        top_tokens=[[["x"], ["x"]]] * 3,
        meta={"question": question},
    )


def samples(text="a cat", question="q"):
    said = [(text, 0.6), (text, 0.6), ("dog", 0.3)]
    results = []
    for place, (each, probability) in enumerate(said):
        result = answer(each, probability=probability)
        ids = result.output.ids + 100 * (place == 2)
        results.append(replace(result, output=replace(result.output, ids=ids), meta={"question": question}))
    return Samples(tuple(results))


def ranking(text="a tiger", query="q"):
    return Ranking(query, np.array([-1.0, 2.0]), [text, ""], [None, Image.new("RGB", (9, 5))])


def listed(text="a cat", question="q", id="first"):
    result = answer(*re.findall(r"\s*\S+", text), "", probability=0.5)
    result.meta.update(question=question, id=id)
    failure = Failure(ValueError(f"no image {text}"), question=question, id=7)
    return overview_of([result, scores({"no": [0.2], text: [0.6]}, question=question), failure])


def overview_of(results):
    from vlmprobe.analysis.show import _Listed

    return _Listed(results)


REPORT = calibration.report(np.linspace(0.05, 0.95, 40), np.arange(40) % 3 > 0, resamples=20)
SHOWN = {
    "contrast": contrast,
    "regions": lambda *text: contrast(*text, regions=np.ones((2, 2, 2))),
    "lens": lens,
    "samples": samples,
    "ranking": ranking,
    "list": listed,
    "poll": lambda *_: YesNoReport(4, 1, 3, 2, 0.8, failed=1),
    "report": lambda *_: REPORT,
}


def terminal(shown, width=110) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def text_of(html: str) -> str:
    """What a browser would show, in one line."""
    body = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", body)))


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, [name for name, _ in attrs]))


@pytest.mark.parametrize("name", SHOWN)
def test_text_of_a_model_is_text(name):
    calm, hostile = SHOWN[name]("a", "b")._repr_html_(), SHOWN[name](HOSTILE, HOSTILE)._repr_html_()
    assert not {"script", "iframe", "svg"} & {tag for tag, _ in Tags(hostile).found}
    assert Tags(hostile).found == Tags(calm).found or name == "list"  # its least sure word is another
    if name not in ("poll", "report"):
        assert hostile.count("&lt;script&gt;") >= 2
        assert "<script>alert" in terminal(SHOWN[name](HOSTILE, HOSTILE), width=200)
        control = terminal(SHOWN[name]("\x1b[31mred", "[bold]\x1b[2J"))
        assert "\x1b" not in control
        assert "[bold]␛[2J" in control


@pytest.mark.parametrize("name", SHOWN)
def test_it_fits_a_terminal(name):
    long = "word " * 60
    assert max(map(len, terminal(SHOWN[name](long, long), width=80).splitlines())) <= 80


def test_a_contrast_shows_each_token_with_and_without_the_image():
    shown = contrast(regions=np.arange(8.0).reshape(2, 2, 2))
    text = text_of(shown._repr_html_())
    assert "␣seven 80.0% 20.0% 1.386 1, 1 6.000" in text
    assert "␣on 50.0% 50.0% 0.000 no 1, 1 7.000" in text
    assert "worth of the image 1.386 nats" in text
    assert "not supported 1" in text
    assert shown._repr_html_().count("<img") == 2
    assert re.search(r"␣seven 80\.0% +━╸ +20\.0% +1\.386 +1, 1 +6\.000", terminal(shown))
    several = terminal(contrast(names=("blank", "blur", "noise", "none"), regions=np.ones((2, 2, 2))), width=100)
    assert re.search(r"␣seven 80\.0%( +20\.0%){4} +1\.386 +0, 0 +1\.000", several)
    alone = text_of(replace(shown, names=[], tables=[], variants=[])._repr_html_())
    assert "␣seven 80.0% 1, 1 6.000" in alone
    assert "worth of image" not in alone


def test_a_lens_shows_where_a_token_leads():
    shown = terminal(lens())
    assert re.search(r"␣seven 90\.0% +▁▃█ +2 +2", shown)
    assert re.search(r"␣on 60\.0% +▁–▅ +4 +4", shown)
    assert trend([place / 100 for place in range(101)]) == trend(np.linspace(0, 1, 24).tolist())
    assert len(trend([0.5] * 99)) == 24


def test_samples_are_counted():
    text = text_of(samples()._repr_html_())
    assert "a cat 66.7% 2 of 3 60.0%" in text
    assert "dog 33.3% 1 of 3 30.0%" in text
    assert "agreement 0.67" in text
    assert "mass 90.0%" in text


def test_a_ranking_is_in_order_with_its_images():
    html = ranking()._repr_html_()
    assert re.search(r"1 \[image\] 88\.1% 2\.000 .*0 a tiger 26\.9% −1\.000", text_of(html))
    assert html.count("<img") == 1
    photo = Image.effect_noise((900, 700), 80).convert("RGB")
    many = Ranking("q", np.zeros(40), [""] * 40, [photo] * 40)
    assert len(many._repr_html_()) < 40 * 30_000
    assert "[image]" in terminal(ranking())


def test_reports_show_their_numbers():
    assert isinstance(REPORT, dict)
    shown = terminal(REPORT)
    assert re.search(rf"auroc +{REPORT['auroc'].value:.3f} +{REPORT['auroc'].low:.3f} to", shown)
    assert "95% interval" in shown
    poll = YesNoReport(4, 1, 3, 2, NAN, failed=1)
    assert re.search(r"10 questions accuracy 0\.700 .* auroc – .*false yes 1 .*failed 1", text_of(poll._repr_html_()))


def test_many_results_are_one_table(capsys):
    shown = terminal(listed("a cat"), width=120)
    assert re.search(r"first +q +a cat +━ +12\.5% +cat 25\.0%", shown)
    assert re.search(r"1 +q +a cat +━━━━━━ +75\.0% +–", shown)
    assert "failed: ValueError: no image a cat" in shown
    sure = make_table([("a", 0.9, []), (" un", 0.5, []), ("known", 0.4, []), (" b", 0.3, []), ("</s>", 0.01, [])])
    words = replace(answer("x"), output=replace(sure, kinds=["text"] * 4 + ["special"]))
    assert "unknown 20.0%" in text_of(overview_of([words])._repr_html_())
    one_run = replace(answer("x"), output=make_table([("这", 0.9, []), ("猫", 0.2, []), ("。", 0.8, [])]))
    assert "猫 20.0%" in text_of(overview_of([one_run])._repr_html_())
    unknown = replace(answer("x"), output=make_table([nothing("x")]))
    assert "–" in terminal(overview_of([unknown]))
    vlmprobe.show(iter([two_digits()]))
    assert re.search(r"describe the picture +a red seven on the", " ".join(capsys.readouterr().out.split()))
    assert overview_of([two_digits()])._repr_html_().count("<img") == 1
    assert "<img" not in overview_of([answer("x")])._repr_html_()


def test_a_single_result_has_a_view_of_its_own(capsys):
    vlmprobe.show(two_digits())
    assert "perplexity" in capsys.readouterr().out
    for wrong in ([], "text", [two_digits(), "text"], 5, {"a": two_digits()}):
        with pytest.raises(ResultError, match="give"):
            vlmprobe.show(wrong)


def test_show_displays_html_in_a_notebook(monkeypatch, capsys):
    display = pytest.importorskip("IPython.display")
    shown = []
    monkeypatch.setattr(overview, "in_jupyter", lambda: True)
    monkeypatch.setattr(display, "display", shown.append)
    vlmprobe.show([two_digits()])
    lens().show()
    assert [type(each).__name__ for each in shown] == ["_Listed", "Lens"]
    assert capsys.readouterr().out == ""


def test_long_tables_are_cut_in_the_middle():
    class Long(Viewed):
        def _overview(self):
            return Overview({"name": "text", "number": "number"}, [[f"row{row}", str(row)] for row in range(300)])

    for shown in (terminal(Long()), text_of(Long()._repr_html_())):
        assert "250 rows" in shown
        assert "row39" in shown
        assert "row290" in shown
        assert "row40" not in shown


@pytest.mark.parametrize("width", [22, 30, 40, 59])
def test_no_column_is_lost_in_a_narrow_terminal(width):
    """Names and numbers of a wide terminal are all there, each whole, whatever the width."""
    from vlmprobe.analysis.paired import paired

    two = paired([answer("cat", probability=0.9)] * 2, [answer("dog")] * 2, ["cat"] * 2, names=("one", "two"))
    ranked = scores({"a red nine": [0.7], "nothing": [0.2]})
    for shown, parts in (
        (two_digits().output, ["logprob", "rank", "entropy", "alternatives", "46.7%", "35.1%", "−0.761"]),
        (ranked, ["a red nine", "nothing", "per token", "per byte", "77.8%", "22.2%", "−1.609"]),
        (two, ["accuracy", "Brier", "one", "two", "difference", "−1.000", "interval"]),
        (two_digits().top(2), ["said", "␣seven", "46.7%", "35.1%"]),
        (listed("a cat"), ["first", "answer", "a cat", "12.5%", "confidence", "least sure word"]),
    ):
        printed = terminal(shown, width=width)
        assert max(map(len, printed.splitlines())) <= width
        flowing = " ".join(printed.split())
        assert [part for part in parts if part not in flowing] == []
