"""How results look: what is shown, what is escaped, what stays legible. No model, no browser."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from render_cases import answer, make_table, nothing, scores, two_digits
from rich.cells import cell_len
from rich.console import Console

from vlmprobe.display import fragment, page, rich_view, table_html, table_rich, view
from vlmprobe.display.html import _style
from vlmprobe.inputs.image_spans import ImageSpan

HOSTILE = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt; &amp;",
    "<!-- ",
    "]]>",
)


class Outline(HTMLParser):
    """What a browser would build: tags with attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.raw = False  # inside <style> or <script>
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.raw = tag in ("style", "script")

    def handle_endtag(self, tag):
        self.raw = False

    def handle_data(self, data):
        if not self.raw:
            self.text.append(data)

    @property
    def all_text(self) -> str:
        return "".join(self.text)


def terminal(*shown, width=80, **options) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"), **options)  # noqa: SIM115
    with console.capture() as capture:
        console.print(*shown)
    return capture.get()


# -- numbers as text -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probability", "text"),
    [(1.0, ">99.9%"), (0.9994, "99.9%"), (0.5, "50.0%"), (0.0006, "0.1%"), (0.0001, "<0.1%"), (0.0, "<0.1%")],
)
def test_percent_never_claims_certainty(probability, text):
    assert view.percent(probability) == text


def test_percent_of_nothing_and_of_a_mass_above_one():
    assert view.percent(math.nan) == "–"
    assert view.percent(1.4) == "140.0%"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-0.0716, "−0.072"),
        (-12.345, "−12.35"),
        (-345.67, "−345.7"),
        (-0.0001, "0.000"),
        (0.0, "0.000"),
        (math.nan, "–"),
        (-math.inf, "−∞"),
    ],
)
def test_nats(value, text):
    assert view.nats(value) == text


def test_the_probability_of_a_long_answer_is_not_rounded_to_zero():
    assert view.tiny(math.log(0.25)) == "25.0%"
    assert view.tiny(math.log(3.1e-12)) == "3.1 × 10⁻¹²"
    assert view.tiny(-1000 * math.log(10)) == "1.0 × 10⁻¹⁰⁰⁰"  # exp of it is 0 in float64
    assert view.tiny(math.nan) == "–"
    assert view.tiny(-math.inf) == "0"


def test_levels_divide_at_their_bounds():
    for place, bound in enumerate(view.LEVELS):
        assert view.level(bound) == place
        assert view.level(bound - 1e-9) == place + 1
    assert view.level(1.0) == 0
    assert view.level(0.0) == len(view.LEVELS)
    assert view.level(math.nan) is None


@pytest.mark.parametrize(
    ("token", "text"),
    [
        (" yes", "␣yes"),
        ("a b", "a b"),
        ("  ", "␣␣"),
        (".\n\n", ".↵↵"),
        ("\t", "⇥"),
        ("", "◌"),
        ("\x1b[31m", "␛[31m"),
        ("\x9b2J", "‹U+009B›2J"),
        ("\u202eabc", "‹U+202E›abc"),
        ("\ud83d", "‹U+D83D›"),
        ("👩‍🔬", "👩‍🔬"),
        ("的", "的"),
    ],
)
def test_labels_make_everything_visible(token, text):
    assert view.label(token) == text


def test_alternatives_hold_the_chosen_token_and_the_rest_of_the_mass():
    table = make_table([("d", 0.02, [("a", 0.5), ("b", 0.3), ("c", 0.1)])], alternatives=2)
    (row,) = view.rows(table)
    assert [(each.label, each.chosen) for each in row.alternatives] == [("a", False), ("b", False), ("d", True)]
    assert row.rank == 3
    assert row.rest == pytest.approx(1 - 0.5 - 0.3 - 0.02)


