"""The component of pages and widgets in a real browser: keys, pointer, streaming, long prompts, unsafe text."""

from __future__ import annotations

import math
import random

import pytest
from components import component_page
from render_cases import answer, make_table, nothing, scores, two_digits

from vlmprobe.display import view
from vlmprobe.display.html import image_parts
from vlmprobe.results.document import token_rows

pytest.importorskip("selenium.webdriver", reason="needs selenium (in the dev dependencies)")
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait


@pytest.fixture
def show(browser, tmp_path):
    """Open a component; afterwards the console must be empty and nothing fetched."""

    def open_page(document, *args, **options):
        file = tmp_path / "component.html"
        file.write_text(component_page(document, *args, **options), encoding="utf-8")
        ActionChains(browser).move_by_offset(0, 0).reset_actions()
        browser.get(file.as_uri())
        return browser

    yield open_page
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []


def told(browser) -> str:
    """What the panel says."""
    return " ".join(browser.find_element(By.CLASS_NAME, "panel").text.split())


def tokens(browser):
    return browser.find_elements(By.CSS_SELECTOR, ".answer .t")


def press(browser, *keys):
    ActionChains(browser).send_keys(*keys).perform()


SEVEN = (
    "␣seven 46.7% rank 0 · entropy 1.203 nats · logprob −0.761 "
    "␣seven 46.7% ␣nine 35.1% ␣one 12.2% ␣four 3.8% ␣two 1.1% all others 1.1%"
)


def test_numbers_and_texts_are_written_as_in_the_static_report(show):
    rng = random.Random(0)
    shares = [0, 1, 0.9995, 0.0005, 0.0004, 0.5, 1.0004, *(10 ** rng.uniform(-6, 0) for _ in range(300))]
    logs = [-math.inf, 0, -1e-9, *(-(10 ** rng.uniform(-6, 4)) for _ in range(300))]
    sizes = [1, 999.4, 999.6, 1000, 12345.6, math.inf, *(10 ** rng.uniform(0, 6) for _ in range(300))]
    texts = ["", " ", "  a ", "\n", "a\tb\n ", "\x00\x1b[31m\x7f", "\u202edlrow\u2066", "\x85\u2028", "猫", "\ufffe"]
    asked = {"percent": shares, "level": shares, "nats": logs, "tiny": logs, "short": sizes, "label": texts}
    asked["plain"] = texts
    browser = show(two_digits().to_dict())
    number = "({inf: Infinity, '-inf': -Infinity})[each] ?? each"
    read = f"return arguments[1].map(each => formats[arguments[0]]({number}))"
    for name, values in asked.items():
        sent = ["-inf" if each == -math.inf else "inf" if each == math.inf else each for each in values]
        assert browser.execute_script(read, name, sent) == [getattr(view, name)(each) for each in values], name
    assert browser.execute_script("return formats.plain('a\\ud800b')") == view.plain("a\ud800b")
    assert browser.execute_script("return [formats.percent(null), formats.nats(null), formats.level(null)]") == [
        view.percent(math.nan),
        view.nats(math.nan),
        None,
    ]


def test_the_pointer_shows_numbers_and_alternatives_and_a_click_keeps_them(show):
    browser = show(two_digits().to_dict())
    seven, blue = tokens(browser)[2], tokens(browser)[8]
    ActionChains(browser).move_to_element(seven).perform()
    WebDriverWait(browser, 5).until(lambda _: told(browser) == SEVEN)
    assert browser.execute_script("return [chosen, view.selected]") == [[], None]
    seven.click()
    ActionChains(browser).move_to_element(blue).perform()
    WebDriverWait(browser, 5).until(lambda _: told(browser).startswith("␣blue"))
    ActionChains(browser).move_to_element(browser.find_element(By.CLASS_NAME, "panel")).perform()
    WebDriverWait(browser, 5).until(lambda _: told(browser) == SEVEN)
    assert browser.execute_script("return [chosen, view.selected.index, view.selected.part]") == [
        [[2, " seven", "output"]],
        2,
        "output",
    ]
    widths = "return [...document.querySelectorAll('.choice')].map(bar => +bar.style.getPropertyValue('--w'))"
    assert browser.execute_script(widths) == [0.467, 0.351, 0.122, 0.038, 0.011, 0.011]


