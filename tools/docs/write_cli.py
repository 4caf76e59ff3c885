"""Generate the option tables of cli.md from the commands: ``python tools/docs/write_cli.py``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

from vlmprobe.cli import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "cli.md"
BLOCK = re.compile(r"(<!-- options of ([\w-]+), written by tools/docs/write_cli.py -->\n).*?(<!-- end -->)", re.DOTALL)


def written(text: str) -> str:
    """The page's text with every table regenerated from the commands."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return BLOCK.sub(lambda block: f"{block[1]}\n{_table(commands[block[2]])}\n\n{block[3]}", text)


def _table(command: Any) -> str:
    lines = ["| | | default |", "|---|---|---|"]
    for parameter in command.params:
        lines.append(f"| {_names(parameter)} | {_cell(parameter.help)} | {_default(parameter)} |")
    return "\n".join(lines)


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar}`"
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    return f"{names} `{parameter.metavar}`" if parameter.metavar else names


def _default(parameter: Any) -> str:
    value = parameter.default
    return "" if value is None or value is False or value == [] or parameter.required else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