def test_figures_count_only_rows_with_a_number():
    table = make_table([nothing("first"), ("a", 0.5, []), ("b", 0.125, [])])
    result = answer("x")
    object.__setattr__(result, "output", table)
    figures = {name: value for name, value, _ in view.figures(result)}
    assert figures["confidence"] == "6.2%"
    assert figures["perplexity"] == f"{math.exp((math.log(2) + math.log(8)) / 2):.3g}" == "4"
    entropies = [math.log(2), -(0.125 * math.log(0.125) + 0.875 * math.log(0.875))]
    assert figures["mean entropy"] == f"{np.mean(entropies):.3f} nats"
    assert figures["least sure"] == "b 12.5%"
    assert figures["tokens"] == "3"


def test_figures_of_an_answer_without_numbers():
    result = answer("x")
    object.__setattr__(result, "output", make_table([nothing("x")]))
    figures = {name: value for name, value, _ in view.figures(result)}
    assert figures["confidence"] == figures["perplexity"] == figures["mean entropy"] == "–"
    assert "least sure" not in figures
    assert "–" in Outline(fragment(result)).all_text
    assert "–" in terminal(rich_view(result))


def long_answer():
    rows = [("old ", 0.04, []), *[("a ", 0.9, [])] * 397, ("b", 0.03, []), ("c", 0.2, [])]
    result = answer("x")
    object.__setattr__(result, "output", make_table(rows))
    return result


def test_a_long_answer_shows_what_a_token_has_on_average_and_its_least_sure_tokens():
    result = long_answer()
    figures = {name: (value, meaning) for name, value, meaning in view.figures(result)}
    assert figures["confidence"][0] == "1.6 × 10⁻²²"  # 0.9 ** 397 * 0.04 * 0.03 * 0.2
    assert figures["per token"][0] == view.percent(result.mean_confidence) == "88.2%"
    assert figures["least sure"] == (
        "b 3.0% · old 4.0% · c 20.0%",
        "the tokens of least probability, at places 398, 0, 399",
    )
    for text in (Outline(fragment(result)).all_text, terminal(rich_view(result), width=120)):
        assert all(each in text for each in ("per token", "88.2%", "least sure", "b 3.0% · old 4.0% · c 20.0%"))


def test_an_answer_with_a_bound_has_no_number_as_a_whole():
    """Without the bounded token, which is the least likely one, the others would make it seem sure."""
    result = answer("x")
    table = make_table([("a", 0.9, []), ("b", 0.5, []), nothing("c")])
    bounds = np.array([np.nan, np.nan, math.log(0.01)], np.float32)
    object.__setattr__(result, "output", dataclasses.replace(table, logprobs_at_most=bounds))
    figures = {name: value for name, value, _ in view.figures(result)}
    assert figures["confidence"] == figures["per token"] == figures["perplexity"] == "–"
    assert figures["least sure"] == "c ≤ 1.0%"


# -- HTML ------------------------------------------------------------------------------------------


def hostile_everywhere():
    result = answer(*HOSTILE)
    result.meta.update(question=HOSTILE[0], model=HOSTILE[1], adapter=HOSTILE[2], options={HOSTILE[3]: HOSTILE[0]})
    result.meta[HOSTILE[1]] = HOSTILE[5]
    object.__setattr__(result, "prompt", make_table([(text, 0.5, [(text + "!", 0.1)]) for text in HOSTILE]))
    ranked = scores({text: [0.1] for text in HOSTILE}, question=HOSTILE[4])
    ranked.boundaries[0] = HOSTILE[0]
    return result, ranked


def test_hostile_text_adds_no_element_and_no_attribute_and_is_shown_whole():
    result, ranked = hostile_everywhere()
    harmless = answer(*["x"] * len(HOSTILE))
    harmless.meta.update(question="x", model="x", adapter="x", options={"x": "x"}, extra="x")
    object.__setattr__(harmless, "prompt", make_table([("x", 0.5, [("x!", 0.1)]) for _ in HOSTILE]))
    tame = scores({f"x{number}": [0.1] for number in range(len(HOSTILE))}, question="x")
    tame.boundaries[0] = "x"
    hostile, plain = Outline(page([result, ranked], title=HOSTILE[5])), Outline(page([harmless, tame], title="x"))
    assert [(tag, sorted(attributes)) for tag, attributes in hostile.tags] == [
        (tag, sorted(attributes)) for tag, attributes in plain.tags
    ]
    for text in HOSTILE:
        assert text in hostile.all_text


