"""Write docs/img/report.png, the screenshot in the README: the report on a bundled image, rendered in Chromium.

Needs the dev dependencies, chromium and chromium-driver.
"""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By

import vlmprobe
from vlmprobe.demo import sample_images

WIDTH, HEIGHT, SCALE = 900, 640, 2
CUT = {"x": 0, "y": 30, "width": WIDTH, "height": 455, "scale": 1}  # crop of the page, CSS pixels


def main() -> None:
    """Generate, open the report, focus the least confident token, and take the screenshot."""
    result = vlmprobe.load("demo").generate("Describe the picture.", image=unsure())
    options = webdriver.ChromeOptions()
    for flag in ("--headless", "--no-sandbox", "--hide-scrollbars", "--disable-background-networking"):
        options.add_argument(flag)
    options.add_argument(f"--window-size={WIDTH},{HEIGHT}")
    options.add_argument(f"--force-device-scale-factor={SCALE}")
    with tempfile.TemporaryDirectory() as folder, webdriver.Chrome(options=options) as browser:
        page = Path(folder) / "report.html"
        result.to_html(page)
        browser.get(page.as_uri())
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": SCALE, "mobile": False},
        )
        tokens = browser.find_elements(By.CSS_SELECTOR, "span.t")
        browser.execute_script("arguments[0].focus()", tokens[int(result.output.logprobs.argmin())])
        target = Path(__file__).resolve().parents[2] / "docs" / "img" / "report.png"
        target.parent.mkdir(exist_ok=True)
        screenshot = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": CUT})
        target.write_bytes(base64.b64decode(screenshot["data"]))


def unsure() -> Path:
    """The bundled image with a digit that is hard to read."""
    return next(path for path in sample_images() if path.stem.startswith("unsure"))


if __name__ == "__main__":
    main()
