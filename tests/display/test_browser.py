"""The report in a real browser: nothing runs, nothing is fetched, hover and keys show the numbers."""

from __future__ import annotations

import pytest
from render_cases import answer, make_table, scores, two_digits

from vlmprobe.display import fragment, page, table_html

pytest.importorskip("selenium.webdriver", reason="needs selenium (in the dev dependencies)")
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

OWNING = (
    "<script>document.title='owned'</script>",
    " <img src=x onerror=\"document.title='owned'\">",
    " <svg onload=\"document.title='owned'\">",
    "</style></script><script>document.title='owned'</script>",
    ' " onmouseover="document.title=\'owned\'" onfocus="document.title=\'owned\'" x="',
)


@pytest.fixture
def show(browser, tmp_path):
    """Open HTML in the browser, in a colour scheme; afterwards the console must be empty and nothing fetched."""

    def open_page(html: str, scheme: str = "light"):
        file = tmp_path / "report.html"
        file.write_text(html, encoding="utf-8")
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        ActionChains(browser).move_by_offset(0, 0).reset_actions()
        browser.get(file.as_uri())
        return browser

    yield open_page
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []


def token(browser, text: str):
    """The first token that shows ``text``."""
    found = browser.find_elements(By.XPATH, f"//span[contains(@class, 't ')][starts-with(., '{text}')]")
    return found[0]


def card_of(element):
    return element.find_element(By.CLASS_NAME, "card")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hover_shows_the_numbers_and_the_alternatives(show, scheme):
    browser = show(page([two_digits()]), scheme)
    seven = token(browser, "seven")
    card = card_of(seven)
    assert not card.is_displayed()
    ActionChains(browser).move_to_element(seven).perform()
    assert card.is_displayed()
    assert " ".join(card.text.split()) == (
        "␣seven 46.7% rank 0 · entropy 1.203 nats · logprob −0.761 "
        "␣seven 46.7% ␣nine 35.1% ␣one 12.2% ␣four 3.8% ␣two 1.1% all others 1.1%"
    )
    widths = "return [...arguments[0].querySelectorAll('i')].map(bar => +getComputedStyle(bar).getPropertyValue('--w'))"
    assert browser.execute_script(widths, card) == [0.47, 0.35, 0.12, 0.04, 0.01, 0.01]
    ActionChains(browser).move_to_element(token(browser, "blue")).perform()
    assert not card.is_displayed()