@pytest.mark.parametrize("show", [fragment, lambda result: table_html(result.output)])
def test_fragments_escape_too_and_run_no_script(show):
    outline = Outline(show(hostile_everywhere()[0]))
    assert {tag for tag, _ in outline.tags}.isdisjoint({"script", "img", "svg", "link", "iframe"})
    assert not any(name.startswith("on") for _, attributes in outline.tags for name in attributes)
    for text in HOSTILE:
        assert text in outline.all_text


def test_the_page_asks_nobody_for_anything():
    html = page([two_digits(), scores({"yes": [0.9], "no": [0.05]})])
    outline = Outline(html)
    assert all(attributes.get("src", "data:image/").startswith("data:image/") for _, attributes in outline.tags)
    assert not any("href" in attributes for _, attributes in outline.tags)
    assert not re.search(r"url\(|@import|https?://", html)
    policy = next(attributes["content"] for _, attributes in outline.tags if "http-equiv" in attributes)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_a_page_explains_shades_only_if_it_has_some():
    ranked = scores({"yes": [0.9], "no": [0.05]})
    assert 'class="legend"' not in page([ranked])
    assert page([ranked, two_digits()]).count('class="legend"') == 1


def test_right_to_left_text_keeps_its_direction_and_its_numbers_their_place():
    said = "قطة"
    result = answer(said, f" {said}")
    result.meta["question"] = "ما هذا؟"
    assert re.search(r'<p class="question" dir="auto">ما', fragment(result))
    assert '<div class="tokens" dir="auto">' in fragment(result)
    assert '<p class="question" dir="auto">ما' in fragment(scores({said: [0.5]}, question="ما هذا؟"))
    table = make_table([("a", 0.5, [(said, 0.3)])])
    assert f'<bdi>{said}</bdi> <span class="faint">30.0%' in table_html(table)
    assert f'<bdi>{said}</bdi> <span class="faint">30.0%' in table.top(2)._repr_html_()
    fonts = _style()[1]
    assert "Noto Sans Arabic" in fonts
    assert "Noto Color Emoji" in fonts


def test_styles_stay_inside_the_fragment():
    scope, style = _style()
    assert f'<div class="{scope}">' in fragment(two_digits())
    depth, outside = 0, ""
    for part in re.split(r"([{}])", re.sub(r"/\*.*?\*/", "", style, flags=re.DOTALL)):
        if not depth and part.strip() and part != "{":
            outside += part.strip() + " "
        depth += {"{": 1, "}": -1}.get(part, 0)
    assert set(outside.split()) == {f".{scope}"}


def test_an_answer_reads_as_it_was_written():
    said = "Line one.\n\n  indented\ttab 你好 👩‍🔬 <b>"
    html = fragment(answer("Line", " one", ".\n\n", "  indented", "\ttab", " 你", "好", "", " 👩‍🔬", " <b>"))
    tokens = html[html.index('<div class="tokens"') : html.index('<dl class="figures"')]
    without_cards = re.sub(r'<span class="card" hidden>.*?</i></span>', "", tokens, flags=re.DOTALL)
    assert Outline(without_cards.strip()).all_text == said


def test_an_image_is_one_chip_with_its_positions():
    spans = [ImageSpan(0, 0, 1, 257), ImageSpan(0, 1, 260, 516), ImageSpan(1, 0, 520, 530)]
    rows = [("a", 0.5, []), nothing("<image>"), ("b", 0.5, []), nothing("<image>")]
    prompt = make_table(rows, images=[1, 3], spans=[spans[0], spans[2]])
    object.__setattr__(prompt, "image_spans", tuple(spans))
    result = two_digits()
    object.__setattr__(result, "prompt", prompt)
    outline = Outline(fragment(result))
    assert sum("chip" in (attributes.get("class") or "") for _, attributes in outline.tags) == 2
    assert "image 1 512 positions in 2 runs" in outline.all_text
    assert "image 2 10 positions" in outline.all_text
    assert "<image>" not in outline.all_text
    assert re.search(r"\[image 1\] +512 positions", terminal(table_rich(prompt)))


