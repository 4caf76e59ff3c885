"""The tables that runs against real engines write into a page."""

from __future__ import annotations

import pytest
from engine_tables import parity, write_checks

from vlmprobe.testing import CheckResult, Report

PAGE = """Before.

<!-- parity: A, written by make engine-test -->

| model, server | what | largest difference |
|---|---|---|
| M | old | 1.0e-06 |

<!-- end -->

<!-- checks, written by make engine-test -->
<!-- end -->

After.
"""


@pytest.fixture
def page(tmp_path, monkeypatch):
    path = tmp_path / "engines.md"
    path.write_text(PAGE, encoding="utf-8")
    monkeypatch.setenv("PARITY", str(path))
    return path


def report(**statuses: str) -> Report:
    return Report(
        tuple(
            CheckResult(name, f"statement of {name}", status, 0.1, reason="no rows" if status == "skipped" else "")
            for name, status in statuses.items()
        )
    )


def test_rows_that_were_not_measured_stay(page):
    with parity("A") as rows:
        rows["M", "new"] = 2.34e-6
        rows["M", "exact"] = 0.0
    text = page.read_text(encoding="utf-8")
    assert "| M | old | 1.0e-06 |\n| M | new | 2.3e-06 |\n| M | exact | 0.0e+00 |\n" in text
    with parity("A") as rows:
        rows["M", "old"] = 3e-6
    assert page.read_text(encoding="utf-8") == text.replace("| M | old | 1.0e-06 |", "| M | old | 3.0e-06 |")
    assert text.startswith("Before.")
    assert text.endswith("After.\n")


def test_a_column_for_each_engine(page):
    write_checks("A", report(E1="passed", E2="skipped"))
    write_checks("B", report(E1="skipped", E2="passed"))
    text = page.read_text(encoding="utf-8")
    assert "| check | A | B |\n|---|---|---|\n| E1: statement of E1 | passed | absent |\n" in text
    assert "| E2: statement of E2 | absent | passed |\n\n- A, E2: no rows\n- B, E1: no rows\n" in text
    write_checks("A", report(E1="passed", E2="passed"))
    text = page.read_text(encoding="utf-8")
    assert "| E2: statement of E2 | passed | passed |\n\n- B, E1: no rows\n" in text


def test_a_failed_check_is_written_as_such(page):
    write_checks("A", report(E1="failed"))
    assert "| E1: statement of E1 | failed |" in page.read_text(encoding="utf-8")


def test_without_a_page_nothing_is_written(monkeypatch):
    monkeypatch.delenv("PARITY", raising=False)
    write_checks("A", report(E1="passed"))
    with parity("A") as rows:
        rows["M", "new"] = 1.0


def test_a_page_without_the_block_is_an_error(page):
    with pytest.raises(ValueError, match="has no block <!-- parity: C"), parity("C") as rows:
        rows["M", "new"] = 1.0


def test_nothing_is_written_after_a_failure(page):
    def failing():
        with parity("A") as rows:
            rows["M", "new"] = 1.0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert page.read_text(encoding="utf-8") == PAGE
