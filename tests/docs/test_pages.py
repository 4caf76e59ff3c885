"""The pages on candidates, ranking, heads and decoding: their Python runs as written, their pictures are there."""

from __future__ import annotations

import re
import runpy
import shutil

import pytest
from common import DOCS

from vlmprobe.demo import pictures

PAGES = ("candidates", "rank", "heads", "decoding")


@pytest.mark.parametrize("page", PAGES)
def test_python_of_the_page_runs_in_order_as_written(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    shutil.copy(pictures()[0], tmp_path / "scene.png")
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "use" / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    script = tmp_path / f"{page}.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    runpy.run_path(str(script))


@pytest.mark.parametrize("page", PAGES)
def test_figures_were_written_and_pictures_drawn(page):
    text = (DOCS / "use" / f"{page}.md").read_text(encoding="utf-8")
    written = re.findall(r"<!-- [\w -]+, written by tools/docs/draw_asking.py -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert written
    assert all(part.strip() for part in written)
    shown = re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert shown
    assert all((DOCS / "use" / name).is_file() for name in shown)
    assert all(alt.strip() for alt in re.findall(r'alt="([^"]*)"', text))