@pytest.fixture
def phone(browser):
    """A screen of 390 pixels, touched by a finger."""
    size = {"width": 390, "height": 900, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    yield browser
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_on_a_phone_a_tap_shows_the_numbers(show, phone):
    browser = show(page([two_digits()]))
    seven = token(browser, "seven")
    where = browser.execute_script(
        "const r = arguments[0].getBoundingClientRect(); return {x: r.x + r.width / 2, y: r.y + r.height / 2}", seven
    )
    for kind, points in (("touchStart", [where]), ("touchEnd", [])):
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    WebDriverWait(browser, 10).until(lambda _: card_of(seven).is_displayed())
    assert "tap it" in browser.find_element(By.TAG_NAME, "footer").text


def test_on_a_phone_no_shade_of_the_legend_touches_another(show, phone):
    boxes = show(page([two_digits()])).execute_script(
        "return [...document.querySelectorAll('.legend span')].map(e => {"
        "const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]})"
    )
    assert len({top for _, top, _, _ in boxes}) > 1  # the legend is wrapped
    for place, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[place + 1 :]:
            apart = right <= other[0] or other[2] <= left
            assert apart or bottom + 5 <= other[1] or other[3] + 5 <= top


def test_on_a_phone_a_long_candidate_is_no_column_of_single_words(show, phone):
    browser = show(page([scores({"yes": [0.9], "a rather long candidate answer that goes on and on": [0.1]})]))
    names = browser.find_elements(By.CSS_SELECTOR, "tbody th")
    assert min(name.size["width"] for name in names) >= 128
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert "tap it" not in browser.find_element(By.TAG_NAME, "footer").text  # there is nothing to tap


def test_the_bars_of_a_table_can_be_seen(show):
    browser = show(table_html(two_digits().output))
    bars = browser.find_elements(By.CSS_SELECTOR, ".rows .bar")
    assert bars
    assert min(bar.size["width"] for bar in bars) >= 100  # pixels; a percentage takes half of it


def test_a_card_stays_inside_the_window(show):
    browser = show(page([answer(*[f" word{number}" for number in range(400)])]))
    corners = browser.execute_script(
        "const seen = [...document.querySelectorAll('.t')].map(e => [e.getBoundingClientRect(), e])"
        ".filter(([r]) => r.bottom < innerHeight - 10);"
        "const furthest = [...seen].sort(([a], [b]) => b.right - a.right)[0];"
        "return [seen[0], seen.at(-1), furthest].map(([r, e]) => e)"
    )
    for element in corners:
        ActionChains(browser).move_to_element(element).perform()
        inside = browser.execute_script(
            "const r = arguments[0].getBoundingClientRect();"
            "return r.width > 200 && r.left >= 0 && r.top >= 0 && r.right <= innerWidth && r.bottom <= innerHeight",
            card_of(element),
        )
        assert inside, element.text


def test_the_keyboard_reaches_every_token_with_one_tab_stop(show):
    browser = show(page([two_digits()]))
    text = browser.find_element(By.CLASS_NAME, "tokens")
    assert len(text.find_elements(By.CSS_SELECTOR, "[tabindex='0']")) == 1
    keys = ActionChains(browser)
    keys.send_keys(Keys.TAB, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT).perform()
    card = card_of(browser.switch_to.active_element)
    assert card.is_displayed()
    assert card.text.startswith("␣seven")
    ActionChains(browser).send_keys(Keys.END).perform()
    assert not card.is_displayed()
    assert card_of(browser.switch_to.active_element).text.startswith("<|end|>")
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert not any(each.is_displayed() for each in browser.find_elements(By.CLASS_NAME, "card"))


def test_the_prompt_unfolds_with_its_picture_as_a_chip(show):
    browser = show(page([two_digits()]))
    chip = browser.find_element(By.CLASS_NAME, "chip")
    assert not chip.is_displayed()
    browser.find_element(By.TAG_NAME, "summary").click()
    assert chip.is_displayed()
    assert chip.text.split() == ["image", "1", "16", "positions"]
    loaded = "return [...document.images].map(image => image.complete && image.naturalWidth > 0)"
    assert browser.execute_script(loaded) == [True, True]


@pytest.mark.parametrize(
    "wrap", [lambda result: page([result], title="mine"), fragment, lambda r: table_html(r.output)]
)
def test_what_a_model_says_is_text_and_never_runs(show, wrap):
    result = answer(*OWNING)
    result.meta["question"] = OWNING[1]
    object.__setattr__(result, "prompt", make_table([(text, 0.5, [(text, 0.3)]) for text in OWNING]))
    html = wrap(result)
    if "<title>" not in html:
        html = f"<!doctype html><meta charset='utf-8'><title>mine</title>{html}"
    browser = show(html)
    for element in browser.find_elements(By.CLASS_NAME, "t")[: len(OWNING)]:
        ActionChains(browser).move_to_element(element).click().perform()
    assert browser.title == "mine"
    assert not browser.find_elements(By.CSS_SELECTOR, "svg, img, .tokens script, [onerror], [onmouseover]")
    shown = browser.find_element(By.CLASS_NAME, "tokens").text
    for text in OWNING:
        assert text.strip() in shown


def test_the_policy_of_the_page_stops_scripts_that_are_not_its_own(browser, tmp_path):
    html = page([two_digits()], title="mine").replace("</main>", "<script>document.title='owned'</script></main>")
    file = tmp_path / "tampered.html"
    file.write_text(html, encoding="utf-8")
    browser.get(file.as_uri())
    assert browser.title == "mine"
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))


