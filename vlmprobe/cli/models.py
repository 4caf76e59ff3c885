"""``vlmprobe models``: which adapters are installed, and what they handle."""

from __future__ import annotations

import inspect
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vlmprobe.cli import options, output
from vlmprobe.cli.terminal import console, guarded, one_line, working

if TYPE_CHECKING:
    from vlmprobe.adapter import Adapter

__all__ = ["models"]

LIMITS = {  # capability -> what its absence means
    "batching": "one by one",
    "several_images": "one image",
    "text_only": "image needed",
    "prefix_reuse": "no shared prefix",
}


def models(as_json: options.Json = False, debug: options.Debug = False) -> None:
    """List the adapters: which checkpoints each handles, and the package that it comes from."""
    with guarded(debug):
        with working("Looking for adapters"):
            from vlmprobe.model_registry import registry

            found = [_described(name, adapter) for name, adapter in sorted(registry.adapters().items())]
            native = registry.known_model_types()
        if as_json:
            output.print_json({"adapters": found, "native_model_types": native})
            return
        _print(found, native)


def _described(name: str, adapter: type[Adapter]) -> dict[str, Any]:
    from importlib.metadata import entry_points

    from vlmprobe._version import DISTRIBUTION
    from vlmprobe.model_registry.registry import GROUP

    origins = [point.dist for point in entry_points(group=GROUP, name=name) if point.dist]
    origin = min(origins, key=lambda dist: dist.name != DISTRIBUTION, default=None)  # ours, if another has its name
    return {
        "name": name,
        "handles": _summary(adapter),
        "package": origin.name if origin else None,
        "version": origin.version if origin else None,
        "generic": adapter.generic,
        "capabilities": asdict(adapter.capabilities),
    }


def _summary(adapter: type[Adapter]) -> str:
    """The first line of the docstring of the adapter's module, else of the class."""
    for documented in (sys.modules[adapter.__module__], adapter):
        if text := inspect.cleandoc(documented.__doc__ or ""):
            return one_line(text.partition("\n\n")[0].replace("``", ""))
    return ""


def _print(found: list[dict[str, Any]], native: list[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    grid.add_column("adapter", no_wrap=True)
    grid.add_column("handles", overflow="fold", ratio=1)
    grid.add_column("limits", overflow="fold", max_width=16)
    grid.add_column("package", overflow="fold", max_width=20)
    for each in found:
        limits = [meaning for name, meaning in LIMITS.items() if not each["capabilities"][name]]
        package = f"{each['package']} {each['version']}" if each["package"] else "unknown"
        row = (each["name"], each["handles"], ", ".join(limits) or "none", package)
        grid.add_row(*(Text(one_line(cell)) for cell in row))
    screen = console()
    screen.print(grid)
    screen.print()
    screen.print(
        f"native reads the {len(native)} image-text model types that the installed transformers knows "
        "(their names: vlmprobe models --json)."
    )
