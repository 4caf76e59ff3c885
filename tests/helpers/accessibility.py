"""axe-core, an accessibility checker, run in the page that a real browser shows; skipped where it is not installed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

PLACES = (
    Path(__file__).parents[2] / "node_modules",
    *map(Path, filter(None, os.environ.get("NODE_PATH", "").split(os.pathsep))),
    Path("/usr/local/lib/node_modules"),
    Path("/usr/lib/node_modules"),
)
AXE = next((found for each in PLACES if (found := each / "axe-core" / "axe.min.js").is_file()), None)
CHECK = """
const done = arguments[arguments.length - 1];
const told = (each) => each.nodes.map(node => [each.id, node.html.slice(0, 200), node.failureSummary]);
axe.run().then(found => done({
  passed: found.passes.map(each => each.id),
  wrong: found.violations.flatMap(told),
}));
"""


def violations(browser: Any) -> list[list[str]]:
    """What axe-core finds wrong with the page that is open: rule, element, and why."""
    if AXE is None:
        pytest.skip("needs axe-core: npm install --no-save axe-core@4.14.1")
    # The page forbids other scripts; a debugger may add one all the same.
    browser.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})
    browser.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text(encoding="utf-8")})
    found = browser.execute_async_script(CHECK)
    browser.execute_cdp_cmd("Page.setBypassCSP", {"enabled": False})
    assert "color-contrast" in found["passed"]  # it has looked
    wrong: list[list[str]] = found["wrong"]
    return wrong
