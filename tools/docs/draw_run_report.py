"""Write docs/img/run-report.png and run-report-dark.png: the report of a run over hasty handwriting, in Chromium.

Needs the dev dependencies, chromium and chromium-driver.
"""

from __future__ import annotations

import base64
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image
from selenium import webdriver

import vlmprobe
from vlmprobe.demo import sample_questions

WIDTH, HEIGHT, SCALE = 960, 960, 1.4
COUNT, HASTY = 840, 2.0
COLOURS = 128  # of a picture, which makes it a third as large


def main() -> None:
    """Two runs, a report of one against the other, and the top of its first page."""
    images = Path(__file__).resolve().parents[2] / "docs" / "img"
    with tempfile.TemporaryDirectory() as folder:
        page = report(Path(folder))
        for name, scheme in (("run-report", "light"), ("run-report-dark", "dark")):
            save(screenshot(page, scheme), images / f"{name}.png")


def save(png: bytes, path: Path) -> None:
    """Save a screenshot with few colours."""
    with Image.open(BytesIO(png)) as shown:
        shown.convert("RGB").quantize(COLOURS).save(path, optimize=True)


def report(folder: Path) -> Path:
    """The first page of a report of the demo model in bfloat16, against the same in float32."""
    rows = []
    for place, each in enumerate(sample_questions(COUNT, strength=HASTY)):
        image = folder / f"{place // 7}.png"
        if not image.exists():
            each["image"].save(image)
        about = next((word for word in ("digits", "colour", "left", "right") if word in each["question"]), "other")
        row = {"id": each["id"], "image": image.name, "question": each["question"], "about": about}
        rows.append(row | {"answer": each["gold"]})
    runs = {}
    for dtype in ("float32", "bfloat16"):
        out = folder / f"handwriting-{dtype}"
        vlmprobe.run(vlmprobe.load("demo", dtype=dtype), rows, out=out, root=folder, progress=False)
        runs[dtype] = vlmprobe.open_run(out)
    return runs["bfloat16"].report(folder / "report", against=runs["float32"])


def screenshot(page: Path, scheme: str, height: int = HEIGHT) -> bytes:
    """The top of a page in a colour scheme, as PNG; ``height`` in CSS pixels."""
    options = webdriver.ChromeOptions()
    for flag in ("--headless", "--no-sandbox", "--hide-scrollbars", "--disable-background-networking"):
        options.add_argument(flag)
    with webdriver.Chrome(options=options) as browser:
        size = {"width": WIDTH, "height": height, "deviceScaleFactor": SCALE, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.get(page.as_uri())
        return base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", {})["data"])


if __name__ == "__main__":
    main()
