"""The page in a real browser: ask, follow, look, branch, walk back, look closer, share; by keyboard, on a phone."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from accessibility import violations
from page_client import QUESTION, UNSURE, Held, Server
from render_cases import answer as answer_of
from render_cases import make_table

import vlmprobe
from vlmprobe.engines.local import LocalEngine
from vlmprobe.engines.stream import Stream
from vlmprobe.page.saved import open_saved
from vlmprobe.results.result import Result

pytest.importorskip("selenium.webdriver", reason="needs selenium (in the dev dependencies)")
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

SHIFTS = """
window.shifts = [];
new PerformanceObserver((list) => {
  for (const each of list.getEntries()) if (!each.hadRecentInput) shifts.push(each.value);
}).observe({ type: "layout-shift", buffered: true });
window.painted = new Promise((resolve) => new PerformanceObserver((list) => resolve(list.getEntries()[0].startTime))
  .observe({ type: "paint", buffered: true }));
window.addEventListener("unhandledrejection", (event) => console.error("unhandled", event.reason));
"""


@pytest.fixture(scope="module")
def browser(browser):
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": SHIFTS})
    return browser


@pytest.fixture(scope="module")
def served(demo):
    with Server(demo) as server:
        yield server


@pytest.fixture
def show(browser):
    """Open a page, in a colour scheme and a size; afterwards the console must be empty."""

    def opened(server, scheme="light", width=1200, height=850, language="en-GB"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        agent = browser.execute_script("return navigator.userAgent")
        browser.execute_cdp_cmd("Emulation.setUserAgentOverride", {"userAgent": agent, "acceptLanguage": language})
        browser.get(server.address)
        return Screen(browser)

    yield opened
    browser.get("about:blank")
    assert [each for each in browser.get_log("browser") if "favicon" not in each["message"]] == []


class Screen:
    """What a person does with the page and sees of it."""

    def __init__(self, browser):
        self.browser = browser
        self.all = lambda css: browser.find_elements(By.CSS_SELECTOR, css)

    def one(self, css, text=""):
        return self.until(lambda: next((each for each in self.all(css) if text in each.text), None))

    def until(self, what, seconds=60):
        return WebDriverWait(self.browser, seconds, poll_frequency=0.05).until(lambda _: what())

    def keys(self, *keys):
        ActionChains(self.browser).send_keys(*keys).perform()

    def add(self, *files):
        before = len(self.all(".strip li"))
        self.one("input[type=file]").send_keys("\n".join(map(str, files)))
        self.until(lambda: len(self.all(".strip li")) == before + len(files))

    def ask(self, text=QUESTION, kind="answer", texts=""):
        if kind != "answer":
            self.browser.execute_script(f"document.querySelector('.kind input[value={kind}]').click()")
        if texts:
            self.one(".texts textarea").send_keys(texts)
        self.one("#question").send_keys(text)
        before = len(self.all(".turn"))
        self.one("button.main").click()
        self.until(lambda: len(self.all(".turn")) == before + 1)
        self.answered()

    def ask_many(self, turns, text=QUESTION):
        """Ask side by side; there are so many turns afterwards."""
        self.one("#question").send_keys(text, Keys.ENTER)
        self.until(lambda: len(self.all(".turn")) == turns)
        self.answered()

    def answered(self):
        self.until(lambda: self.all(".turn") and not self.all("[aria-busy]"))

    def tokens(self, turn=-1):
        return self.all(".turn")[turn].find_elements(By.CSS_SELECTOR, ".answer .t")

    def text(self, turn=-1):
        whole = self.all(".turn")[turn].find_element(By.CSS_SELECTOR, ".answer .tokens").text
        return " ".join(whole.replace("<|end|>", "").split())

    def token(self, text, turn=-1):
        found = next(each for each in self.tokens(turn) if each.text.strip() == text)
        self.browser.execute_script("arguments[0].scrollIntoView({ block: 'center' })", found)
        return found

    def choice(self, text):
        return self.one("button.choice", text)

    def press(self, text):
        button = self.one("button", text)
        button.click()
        return button


def test_from_the_first_screen_to_a_shaded_answer(show, served, demo):
    screen = show(served)
    assert screen.one("#start h2").text == "What was the model about to say?"
    paints = []  # milliseconds to the first paint; other programs may take the processor for a while
    for _ in range(5):
        paints.append(screen.browser.execute_async_script("painted.then(arguments[0])"))
        screen.browser.refresh()
    assert min(paints) < 500
    screen.one(f'.samples button[aria-label*="{UNSURE.name}"]').click()
    screen.answered()
    expected = demo.generate(QUESTION, UNSURE)
    assert screen.text() == expected.text
    assert len(screen.tokens()) == len(expected.output)
    assert "l4" in screen.token("nine").get_attribute("class")  # 24 %
    assert "l0" in screen.token("left").get_attribute("class")
    assert not screen.one("#start").is_displayed()
    assert screen.browser.title == "demo · vlmprobe"


def test_hover_branch_twice_and_walk_back(show, served, demo):
    screen = show(served)
    screen.add(UNSURE)
    screen.ask()
    first = screen.text()
    ActionChains(screen.browser).move_to_element(screen.token("nine")).perform()
    screen.until(lambda: "24." in screen.one(".panel .head").text)
    alternatives = [each.text for each in screen.all("button.choice")]
    assert len(alternatives) == 9  # ten, without the one that was said
    screen.token("nine").click()
    screen.choice("seven").click()
    screen.until(lambda: len(screen.all(".branches button")) == 2)
    screen.answered()
    whole = demo.generate(QUESTION, UNSURE)
    expected = demo.branch(whole, 2, " seven")
    second = screen.text()
    assert second == expected.text != first
    assert screen.browser.switch_to.active_element.text.strip() == "seven"
    screen.token("yellow").click()
    screen.choice("blue").click()
    screen.until(lambda: len(screen.all(".branches button")) == 3)
    screen.answered()
    third = screen.text()
    assert third.startswith("a red seven on the left and a blue")
    depths = [each.value_of_css_property("margin-left") for each in screen.all(".branches button")]
    assert depths == ["0px", "20px", "40px"]
    for place, text in enumerate((first, second, third)):
        screen.all(".branches button")[place].click()
        assert screen.text() == text
        assert screen.all(".branches [aria-current=true]") == [screen.all(".branches button")[place]]


def test_what_followed_an_answer_comes_back_with_it(show, served):
    screen = show(served)
    screen.add(UNSURE)
    screen.ask()
    screen.ask("Which digit is on the left?")
    assert len(screen.all(".turn")) == 2
    screen.token("nine", turn=0).click()
    screen.all(".turn")[0].find_element(By.CSS_SELECTOR, "button.choice").click()
    screen.until(lambda: len(screen.all(".turn")) == 1)
    screen.answered()
    screen.all(".branches button")[0].click()
    assert len(screen.all(".turn")) == 2
    assert "Which digit" in screen.all(".turn")[1].text


@pytest.mark.parametrize(
    ("kind", "texts"), [("yes_no", ""), ("options", "nine\nseven"), ("levels", "1\n2\n3"), ("candidates", "yes\nno")]
)
def test_typed_questions_have_bars(show, served, demo, kind, texts):
    screen = show(served)
    screen.add(UNSURE)
    question = "Is there a nine?" if kind in ("yes_no", "candidates") else "Which digit is on the left?"
    screen.ask(question, kind, texts)
    assert len(screen.all(".turn tbody tr")) == (3 if kind == "levels" else 2)
    assert screen.all(".turn .share .bar")
    if kind != "candidates":
        typed = {"yes_no": {}, "options": {"options": ["nine", "seven"]}, "levels": {"levels": [1, 2, 3]}}[kind]
        assert screen.one(".turn .said").text == demo.ask(question, UNSURE, **typed).said


def test_the_panels(show, served):
    screen = show(served)
    screen.add(UNSURE)
    screen.ask()
    screen.press("Where it looked")
    screen.one(".regions .map")
    assert len(screen.all(".grid-of-regions span")) == 64
    whole = screen.one(".regions-body p + p").text
    assert "nats" in whole
    screen.token("nine").click()
    assert screen.one(".name-of-token").text == "nine"
    column = int(screen.one(".regions-body p + p").text.split("column ")[1].split(":")[0])
    assert column <= 4  # the digit on the left
    screen.press("Layers")
    screen.one(".layers-table")
    heads = [each.text for each in screen.all(".layers-table thead th")]
    assert heads[1:4] == ["a", "␣red", "␣nine"]
    screen.press("Ask again, sampled")
    assert "say the same" in screen.one(".samples_panel b").text
    screen.press("Python")
    assert "vlmprobe.load" in screen.one("pre").text
    assert UNSURE.name in screen.one("pre").text


def test_prompt_log_probabilities(show, served):
    screen = show(served)
    screen.add(UNSURE)
    screen.ask()
    screen.one("summary", "Prompt").click()
    assert "Describe" in screen.one(".prompt-rows").text


def test_one_file_of_what_is_on_the_screen(show, served, browser, tmp_path):
    screen = show(served)
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    screen.add(UNSURE)
    screen.ask()
    screen.ask("Is there a nine?", "yes_no")
    screen.press("Save as HTML")
    file = tmp_path / "vlmprobe.html"
    screen.until(file.exists)
    text = file.read_text(encoding="utf-8")
    assert text.count("<article>") == 2
    assert "Is there a nine?" in text


def test_pasted_and_dropped_images(show, served, browser):
    screen = show(served)
    for name, transfer in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        before = len(screen.all(".strip li"))
        browser.execute_async_script(
            "const [name, transfer, url, done] = arguments;"
            "fetch(url).then(r => r.blob()).then(blob => { const held = new DataTransfer();"
            "held.items.add(new File([blob], 'a.png', {type: 'image/png'}));"
            "const event = new Event(name, {bubbles: true, cancelable: true});"
            "Object.defineProperty(event, transfer, {value: held}); document.body.dispatchEvent(event); done() })",
            name,
            transfer,
            f"api/samples/{sample_names()[before]}",
        )
        screen.until(lambda before=before: len(screen.all(".strip li")) == before + 1)
    screen.all(".remove")[0].click()
    assert len(screen.all(".strip li")) == 1


def sample_names():
    return [path.name for path in vlmprobe.demo.sample_images()]


def test_a_file_that_is_no_image_is_told(show, served, tmp_path):
    screen = show(served)
    wrong = tmp_path / "<img src=x onerror=alert(1)>.png"
    wrong.write_bytes(b"no image")
    screen.one("input[type=file]").send_keys(str(wrong))
    screen.until(lambda: "image" in screen.one(".composer .wrong").text)
    screen.browser.get_log("browser")  # the browser notes the status 400 itself


def test_keyboard_alone(show, served, browser):
    screen = show(served)
    screen.one(".samples button img")
    screen.keys(*[Keys.TAB] * 2)  # New chat; Save as HTML is not yet of use; the first image
    assert browser.switch_to.active_element.get_attribute("aria-label").startswith("Bundled image")
    screen.keys(*[Keys.TAB] * 4, Keys.ENTER)
    screen.answered()
    assert "nine" in screen.text()
    while "t " not in f"{browser.switch_to.active_element.get_attribute('class')} ":
        screen.keys(Keys.TAB)
    screen.keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    assert "eight" in browser.switch_to.active_element.text
    screen.keys(Keys.ENTER)
    screen.until(lambda: len(screen.all(".branches button")) == 2)
    screen.answered()
    assert "eight" in screen.text()
    assert browser.switch_to.active_element.text.strip() == "eight"
    while browser.switch_to.active_element.tag_name != "textarea":
        screen.keys(Keys.TAB)
    screen.keys("Which digit is on the right?", Keys.ENTER)
    screen.until(lambda: len(screen.all(".turn")) == 2)
    screen.answered()
    assert "seven" in screen.text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_an_accessibility_checker_finds_nothing(show, served, browser, scheme, width):
    screen = show(served, scheme, width)
    screen.one(".samples button img")
    assert violations(browser) == []
    screen.one(".samples button:last-child")
    screen.all(".samples button")[4].click()
    screen.answered()
    screen.token("nine").click()
    screen.choice("eight").click()
    screen.until(lambda: len(screen.all(".branches button")) == 2)
    screen.answered()
    screen.ask()
    screen.ask("Is there a nine?", "yes_no")
    screen.ask("Is there a nine?", "yes_no")
    for name in ("Where it looked", "Layers", "Ask again, sampled", "Python"):
        browser.execute_script("arguments[0].click()", screen.one(".turn button", name))
    screen.one(".settings + *")
    browser.execute_script("document.querySelector('[aria-controls=settings]').click()")
    for css in (".map", ".layers-table", ".agreeing", "pre"):
        screen.one(css)
    assert violations(browser) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_nothing_moves_while_an_answer_is_written(show, served, browser):
    screen = show(served)
    screen.add(UNSURE)
    browser.execute_script("shifts.length = 0")
    screen.ask()
    assert len(screen.tokens()) > 10
    assert sum(browser.execute_script("return shifts")) < 0.01


def test_in_chinese(show, served):
    screen = show(served, language="zh-CN,zh;q=0.9,en;q=0.8")
    assert screen.one("button.main").text == "提问"
    screen.add(UNSURE)
    screen.ask()
    assert screen.browser.execute_script("return document.documentElement.lang") == "zh"
    assert "困惑度" in screen.one(".figures").text


def test_both_languages_say_the_same_things(show, served, browser):
    show(served)
    missing = browser.execute_async_script(
        "const done = arguments[0]; import('./static/strings.js').then(({ WORDS }) => {"
        "const [en, zh] = [WORDS.en, WORDS.zh].map(Object.keys);"
        "done([...en.filter(k => !zh.includes(k)), ...zh.filter(k => !en.includes(k))]) })"
    )
    assert missing == []


def test_saved_answers_are_listed_and_gone_on_from(show, demo, browser, tmp_path):
    results = [demo.generate(QUESTION, path) for path in vlmprobe.demo.sample_images()]
    other = replace(results[0], meta={**results[0].meta, "model": "other", "question": OWNING[1]})
    vlmprobe.save_results([*results, other], tmp_path / "s")
    with Server(demo, open_saved(tmp_path / "s")) as server:
        screen = show(server)
        screen.one("#saved h2", "s")
        assert len(screen.all(".saved-rows tbody tr")) == 7
        screen.one(".saved-tools select").send_keys("Least")
        first = results[4].text
        screen.until(lambda: screen.all(".saved-rows tbody td:nth-child(3)")[0].text == first)
        assert violations(browser) == []
        screen.one(".find").send_keys("yellow seven")
        screen.until(lambda: len(screen.all(".saved-rows tbody tr")) == 1)
        screen.one(".saved-rows button").click()
        screen.one(".turn")
        assert screen.text() == first
        screen.token("nine").click()
        screen.choice("seven").click()
        screen.until(lambda: len(screen.all(".branches button")) == 2)
        screen.answered()
        assert screen.text() == demo.branch(results[4], 2, " seven").text
        screen.press("New chat")
        screen.one(".find").send_keys(Keys.BACKSPACE * 20)
        screen.until(lambda: len(screen.all(".saved-rows tbody tr")) == 7)
        last = next(row for row in screen.all(".saved-rows tbody tr") if row.text.startswith("6"))
        last.find_element(By.TAG_NAME, "button").click()
        assert "another model is open" in screen.one(".turn .status", "other").text
        screen.token("left").click()
        assert not screen.all("button.choice")
        assert OWNING[1].strip() in screen.one(".turn .question").text
        assert not screen.all("[onerror]")
        assert browser.title == "demo · vlmprobe"


def test_two_images_side_by_side(show, served, demo, browser):
    screen = show(served)
    two = vlmprobe.demo.sample_images()[3:5]
    screen.add(*two)
    screen.one(".apart input").click()
    screen.ask_many(2)
    assert [screen.text(turn) for turn in (0, 1)] == [demo.generate(QUESTION, path).text for path in two]
    left, right = (each.rect for each in screen.all(".lane"))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    assert [each.text for each in screen.all(".lane > h2")] == [path.name for path in two]
    screen.token("nine").click()
    screen.choice("seven").click()
    screen.until(lambda: len(screen.all(".lane + .lane .branches button")) == 2)
    screen.answered()
    assert screen.text(0) == demo.generate(QUESTION, two[0]).text
    assert violations(browser) == []
    screen.ask_many(4, "Which digit is on the right?")
    assert [screen.text(turn) for turn in (1, 3)] == ["one", "seven"]


def test_two_models_side_by_side(show, demo, probe_of):
    with Server({"demo": demo, "llava": probe_of("llava")}) as server:
        screen = show(server)
        screen.add(UNSURE)
        screen.ask_many(2)
        assert [each.text for each in screen.all(".lane > h2")] == ["demo", "llava"]
        assert screen.text(0) == demo.generate(QUESTION, UNSURE).text
        assert len(screen.tokens(1)) == len(probe_of("llava").generate(QUESTION, UNSURE).output)


# -- the queue, and who leaves ------------------------------------------------------------------------


class Slow(LocalEngine):
    """Streams a token whenever it is let."""

    def __init__(self, engine):
        vars(self).update(vars(engine))
        self.go, self.told, self.closed = threading.Semaphore(0), 0, threading.Event()

    def stream(self, conversation, options):
        def answer(listener):
            result = self.generate([conversation], options)[0]
            told = 0
            while told < len(result.output):
                let = self.go.acquire(timeout=0.05)
                told += let
                self.told += let
                if listener(result.output[told - 1 : told] if let else None):
                    self.closed.set()
                    meta = {**result.meta, "finish_reason": "closed"}
                    return replace(result, output=result.output[:told], meta=meta)
            return result

        return Stream(answer)


@pytest.fixture
def slow(demo):
    engine = Slow(demo.engine)
    with Server(replace(demo, engine=engine)) as server:
        yield server, engine
        engine.go.release(1000)


def test_tokens_are_shown_as_they_come_and_a_stop_keeps_them(show, slow):
    server, engine = slow
    screen = show(server)
    screen.one("#question").send_keys(QUESTION, Keys.ENTER)
    for count in (1, 2, 3):
        engine.go.release()
        screen.until(lambda count=count: len(screen.tokens()) == count)
    assert screen.one("button.main").text == "Stop"
    screen.keys(Keys.ESCAPE)
    screen.until(lambda: server.queue._running.stopped)
    engine.go.release()
    screen.answered()
    assert len(screen.tokens()) == 4
    assert "closed" in screen.one(".figures").text
    assert server.queue.length == 0


def test_a_tab_that_closes_frees_the_model_and_others_queue(show, slow, browser):
    server, engine = slow
    screen = show(server)
    screen.one("#question").send_keys(QUESTION, Keys.ENTER)
    engine.go.release()
    screen.until(lambda: len(screen.tokens()) == 1)
    first = browser.current_window_handle
    tabs = []
    for place in range(9):
        browser.switch_to.new_window("tab")
        browser.get(server.address)
        Screen(browser).one("#question").send_keys(QUESTION, Keys.ENTER)
        before = f"Waits for {place + 1} other" if place else "Waits for one other"
        Screen(browser).until(lambda before=before: before in Screen(browser).one(".status").text)
        tabs.append(browser.current_window_handle)
    assert server.queue.length == 10
    browser.switch_to.window(first)
    written = server.queue._running
    browser.close()  # while its answer is being written
    browser.switch_to.window(tabs[0])
    Screen(browser).until(lambda: written.stopped)
    engine.go.release()
    assert engine.closed.wait(10)
    assert engine.told == 2
    engine.go.release(1000)
    for tab in tabs:
        browser.switch_to.window(tab)
        Screen(browser).answered()
        assert len(Screen(browser).tokens()) > 2
    for tab in tabs[1:]:
        browser.switch_to.window(tab)
        browser.close()
    browser.switch_to.window(tabs[0])
    assert server.queue.length == 0


def test_an_engine_that_lacks_things_is_greyed_with_the_reason(show):
    held = Held()
    held.engine.abilities.no_score = "This server sends no log-probabilities of candidates"
    with Server(held) as server:
        screen = show(server)
        screen.until(lambda: not screen.one('.kind input[value="yes_no"]').is_enabled())
        label = screen.one(".kind", "Yes or no")
        assert label.get_attribute("title") == held.engine.abilities.no_score
        assert screen.one('.kind input[value="answer"]').is_enabled()


# -- what a model says is text ------------------------------------------------------------------------

OWNING = (
    "<script>document.title='owned'</script>",
    " <img src=x onerror=\"document.title='owned'\">",
    " <svg onload=\"document.title='owned'\">",
    "</style><style>body{display:none}</style>",
    ' " onmouseover="document.title=\'owned\'" onfocus="document.title=\'owned\'" x="',
    "javascript:document.title='owned'",
    "\u202egnihtemos",
    "a" + "\u0301" * 1_000_000,
)


class Hostile:
    """A model that says nothing but what should not run."""

    def __init__(self, demo):
        self.meta, self.conversation = {"model": OWNING[1]}, demo.conversation
        self.engine = self
        self.abilities = None

    def check(self, *_):
        pass

    def generate(self, conversations, options) -> list[Result]:
        result = answer_of(*OWNING)
        prompt = make_table([(text, 0.5, [(text, 0.3)]) for text in OWNING])
        object.__setattr__(result, "prompt", prompt)
        return [replace(result, meta={OWNING[0]: OWNING[1], "finish_reason": OWNING[2]})]


def test_what_a_model_says_is_text_and_never_runs(show, browser, tmp_path, demo):
    wrong = tmp_path / 'x" onerror="document.title=\'owned\'".png'
    wrong.write_bytes(UNSURE.read_bytes())
    with Server(Hostile(demo)) as server:
        screen = show(server)
        screen.add(wrong)
        started = time.monotonic()
        screen.ask(OWNING[0])
        assert time.monotonic() - started < 30
        for element in screen.tokens():
            ActionChains(browser).move_to_element(element).click().perform()
        screen.one("summary", "Prompt").click()
        for css, text in (("summary", "Details"), ("button", "Python")):
            browser.execute_script("arguments[0].click()", screen.one(css, text))
        assert "onerror" in screen.one("pre").text
        assert browser.title == "demo · vlmprobe"
        assert not screen.all("svg, .turn script, .turn style, [onerror], [onmouseover], [onload]")
        shown = screen.one(".answer .tokens").text
        for text in OWNING[:6]:
            assert text.strip() in shown
        assert screen.one("#question").is_displayed()
        assert Path(wrong).name in screen.one("pre").text.replace("\\'", "'")
