"""``vlmprobe new-adapter``: generates an installable plug-in package that passes the checks, to be filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmprobe.cli import options
from vlmprobe.cli.targets import reachable
from vlmprobe.cli.terminal import console, guarded, working, writing, wrong_usage
from vlmprobe.errors import AdapterError, UnknownModelError

__all__ = ["new_adapter"]

NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
OF_ORIGINALS = ("adapter.py", "modeling.py", "tiny_checkpoint.py")  # templates that original formats have their own of
MODEL_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # it is written into source code


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise typer.BadParameter(
            f"{value!r} must start with a lower-case letter and contain only those, digits, and single - or _ between "
            "them, such as my_model"
        )
    return value


def _model_type(value: str | None) -> str | None:
    if value is not None and not MODEL_TYPE.fullmatch(value):
        raise typer.BadParameter(f"{value!r} is not a model type: copy it from the checkpoint's config.json")
    return value


def _empty_folder(value: Path | None) -> Path | None:
    with reachable(value):
        if value is not None and (value.is_file() or (value.is_dir() and any(value.iterdir()))):
            raise typer.BadParameter(f"{value} already exists: name a new or an empty folder")
    return value


def new_adapter(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the adapter, such as my_model.", callback=_name)],
    model_type: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="model_type in config.json of the checkpoints; NAME by default.",
            callback=_model_type,
        ),
    ] = None,
    original: Annotated[
        bool,
        typer.Option(
            "--original",
            help="For a model whose code ships with its checkpoint: its own weights, prompt and pixels.",
        ),
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Output folder; ./vlmprobe-NAME by default.", callback=_empty_folder),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Write a small plug-in package for a family of models: adapter, entry point, test and README.

    As generated, it passes vlmprobe check on a tiny checkpoint of its own. docs/extend/add-a-model.md continues
    from there.
    """
    folder = folder or _empty_folder(Path(f"vlmprobe-{name.replace('_', '-')}"))
    assert folder is not None
    with guarded(debug):
        with working("Looking for adapters"), wrong_usage():
            values = _values(name.replace("-", "_"), model_type or name.replace("-", "_"), original)
        written = _write(folder, values)
        _print(folder, written)


def _values(name: str, model_type: str, original: bool) -> dict[str, Any]:
    """The variables of the templates.

    Raises:
        AdapterError: if the name is taken, another adapter has the model type, or there is nothing to test it on.
    """
    from vlmprobe.model_registry import registry
    from vlmprobe.testing import tiny

    if name in registry.adapter_names():
        raise AdapterError(
            f"An adapter named {name!r} already exists (vlmprobe models lists them): choose another name."
        )
    native = registry.is_native(model_type) and not original
    with suppress(UnknownModelError):
        found = registry.find({"model_type": model_type}, checkpoint=f"model_type {model_type!r}")
        if not found.generic:
            raise AdapterError(
                f"The adapter {found.name!r} ({found.__module__}) handles model_type {model_type!r} already. Improve "
                "that one, or say with --model-type which checkpoints the new one is for."
            )
    tiny_name = re.sub(r"[.-]", "_", model_type)
    if native and tiny_name not in tiny.names():
        reason = tiny.SKIPPED.get(tiny_name)
        raise AdapterError(
            f"transformers knows model_type {model_type!r}, but there is no tiny checkpoint of it to start from"
            f"{f' ({reason})' if reason else ''}. Leave out --model-type, and in the generated package change the "
            "model type, remove load() and modeling.py, and build a tiny checkpoint of your own."
        )
    return {
        "name": name,
        "dashed": name.replace("_", "-"),
        "title": "".join(part.capitalize() for part in name.split("_")),
        "model_type": model_type,
        "native": native,
        "original": original,
        "tiny": tiny_name,
    }


def _write(folder: Path, values: Mapping[str, Any]) -> list[Path]:
    """Render every template and write the package; nothing is written if one cannot be rendered."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vlmprobe.cli", "adapter_template"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    package = f"vlmprobe_{values['name']}"
    places = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        "__init__.py": f"{package}/__init__.py",
        "adapter.py": f"{package}/adapter.py",
        "modeling.py": f"{package}/modeling.py",
        "tiny_checkpoint.py": "tests/tiny_checkpoint.py",
        "test_adapter.py": "tests/test_adapter.py",
        "record_reference.py": "record_reference.py",
    }
    if values["native"]:
        del places["modeling.py"]
    own = OF_ORIGINALS if values["original"] else ()
    filled = {
        folder / place: environment.get_template(f"{'original_' * (name in own)}{name}.jinja").render(values)
        for name, place in places.items()
    }
    for file, text in filled.items():
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    return list(filled)


def _print(folder: Path, written: list[Path]) -> None:
    import shlex

    screen = console()
    screen.print("Written:", style="bold")
    for file in written:
        screen.print(f"  {file}", soft_wrap=True)
    quoted = shlex.quote(str(folder))
    screen.print("\nInstall it, and run every check on a tiny checkpoint:", style="bold")
    for command in (
        f"python -m pip install --editable {quoted}",
        f"python -m pytest {quoted}",
        f"python {shlex.quote(str(folder / 'tests' / 'tiny_checkpoint.py'))} tiny-checkpoint",
        "vlmprobe check tiny-checkpoint",
    ):
        screen.print(f"  {command}", soft_wrap=True)
