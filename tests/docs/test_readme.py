"""The README tells the truth: its Python runs as written, its files exist, its printed result is what is printed."""

import contextlib
import io
import re
import runpy
from pathlib import Path

import pytest
from common import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
NUMBER = re.compile(r"-?\d+\.\d+")
PRINTED = re.findall(r"```text\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


def test_python_blocks_run_in_order_as_written(in_empty_folder):
    script = in_empty_folder / "readme.py"
    script.write_text("\n".join(PYTHON), encoding="utf-8")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        runpy.run_path(str(script))
    assert len(PYTHON) >= 4
    assert Path("outputs/report.html").is_file()
    told = "".join(PRINTED).splitlines()
    printed = [line.rstrip() for line in out.getvalue().splitlines()[: len(told)]]
    assert [NUMBER.sub("#", line) for line in printed] == [NUMBER.sub("#", line) for line in told]
    assert numbers("\n".join(printed)) == pytest.approx(numbers("\n".join(told)), rel=0.02)


def numbers(text):
    return [float(number) for number in NUMBER.findall(text)]


@pytest.mark.parametrize(
    "page", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.name
)
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing, f"{page.name} links to {missing}"
