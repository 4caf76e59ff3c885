"""``vlmprobe models``: which adapters are installed, and what they handle."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

from vlmprobe.cli import options, output
from vlmprobe.cli.terminal import console, guarded, one_line, working

if TYPE_CHECKING:
    from vlmprobe.adapter import Adapter, Capabilities

__all__ = ["models"]

Package = tuple["str | None", "str | None"]  # name and version
LIMITS = {  # capability -> what its absence means
    "batching": "no batches",
    "several_images": "one image",
    "text_only": "image needed",
    "prefix_reuse": "no shared prefix",
    "system": "no system message",
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

    from vlmprobe._version import DISTRIBUTION
    from vlmprobe.model_registry.registry import GROUP, adapters

    points = list(entry_points(group=GROUP))
    packages = _packages(points)
    ours = [point for point in points if packages[id(point.dist)][0] == DISTRIBUTION]
    modules = Counter(point.module for point in ours)
    origins = {point.name: packages[id(point.dist)] for point in [*reversed(points), *ours]}
    found = {point.name: _declared(point, modules[point.module] > 1, origins[point.name]) for point in ours}
    if len(found) < len(points):
        installed = adapters()
        modules = Counter(adapter.__module__ for adapter in installed.values())
        for name, adapter in installed.items():
            if name not in found:
                documented = _summary(adapter, modules[adapter.__module__] > 1)
                found[name] = _described(documented, origins[name], adapter.generic, adapter.capabilities)
    return [{"name": name, **found[name]} for name in sorted(found)]


def _packages(points: Iterable[EntryPoint]) -> dict[int, Package]:
    """Name and version of the packages of entry points, by identity; each reading of one parses its metadata."""
    packages = {id(point.dist): point.dist for point in points}
    return {place: (each.name, each.version) if each else (None, None) for place, each in packages.items()}


def _declared(point: EntryPoint, shares_module: bool, origin: Package) -> dict[str, Any]:
    from vlmprobe.model_registry import source

    place = (point.module, point.attr)
    documented = source.description(*place, of_class=shares_module)
    return _described(documented, origin, source.literal(*place, "generic"), source.capabilities(*place))


def _described(documented: str, origin: Package, generic: bool, capabilities: Capabilities) -> dict[str, Any]:
    return {
        "handles": one_line(documented.partition("\n\n")[0].replace("``", "")),
        "package": origin[0],
        "version": origin[1],
        "generic": generic,
        "capabilities": asdict(capabilities),
    }


def _summary(adapter: type[Adapter], shares_module: bool) -> str:
    """The docstring of the adapter's module, else of the class; the reverse if the module has several adapters."""
    documented = [sys.modules[adapter.__module__].__doc__, adapter.__doc__]
    if shares_module:
        documented.reverse()
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

    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    grid.add_column("adapter", no_wrap=True)
    grid.add_column("handles", overflow="fold", ratio=1)
    for each in found:
        handles = Text(one_line(each["handles"]))
        if limits := [meaning for name, meaning in LIMITS.items() if not each["capabilities"][name]]:
            handles.append(f"\nLimits: {', '.join(limits)}.", style="dim")
        if each["package"] != DISTRIBUTION:
            package = f"{each['package'] or 'an unknown package'} {each['version'] or ''}".strip()
            handles.append(f"\nFrom {one_line(package)}.", style="dim")
        grid.add_row(Text(one_line(each["name"])), handles)
    screen = console()
    screen.print(grid)
    screen.print(
        f"\nnative reads the {len(native)} image-text model types that the installed transformers knows "
        "(their names: vlmprobe models --json). An adapter is chosen by the checkpoint's config.json, or by --adapter."
    )
