"""Draw the plot and write the tables of the page on paired comparisons: ``python tools/docs/draw_paired.py``.

It runs the page's own Python.
"""

from __future__ import annotations

import io
import os
import re
import runpy
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
from draw_confidence import DOCS, save, write
from rich.console import Console


def main() -> None:
    """Draw and write everything."""
    mpl.use("Agg")
    text = (DOCS / "use" / "paired.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        script = Path("page.py")
        script.write_text("\n".join(blocks), encoding="utf-8")
        known = runpy.run_path(str(script))
        os.chdir(DOCS)
    for part in ("found", "copy"):
        write("paired", part, ["```text", *printed(known[part]), "```"], script="draw_paired")
    save("paired", known["copy"].plot)


def printed(what: Any) -> list[str]:
    """The lines that a terminal shows."""
    console = Console(file=io.StringIO(), width=100, no_color=True)
    console.print(what)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


if __name__ == "__main__":
    main()
