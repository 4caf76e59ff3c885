"""Write constraints.txt: pin the newest libraries that pyproject.toml allows today as the tested set.

``python tools/write_constraints.py`` (``make lock``) resolves the package with every extra and every dependency group
in a fresh environment, without installing anything into it. Arguments are additional requirements, to hold a library
back: ``make lock ARGS='torch<2.15'``. The versions that the package itself declares as tested, in
``vlmprobe/_version.py``, are updated too. It needs nothing but Python.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "constraints.txt"
TOLD = ROOT / "vlmprobe" / "_version.py"
PYTHON = (3, 11)
# CUDA dependencies of torch on Linux. Each torch build pins their versions itself.
CUDA = re.compile(r"nvidia-|cuda-|triton$|pytorch-triton")
HEAD = f"""\
# The tested set: what `make demo`, `make test`, lint, types and CI install, so that a fresh clone is the environment
# that was tested, on any day. Written by `make lock`; not to be edited by hand.
# Resolved for Python {".".join(map(str, PYTHON))}, the oldest that is supported: later ones install the same.
# Names and versions only, so that any build of a version fits, for a CPU too. What torch brings for CUDA (nvidia-*,
# cuda-*, triton) is left out: it is for some platforms only, and there torch itself asks for the versions it needs.
# pip and setuptools are here since they install and build.
"""


def wanted(pyproject: Mapping[str, Any]) -> list[str]:
    """Arguments of ``pip install`` for everything in ``pyproject.toml``.

    The extra ``all``, which leaves out what cannot be in the tested set, and every group, the build backend, and pip,
    which is part of it.
    """
    groups = [each for name in pyproject["dependency-groups"] for each in ("--group", name)]
    return [".[all]", *groups, *pyproject["build-system"]["requires"], "pip"]


def pins(report: Mapping[str, Any], project: str) -> list[str]:
    """Lines ``name==version``, sorted, from pip's report of what it would install.

    Args:
        report: of ``pip install --report``.
        project: the distribution that the pins are for, which is excluded.
    """
    found = (each["metadata"] for each in report["install"])
    # A local version suffix (2.14.1+cpu) names a platform-specific build of that version.
    versions = {normalized(each["name"]): each["version"].partition("+")[0] for each in found}
    return [f"{name}=={versions[name]}" for name in sorted(versions) if name != project and not CUDA.match(name)]


def retold(source: str, lines: Iterable[str]) -> str:
    """The source of ``_version.py`` with the versions in ``TESTED`` replaced by the pinned ones.

    Raises:
        ValueError: if there is no ``TESTED``.
    """
    versions = dict(line.split("==") for line in lines)
    before, sign, rest = source.partition("TESTED = {")
    if not sign:
        raise ValueError(f"{TOLD} has no TESTED.")
    stated, sign, after = rest.partition("}")
    stated = re.sub(r'"([a-z-]+)": "[^"]*"', lambda found: f'"{found[1]}": "{versions[found[1]]}"', stated)
    return f"{before}TESTED = {{{stated}{sign}{after}"


def normalized(name: str) -> str:
    """The normalised name of a distribution, as package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve(arguments: Iterable[str]) -> dict[str, Any]:
    """Pip's report of what it would install into a fresh environment.

    Raises:
        subprocess.CalledProcessError: if pip fails; it has printed why.
    """
    with TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = Path(folder) / ("Scripts" if os.name == "nt" else "bin") / "python"
        report = Path(folder) / "report.json"
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--upgrade", "pip"], check=True)  # the bundled pip may lack dependency groups
        options = ["--dry-run", "--ignore-installed", "--report", str(report)]
        subprocess.run([*pip, *options, *arguments], cwd=ROOT, check=True)
        return json.loads(report.read_text(encoding="utf-8"))


def main(held: Sequence[str]) -> None:
    """Write both files.

    Args:
        held: additional requirements, to hold a library back.
    """
    if sys.version_info[:2] != PYTHON:
        asked = ".".join(map(str, PYTHON))
        sys.exit(f"constraints.txt is resolved with Python {asked}: make lock PYTHON=python{asked}")
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = pins(resolve([*wanted(pyproject), *held]), normalized(pyproject["project"]["name"]))
    told = retold(TOLD.read_text(encoding="utf-8"), lines)
    OUT.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    TOLD.write_text(told, encoding="utf-8")
    print(f"Written: {OUT}, {len(lines)} libraries. It is the tested set once `make test` has passed.")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
