"""Every page's Python runs as written: the first block alone, the others after it; figures and images are there."""

from __future__ import annotations

import re
import runpy
import shutil

import pytest
from common import DOCS

import vlmprobe
from vlmprobe.demo import checkpoint, sample_images

PAGES = ["../index", *sorted(path.stem for path in (DOCS / "use").glob("*.md"))]
DRAWN = ("ask", "candidates", "rank", "heads", "decoding")


def blocks_of(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_python_of_the_page_runs_as_pasted(page, tmp_path, monkeypatch):
    """In an empty folder, and the first block without anything before it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    blocks = blocks_of(DOCS / "use" / f"{page}.md")
    assert blocks
    known = {}
    for place, block in enumerate(blocks):
        script = tmp_path / f"{place}.py"
        script.write_text(block, encoding="utf-8")
        known = runpy.run_path(str(script), known)


def test_recipes_are_short():
    page = DOCS / "use" / "recipes.md"
    assert len(re.findall(r"^## ", page.read_text(encoding="utf-8"), re.MULTILINE)) == 19
    assert all(len([line for line in block.splitlines() if line.strip()]) <= 8 for block in blocks_of(page))


def test_first_block_on_serving_engines_runs_with_a_server(tmp_path):
    """With the address and the model of a replayed server in place of the page's."""
    import wire_engines as wire
    from wire_server import WireServer

    block = blocks_of(DOCS / "reference" / "engines.md")[0]
    local = vlmprobe.load("demo", dtype="float32", device="cpu")
    served = {**wire.facts("sglang", "facts"), "/generate": wire.sglang(wire.Model(local, "Describe the picture."))}
    with WireServer(served) as server:
        changed = block.replace("http://localhost:8000", server.url)
        changed = changed.replace("Qwen/Qwen2-VL-2B-Instruct", str(checkpoint()))
        assert changed.count("127.0.0.1") == changed.count(str(checkpoint())) == 1
        script = tmp_path / "page.py"
        script.write_text(changed, encoding="utf-8")
        known = runpy.run_path(str(script))
    assert known["scores"].best == "a red two"
    assert known["result"].text == local.generate("Describe the picture.", image=sample_images()[-1]).text


@pytest.mark.parametrize("page", DRAWN)
def test_figures_were_written_and_pictures_drawn(page):
    text = (DOCS / "use" / f"{page}.md").read_text(encoding="utf-8")
    written = re.findall(r"<!-- [\w -]+, written by tools/docs/draw_asking.py -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert written
    assert all(part.strip() for part in written)
    shown = re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert shown
    assert all((DOCS / "use" / name).is_file() for name in shown)
    assert all(alt.strip() for alt in re.findall(r'alt="([^"]*)"', text))


def test_scripts_find_the_parts_that_they_write(tmp_path):
    """Every part of a page that a script writes names that script, and is found by it."""
    shutil.copytree(DOCS / "use", tmp_path / "use")
    write = runpy.run_path(str(DOCS.parent / "tools" / "docs" / "draw_confidence.py"))["write"]
    write.__globals__["DOCS"] = tmp_path
    parts = [
        (path.stem, part, script)
        for path in sorted((tmp_path / "use").glob("*.md"))
        for part, script in re.findall(r"<!-- ([^,>]+), written by (\S+) -->", path.read_text(encoding="utf-8"))
    ]
    assert len(parts) > 5
    for page, part, script in parts:
        assert (DOCS.parent / script).is_file(), f"{page}: {script}"
        write(page, part, ["written anew"], script=script.removeprefix("tools/docs/").removesuffix(".py"))
        assert "written anew" in (tmp_path / "use" / f"{page}.md").read_text(encoding="utf-8")