def test_the_shades_are_those_of_the_static_report(show):
    result = two_digits()
    found = [each.get_attribute("class").split() for each in tokens(show(result.to_dict()))]
    assert [next(c for c in each if c[0] == "l") for each in found] == [f"l{r.level}" for r in view.rows(result.output)]
    assert "special" in found[-1]


def test_the_figures_are_those_of_the_static_report(show):
    for result in (two_digits(), answer(*[f" word{number}" for number in range(30)], probability=0.2)):
        browser = show(result.to_dict())
        shown = [tuple(each.text.split("\n")) for each in browser.find_elements(By.CSS_SELECTOR, ".figures div")]
        assert shown == [(name, value) for name, value, _ in view.figures(result)]


def test_the_keyboard_reaches_every_token_and_every_alternative(show):
    browser = show(two_digits().to_dict())
    press(browser, Keys.TAB)
    assert told(browser).startswith("a 99.8%")
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert told(browser) == SEVEN
    press(browser, Keys.ARROW_DOWN)  # to the first other token
    assert browser.switch_to.active_element.text.split() == ["␣nine", "35.1%"]
    press(browser, Keys.ARROW_DOWN, Keys.ENTER)
    assert browser.execute_script("return branched")[0][0] == 2
    assert browser.execute_script("return branched")[0][1]["token"] == " one"
    press(browser, Keys.ESCAPE)
    assert browser.switch_to.active_element == tokens(browser)[2]
    press(browser, Keys.END)
    assert told(browser).startswith("<|end|>")
    press(browser, Keys.ESCAPE)
    assert browser.execute_script("return [chosen.at(-1), view.selected]") == [[None, None, "output"], None]
    stops = "[...document.querySelectorAll('.answer [tabindex]')].filter(each => each.tabIndex === 0).length"
    assert browser.execute_script(f"return {stops}") == 1


def test_a_click_on_an_alternative_tells_which(show):
    result = two_digits()
    browser = show(result.to_dict())
    tokens(browser)[2].click()
    buttons = browser.find_elements(By.CSS_SELECTOR, ".panel button")
    assert len(buttons) == 4  # not the token that was said
    buttons[0].click()
    nine = token_rows(result.output)[2]["alternatives"][1]
    assert browser.execute_script("return branched") == [[2, nine]]


def test_alternatives_are_no_buttons_where_nothing_can_continue(show):
    browser = show(two_digits().to_dict(), branch=False)
    tokens(browser)[2].click()
    assert told(browser) == SEVEN
    assert not browser.find_elements(By.CSS_SELECTOR, ".panel button")


def test_streamed_tokens_push_nothing_and_stay_when_the_answer_is_whole(show):
    whole = answer(*[f" word{number}" for number in range(400)]).to_dict() | {"question": "describe"}
    browser = show(whole | {"output": []})
    browser.execute_script(
        "window.shifts = 0; window.rows = arguments[0];"
        "const count = list => { for (const each of list.getEntries()) shifts += each.value };"
        "new PerformanceObserver(count).observe({type: 'layout-shift', buffered: true});"
        "const next = (place) => { view.append(rows.slice(place, place + 5)); window.reached = place + 5;"
        "if (reached < rows.length) requestAnimationFrame(() => next(reached)) }; next(0)",
        whole["output"],
    )
    WebDriverWait(browser, 20).until(lambda _: browser.execute_script("return reached") == 400)
    assert len(tokens(browser)) == 400
    tokens(browser)[3].click()
    first = tokens(browser)[3]
    browser.execute_script("view.update(arguments[0])", whole)
    assert tokens(browser)[3] == first == browser.switch_to.active_element
    assert browser.execute_script("return view.selected.index") == 3
    assert browser.find_element(By.CLASS_NAME, "figures").is_displayed()
    assert browser.execute_script("return shifts") == 0


def test_an_answer_that_goes_on_otherwise_is_shown_anew(show):
    browser = show(two_digits().to_dict())
    browser.execute_script("view.select(2); view.update(arguments[0])", answer("one", " two").to_dict())
    assert [each.text for each in tokens(browser)] == ["one", "two"]
    assert browser.execute_script("return view.selected") is None


