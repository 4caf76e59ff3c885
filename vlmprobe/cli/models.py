"""``vlmprobe models``: which adapters are installed, and what they handle."""

from __future__ import annotations

import inspect
import sys
from dataclasses import asdict
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

from vlmprobe.cli import options, output
from vlmprobe.cli.terminal import console, guarded, one_line, working

if TYPE_CHECKING:
    from vlmprobe.adapter import Adapter, Capabilities

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
            found = _found()
            native = _native()
        if as_json:
            output.print_json({"adapters": found, "native_model_types": native})
            return
        _print(found, native)


def _found() -> list[dict[str, Any]]:
    """Every adapter: ours from their source; those of other packages are imported, which shows whether they work."""
    from importlib.metadata import entry_points

    from vlmprobe.model_registry.registry import GROUP, adapters
    from vlmprobe.plugins import is_ours

    points = sorted(entry_points(group=GROUP), key=lambda point: not is_ours(point))
    found = {point.name: _declared(point) for point in points if is_ours(point)}
    if len(found) < len(points):
        origins = {point.name: point for point in reversed(points)}
        found |= {
            name: _described(origins[name], _summary(adapter), adapter.generic, adapter.capabilities)
            for name, adapter in adapters().items()
            if name not in found
        }
    return [found[name] for name in sorted(found)]


def _declared(point: EntryPoint) -> dict[str, Any]:
    from vlmprobe.model_registry import source

    place = (point.module, point.attr)
    generic = source.literal(*place, "generic")
    return _described(point, source.description(*place), generic, source.capabilities(*place))


def _described(point: EntryPoint, documented: str, generic: bool, capabilities: Capabilities) -> dict[str, Any]:
    return {
        "name": point.name,
        "handles": one_line(documented.partition("\n\n")[0].replace("``", "")),
        "package": point.dist.name if point.dist else None,
        "version": point.dist.version if point.dist else None,
        "generic": generic,
        "capabilities": asdict(capabilities),
    }


def _summary(adapter: type[Adapter]) -> str:
    """The docstring of the adapter's module, else of the class."""
    documented = (sys.modules[adapter.__module__].__doc__, adapter.__doc__)
    return inspect.cleandoc(next((text for text in documented if text), ""))


def _native() -> list[str]:
    from vlmprobe.model_registry import registry, source

    try:
        return source.model_types()
    except (LookupError, ValueError, SyntaxError, OSError):  # of a transformers that writes it differently
        return registry.known_model_types()


def _print(found: list[dict[str, Any]], native: list[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    from vlmprobe._version import DISTRIBUTION

    rows: dict[str, list[str]] = {}
    for each in found:
        limits = [meaning for name, meaning in LIMITS.items() if not each["capabilities"][name]]
        if each["package"] != DISTRIBUTION:
            limits.append(f"from {each['package'] or 'an unknown package'} {each['version'] or ''}".strip())
        handles = f"{each['handles'].rstrip('.')} ({', '.join(limits)})." if limits else each["handles"]
        rows.setdefault(handles, []).append(each["name"])
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    grid.add_column("adapter", no_wrap=True)
    grid.add_column("handles", overflow="fold", ratio=1)
    for handles, names in rows.items():
        grid.add_row(Text("\n".join(one_line(name) for name in names)), Text(one_line(handles)))
    screen = console()
    screen.print(grid)
    screen.print()
    screen.print(
        f"native reads the {len(native)} image-text model types that the installed transformers knows "
        "(their names: vlmprobe models --json)."
    )
