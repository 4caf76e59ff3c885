"""Write docs/img/page.png and page-dark.png: the page of the embedded model after a branch, in Chromium.

Needs the dev dependencies, chromium and chromium-driver.
"""

from __future__ import annotations

import base64
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

WIDTH, HEIGHT, SCALE = 1040, 760, 1.5
COLOURS = 160  # of a picture, which makes it a third as large
COMMAND = (sys.executable, "-m", "vlmprobe", "page", "demo", "--no-browser", "--port", "0")


def main() -> None:
    """Ask about the image that is hard to read, branch at the digit, and take screenshots."""
    images = Path(__file__).resolve().parents[2] / "docs" / "img"
    options = webdriver.ChromeOptions()
    for flag in ("--headless", "--no-sandbox", "--hide-scrollbars", "--disable-background-networking"):
        options.add_argument(flag)
    page = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert page.stdout is not None
        with webdriver.Chrome(options=options) as browser:
            size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": SCALE, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            browser.get(page.stdout.readline().strip())
            use(browser)
            for name, scheme in (("page", "light"), ("page-dark", "dark")):
                media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
                browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
                path = images / f"{name}.png"
                path.write_bytes(base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", {})["data"]))
                with Image.open(path) as shown:
                    small = shown.convert("RGB").quantize(COLOURS)
                small.save(path, optimize=True)
    finally:
        page.send_signal(signal.SIGINT)
        page.wait()


def use(browser: Any) -> None:
    """What a person does until the picture is taken."""

    def found(css: str, text: str = "") -> Any:
        return WebDriverWait(browser, 120).until(
            lambda _: next((each for each in browser.find_elements(By.CSS_SELECTOR, css) if text in each.text), None)
        )

    found(".samples button[aria-label*=unsure]").click()
    found(".bar-of-panels button")
    found(".answer .t", "nine").click()
    found("button.choice", "seven").click()
    found(".branches li:nth-child(2) button[aria-current]")
    browser.execute_script("scrollTo(0, 0)")


if __name__ == "__main__":
    main()
