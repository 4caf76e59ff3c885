"""axe-core, an accessibility checker, run in a page of a real browser; skipped where it is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"


def violations(browser: Any) -> list[str]:
    """What axe-core finds wrong with the page that is open, by rule and element."""
    if not AXE.is_file():
        pytest.skip("needs axe-core: npm install --no-save axe-core@4.14.1")
    # Through the debugger, which the page's policy against scripts of others does not concern.
    browser.execute_script(AXE.read_text(encoding="utf-8"))
    found = browser.execute_async_script(
        "const done = arguments[0]; axe.run(document, {resultTypes: ['violations']}).then(r => done(r.violations))"
    )
    return [
        f"{each['id']}: {node['target']} {node.get('failureSummary', '')}" for each in found for node in each["nodes"]
    ]