def test_special_empty_and_numberless_tokens_have_their_own_look():
    table = make_table([nothing("<s>"), ("", 0.8, []), ("𠮷", 0.9, []), ("\n", 0.9, [])], special=[0])
    html = table_html(table)
    assert re.search(r'<span class="t special" tabindex="0">&lt;s&gt;', html)  # no level: it has no probability
    assert re.search(r'<span class="t l1 piece" tabindex="0"><span class="card"', html)
    assert re.search(r'<span class="t l0 break" tabindex="0">\n<span class="card"', html)
    assert "no distribution before this token" in html
    assert "nan" not in Outline(html).all_text.lower()


def test_pictures_are_small_data_and_pixel_art_is_kept():
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (900, 1400, 3), dtype=np.uint8)
    photo, tiny = two_digits(Image.fromarray(noise)), two_digits()
    assert 'src="data:image/jpeg;base64,' in fragment(photo)
    assert len(fragment(photo)) < 200_000
    assert re.search(
        r'src="data:image/png;base64,[^"]+" alt="image 1" width="32" height="32" class="small"', fragment(tiny)
    )


def test_candidates_are_ranked_with_their_numbers_and_their_mass():
    ranked = scores({"no": [0.2], "yes": [0.6], "yes indeed": [0.6, 0.25]})
    ranked.boundaries[0] = "scored from the last shared token"
    text = re.sub(r"\s+", " ", Outline(fragment(ranked)).all_text)
    table = text[text.index("per byte") :]
    assert table.index("yes") < table.index("no")
    assert view.percent(0.6 / 0.95) in table
    assert view.nats(math.log(0.6)) in table
    assert view.nats(math.log(0.15) / 2) in table
    assert view.nats(math.log(0.15) / 10) in table
    assert "Together the candidates hold 80.0%" in table, "yes indeed is part of yes"
    assert "scored from the last shared token" in table


def test_many_candidates_are_folded_away_quickly():
    ranked = scores({f"class {number}": [(number + 1) / 1000] for number in range(300)})
    assert "275 more candidates" in fragment(ranked)
    assert "280 more" in terminal(rich_view(ranked))


def test_two_thousand_tokens_stay_small():
    words = [(f" word{number}", 0.4, [(f" other{k}", 0.1) for k in range(5)]) for number in range(2000)]
    result = answer("x")
    object.__setattr__(result, "output", make_table(words, alternatives=10))
    assert len(fragment(result)) < 2000 * 600
    html = table_html(result.output)
    assert "1,950 rows are not shown" in html
    assert html.count("<tr>") == 52


def test_details_of_the_run_are_there_and_the_common_ones_stand_once():
    html = page([two_digits(), two_digits()], title="Two")
    text = Outline(html).all_text
    assert "2 results · internvl · float32 · cpu" in text
    assert json.dumps({"max_new_tokens": 64, "do_sample": False}) in text
    assert "0.0843" in text


# -- contrast --------------------------------------------------------------------------------------


def luminance(colour):
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


GROUNDS = {  # background, text
    "page, light": ((253, 253, 252), (29, 33, 41)),
    "page, dark": ((20, 23, 28), (228, 231, 236)),
    "JupyterLab, light": ((255, 255, 255), (33, 33, 33)),
    "JupyterLab, dark": ((17, 17, 17), (224, 224, 224)),
    "VS Code, dark": ((30, 30, 30), (204, 204, 204)),
}


@pytest.mark.parametrize("ground", GROUNDS)
def test_shaded_text_keeps_its_contrast_and_each_level_stands_out_more(ground):
    back, text = GROUNDS[ground]
    shades = re.findall(r"\.l(\d) \{ background: rgb\((\d+) (\d+) (\d+) / ([\d.]+)\)", _style()[1])
    assert [int(level) for level, *_ in shades] == list(range(1, len(view.LEVELS) + 1))
    apart = [1.0]
    for _, *colour, alpha in shades:
        mixed = [float(alpha) * int(c) + (1 - float(alpha)) * b for c, b in zip(colour, back, strict=True)]
        assert contrast(mixed, text) >= 4.5
        apart.append(contrast(mixed, back))
    assert apart == sorted(apart)
    assert apart[1] > 1.1