def test_a_fragment_leaves_the_notebook_around_it_alone(show):
    host = (
        "<!doctype html><meta charset='utf-8'><div class='t card bar l6'>host</div><p class='note legend'>text</p>"
        "<table class='rows'><tr><th>a</th><td class='share'>b</td></tr></table><details><summary>s</summary></details>"
    )
    read = (
        "return [...document.body.children].filter(e => !e.matches('[class^=vlmprobe]'))"
        ".flatMap(e => [e, ...e.querySelectorAll('*')])"
        ".map(e => [...getComputedStyle(e)].map(name => name + ':' + getComputedStyle(e)[name]).join(';'))"
    )
    before = show(host).execute_script(read)
    ranked = scores({"yes": [0.7], "no": [0.2]})
    after = show(host + fragment(two_digits()) + fragment(ranked)).execute_script(read)
    assert len(before) > 6
    assert before == after


def test_a_fragment_needs_no_script_and_inherits_the_colours_of_a_dark_notebook(show):
    html = fragment(two_digits())
    assert "<script" not in html
    browser = show(f"<!doctype html><meta charset='utf-8'><body style='background:#111;color:#e0e0e0'>{html}")
    seven = token(browser, "seven")
    assert seven.value_of_css_property("color") == "rgba(224, 224, 224, 1)"
    assert "underline" in seven.value_of_css_property("text-decoration")
    ActionChains(browser).move_to_element(seven).perform()
    assert card_of(seven).is_displayed()


def test_the_report_is_in_chinese_where_the_browser_is(show, browser):
    """The words of the templates; what a model, a person or a checkpoint wrote stays, even if it is such a word."""
    result = answer("confidence", " rank", " all others")
    result.meta.update({"question": "rank", "model": "image 1"})
    html = page([two_digits(), result, scores({"candidate": [0.7], "rank": [0.2]})])
    agent = browser.execute_script("return navigator.userAgent")
    browser.execute_cdp_cmd("Emulation.setUserAgentOverride", {"userAgent": agent, "acceptLanguage": "zh-CN"})
    try:
        show(html)
        places = "dt, summary, thead th, .legend .faint"
        texts = {each.text for each in browser.find_elements(By.CSS_SELECTOR, places)}
        assert {"置信度", "困惑度", "候选", "token 的概率", "提示词 9 个 token · 1 张图像 · 困惑度 1.77"} <= texts
        assert browser.execute_script("return document.documentElement.lang") == "zh"
        assert [each.text for each in browser.find_elements(By.CLASS_NAME, "question")] == [
            "describe the picture",
            "rank",
        ]
        assert browser.find_elements(By.CLASS_NAME, "answer")[1].text.split() == ["confidence", "rank", "all", "others"]
        assert [each.text for each in browser.find_elements(By.CSS_SELECTOR, "tbody th")] == ["candidate", "rank"]
        assert browser.find_element(By.TAG_NAME, "header").text.split("\n")[:2] == ["demo, image 1, hand", "3 个结果"]
        ActionChains(browser).move_to_element(token(browser, "seven")).perform()
        told = " ".join(card_of(token(browser, "seven")).text.split())
        assert told.startswith("␣seven 46.7% 排名 0 · 熵 1.203 nats · logprob −0.761 ␣seven 46.7%")
        assert told.endswith("其余全部 1.1%")
        assert "这些候选合计占模型输出概率的 90.0%。" in browser.find_elements(By.CLASS_NAME, "mass")[0].text
        left = browser.execute_script(
            "return [...document.querySelectorAll('.figures dt, thead th, footer span, .card .other')]"
            ".map(each => each.firstChild.data).filter(each => /^[ -~]+$/.test(each) && each !== 'logprob')"
        )
        assert not left
    finally:
        browser.execute_cdp_cmd("Emulation.setUserAgentOverride", {"userAgent": agent, "acceptLanguage": "en-US"})