def test_two_thousand_rows_of_a_prompt_are_a_few_elements(show):
    result = two_digits()
    said = [(f" word{number}", 0.5, [(" other", 0.25)]) for number in range(2000)]
    document = result.to_dict() | {"prompt": token_rows(make_table([nothing("<|begin|>"), *said], special=[0]))}
    browser = show(document)
    assert not browser.find_elements(By.CLASS_NAME, "prompt-row")  # before it is unfolded
    browser.find_element(By.TAG_NAME, "summary").click()
    WebDriverWait(browser, 5).until(lambda _: browser.find_elements(By.CLASS_NAME, "prompt-row"))
    press(browser, Keys.TAB, Keys.ARROW_DOWN)
    assert told(browser) == "<|begin|> – no distribution before this token"
    press(browser, Keys.END)
    WebDriverWait(browser, 5).until(lambda _: "␣word1999" in browser.find_element(By.CLASS_NAME, "prompt-rows").text)
    assert told(browser).startswith("␣word1999 50.0% rank 0")
    assert len(browser.find_elements(By.CLASS_NAME, "prompt-row")) < 50
    assert browser.execute_script("return [chosen.at(-1), view.selected.index]") == [
        [2000, " word1999", "prompt"],
        2000,
    ]
    inside = (
        "const box = document.querySelector('.prompt-rows').getBoundingClientRect();"
        "const row = document.querySelector('.prompt-row[aria-selected=true]').getBoundingClientRect();"
        "return row.top >= box.top && row.bottom <= box.bottom"
    )
    assert browser.execute_script(inside)
    browser.execute_script("view.select(1000, 'prompt')")
    assert browser.execute_script(inside)
    assert "␣word999" in told(browser)


def test_the_image_of_a_prompt_is_a_chip(show):
    result = two_digits()
    browser = show(result.to_dict() | {"images": [image_parts(result.images[0])["uri"]]})
    browser.find_element(By.TAG_NAME, "summary").click()
    wait = WebDriverWait(browser, 5)
    wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, ".prompt .chip"))  # an event unfolds it
    assert browser.find_element(By.CSS_SELECTOR, ".prompt .chip").text.split() == ["image", "1", "16", "positions"]
    loaded = "return [...document.images].map(image => image.complete && image.naturalWidth > 0)"
    wait.until(lambda _: browser.execute_script(loaded) == [True, True])


OWNING = (
    "<script>document.title='owned'</script>",
    " <img src=x onerror=\"document.title='owned'\">",
    " <svg onload=\"document.title='owned'\">",
    "</style><style>*{display:none}</style>",
    ' " onmouseover="document.title=\'owned\'" x="',
    "\u202eright to left\x1b[31m",
)


@pytest.mark.parametrize("kind", ["showAnswer", "showScores"])
def test_what_a_model_says_is_text_and_never_runs(show, kind):
    hostile = make_table([(text, 0.5, [(text + "2", 0.3)]) for text in OWNING])
    result = answer(*OWNING)
    result.meta.update({"question": OWNING[1], OWNING[0]: OWNING[1]})
    document = result.to_dict() | {"prompt": token_rows(hostile)}
    if kind == "showScores":
        document = scores({text: [0.1] for text in OWNING}, question=OWNING[1]).to_dict()
        document |= {"answer": OWNING[0], "note": OWNING[1]}
        document["candidates"][0]["boundary"] = OWNING[0]
    document["images"] = ["javascript:document.title='owned'", "https://example.org/x.png", OWNING[0]]
    browser = show(document, kind)
    for summary in browser.find_elements(By.TAG_NAME, "summary"):
        summary.click()
    for place in range(len(OWNING)):
        browser.execute_script("view.select(arguments[0])", place)
    assert browser.title == "mine"
    assert not browser.find_elements(By.CSS_SELECTOR, "#app :is(script, style, svg, img, [onerror], [onmouseover])")
    shown = browser.find_element(By.CLASS_NAME, "main").text
    for text in OWNING:
        assert view.plain(text).strip() in shown


def test_a_million_combining_marks_stay_in_their_place(show):
    browser = show(answer("a" + "\u0301" * 1_000_000, " b").to_dict())
    browser.execute_script("view.select(0)")
    assert (
        max(browser.execute_script("return [...document.querySelectorAll('.t')].map(e => e.textContent.length)")) < 500
    )
    assert browser.execute_script("return document.documentElement.scrollHeight") < 3000