def test_terminal_shades_keep_their_contrast():
    from vlmprobe.display.terminal import SHADES

    assert len(SHADES) == len(view.LEVELS) + 1
    for style in SHADES:
        if style.bgcolor:
            assert contrast(style.bgcolor.get_truecolor(), style.color.get_truecolor()) >= 4.5
            assert style.color.name == "black"


# -- terminal --------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120])
def test_lines_fit_the_terminal_with_wide_characters(width):
    result = answer("这张照片", "拍摄的是", "北京颐和园的佛香阁", "👩‍🔬🏯", "，", *["很长的词" * 6] * 3)
    shown = terminal(rich_view(result), width=width)
    assert max(map(cell_len, shown.splitlines())) <= width
    rows = [line for line in shown.splitlines() if "━" in line]
    assert len({cell_len(line[: line.index("━")]) for line in rows}) == 1


def test_the_terminal_shows_the_numbers_without_colour():
    shown = terminal(rich_view(two_digits()), no_color=True, color_system=None)
    assert "\x1b" not in shown
    assert "a red seven on the left and a blue two on the right<|end|>" in shown
    assert re.search(r"␣seven +━━━╸ +46\.7% +−0\.761 +0 +1\.203 +␣nine 35\.1%", shown)
    assert re.search(r"confidence 37\.0%", shown)


def test_unsure_tokens_are_underlined_where_there_is_no_colour():
    shown = terminal(rich_view(two_digits()), no_color=True, force_terminal=True, color_system="truecolor")
    assert "\x1b[4mseven\x1b[0m" in shown
    assert "\x1b[4mblue" not in shown


def test_model_output_cannot_drive_the_terminal():
    result = answer("\x1b[2J", "\x1b]0;owned\x07", "[bold red]markup[/]", "\x9b31m", "\u202egnp", "\r")
    result.meta["model"] = "\x1b[31mred[/red]"
    for renderable in (rich_view(result), rich_view(scores({"\x1b[2Jyes": [0.5]})), table_rich(result.output)):
        shown = terminal(renderable, force_terminal=True, color_system="truecolor")
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", re.sub(r"\x1b\[[\d;]*m", "", shown))
        assert "\x1b[31m" not in shown
    assert "[bold red]markup[/]" in terminal(rich_view(result))


def test_long_output_is_shortened_in_the_middle_and_says_so():
    result = answer(*[f" w{number}" for number in range(2000)])
    shown = terminal(rich_view(result))
    assert "1,968 rows more" in shown
    assert "1,300 tokens not shown" in shown
    assert " w0 " in shown
    assert "w1999" in shown
    assert "w1000 " not in shown
    nearly = answer(*[f" w{number}" for number in range(34)])
    assert "rows more" not in terminal(rich_view(nearly))


def test_rendering_imports_no_torch():
    code = "import sys, vlmprobe.display; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_number_that_rounds_to_a_thousand_is_written_whole():
    assert [view.short(each) for each in (999.4, 999.6, 1000.0)] == ["999", "1,000", "1,000"]  # was 1e+03


def test_a_bounded_token_is_shown_as_at_most_so_likely():
    table = make_table([nothing(" never"), nothing(" listed")])
    bounds = np.array([math.log(0.02), math.nan], np.float32)
    table = dataclasses.replace(table, logprobs_at_most=bounds, positions=np.array([7, 8]))
    html = table_html(table)
    assert re.search(r'<span class="t l6" tabindex="0">never', html)  # no surer than its bound
    told = Outline(html).all_text
    assert "␣never≤ 2.0%logprob ≤ −3.912" in told.replace("\n", "")
    assert "its probability is not known" in told
    assert "no distribution" not in told  # of an answer there always is one
    shown = terminal(table_rich(table))
    assert "≤ 2.0%" in shown
    assert "≤ −3.912" in shown
