"""The report of a run in a real browser: the table reads its pieces, sorts, filters and pages; nothing hostile runs."""

from __future__ import annotations

import pytest
from accessibility import violations
from run_engine import oracle

import vlmprobe
from vlmprobe.runs import report as report_module

pytest.importorskip("selenium.webdriver", reason="needs selenium (in the dev dependencies)")
from selenium.webdriver import Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

OWNING = "</script><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
ROWS = 250


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of a report of 250 rows in three pieces, and the table of its run. Odd rows have the label red."""
    folder = tmp_path_factory.mktemp("report")
    rows = [
        {
            "id": f"<b>{place}</b>",
            "question": f"{OWNING} {place}?",
            "answer": "red" if place % 2 else "blue",
            "n": place % 3,
        }
        for place in range(ROWS)
    ]
    vlmprobe.run(oracle()[0], rows, out=folder / "run", progress=False)
    run = vlmprobe.open_run(folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_module, "PIECE", 100)
        run.report(folder / "report")
    return folder / "report", run.to_pandas()


def cells(browser, column):
    return [each.text for each in browser.find_elements(By.CSS_SELECTOR, f"#rows td:nth-child({column})")]


def told(browser, text):
    seen = browser.find_element(By.ID, "told")
    WebDriverWait(browser, 20).until(lambda _: seen.text == text, f"{text!r} is not told")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_the_table(browser, report, scheme, width):
    folder, table = report
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get((folder / "index.html").as_uri())
    told(browser, "1 to 100 of 250 rows")
    assert cells(browser, 2)[:2] == ["<b>0</b>", "<b>1</b>"]
    browser.find_element(By.CSS_SELECTOR, "[data-go=last]").click()
    told(browser, "201 to 250 of 250 rows")
    browser.find_element(By.XPATH, "//button[.='confidence']").send_keys(Keys.ENTER)
    told(browser, "1 to 100 of 250 rows")
    order = table.confidence.sort_values(kind="stable").index
    assert cells(browser, 1) == [str(place) for place in order[:100]]
    browser.find_element(By.ID, "low").send_keys("50")
    sure = table[table.confidence >= 0.5]
    assert 0 < len(sure) < ROWS
    told(browser, f"1 to {min(100, len(sure))} of {len(sure)} rows, out of 250")
    browser.find_element(By.ID, "low").send_keys(2 * Keys.BACKSPACE)
    browser.find_element(By.ID, "search").send_keys("249? red")
    told(browser, "1 to 1 of 1 rows, out of 250")
    browser.find_element(By.CSS_SELECTOR, "#kind option[value=failed]").click()
    told(browser, "No row fits, out of 250")
    page = "const at = document.documentElement; return [at.scrollWidth - at.clientWidth, document.title]"
    assert browser.execute_script(page) == [0, "Report of run"], "no wider than the screen"
    assert browser.get_log("browser") == []
    browser.get(next(folder.glob("row-*.html")).as_uri())
    assert browser.find_element(By.CSS_SELECTOR, ".question").text.startswith(OWNING[:20])
    assert browser.execute_script(page)[0] == 0
    assert browser.title.startswith("Row ")
    assert browser.get_log("browser") == []


def test_nothing_that_axe_core_finds_is_wrong(browser, report):
    folder, _ = report
    for name in ("index.html", next(folder.glob("row-*.html")).name):
        browser.get((folder / name).as_uri())
        browser.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
        assert violations(browser) == []