def test_bounds_are_shown_as_such_and_missing_numbers_as_a_dash(show):
    rows = token_rows(make_table([nothing(" never"), nothing(" listed")]))
    rows[0] |= {"logprob_at_most": math.log(0.02), "entropy_at_least": 1.5}
    document = answer("x").to_dict() | {"output": rows, "confidence": None}
    browser = show(document)
    browser.execute_script("view.select(0)")
    assert told(browser).startswith("␣never ≤ 2.0% logprob ≤ −3.912")
    assert "l6" in tokens(browser)[0].get_attribute("class")  # at most so sure
    browser.execute_script("view.select(1)")
    assert told(browser).startswith("␣listed – its probability is not known")
    shown = dict(tuple(each.text.split("\n")) for each in browser.find_elements(By.CSS_SELECTOR, ".figures div"))
    assert (shown["confidence"], shown["per token"], shown["perplexity"], shown["mean entropy"]) == ("–", "–", "–", "–")
    assert shown["least sure"] == "never ≤ 2.0%"


def test_candidates_have_bars_and_their_tokens_can_be_looked_at(show):
    ranked = scores({"no": [0.2], "yes": [0.7], "a rather long one": [0.05, 0.9]})
    browser = show(ranked.to_dict(), "showScores")
    cells = [
        [each.text for each in line.find_elements(By.CSS_SELECTOR, "th, td")]
        for line in browser.find_elements(By.CSS_SELECTOR, "tbody tr")
    ]
    order = view.order(ranked)
    assert cells == [
        [
            ranked.candidates[each],
            view.share(ranked, each),
            view.summed(ranked, each),
            view.nats(float(ranked.means[each])),
            view.nats(float(ranked.per_byte[each])),
        ]
        for each in order
    ]
    assert view.held(ranked) in browser.find_element(By.CLASS_NAME, "mass").text
    browser.find_elements(By.CLASS_NAME, "candidate")[2].click()
    assert browser.execute_script("return chosen") == [[2, "a rather long one", "candidates"]]
    assert "".join(each.text for each in tokens(browser)).replace(" ", "") == "aratherlongone"
    tokens(browser)[0].click()
    assert told(browser).startswith("a 5.0% rank 1")
    browser.execute_script("view.update(arguments[0])", scores({"no": [0.4], "yes": [0.5]}).to_dict())
    assert browser.execute_script("return view.selected") is None


def test_candidates_that_are_only_bounded_say_so(show):
    document = scores({"yes": [0.7], "no": [0.2]}).to_dict()
    document["candidates"][1] |= {
        "logprob": None,
        "probability": None,
        "logprob_at_most": math.log(0.01),
        "probability_bounds": [0, 0.014],
    }
    browser = show(document, "showScores")
    last = browser.find_elements(By.CSS_SELECTOR, "tbody tr")[1].text
    assert "≤ 1.4%" in last
    assert "≤ −4.605" in last
    assert "at least" in browser.find_element(By.CLASS_NAME, "mass").text


def test_chinese(show):
    browser = show(two_digits().to_dict(), lang="zh-CN")
    assert browser.find_element(By.CSS_SELECTOR, ".figures dt").text == "置信度"
    tokens(browser)[2].click()
    assert "排名 0" in told(browser)
    assert browser.find_element(By.CLASS_NAME, "answer-view").get_attribute("lang") == "zh"
    english, chinese = browser.execute_script("return ['fr', 'zh-TW'].map(l => Object.keys(formats.wordsOf(l)).sort())")
    assert english == chinese


def test_a_phone_shows_everything_in_its_width(show, browser):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        long = answer(*[f" word{number}" for number in range(400)])
        show(long.to_dict())
        tokens(browser)[20].click()
        assert told(browser).startswith("␣word20")
        box = browser.execute_script("return document.querySelector('.panel').getBoundingClientRect().toJSON()")
        assert box["top"] >= 0
        assert box["bottom"] <= 844
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        show(scores({"yes": [0.9], "a rather long candidate answer that goes on": [0.1]}).to_dict(), "showScores")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_it_goes_as_it_came(show):
    browser = show(two_digits().to_dict())
    browser.execute_script("view.destroy()")
    assert browser.execute_script("return document.getElementById('app').childNodes.length") == 0
