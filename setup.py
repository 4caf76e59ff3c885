"""Only what pyproject.toml cannot say: the readme of the distribution, with links that lead somewhere outside of it."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
TARGET = re.compile(r'(\]\(|\b(?:href|src|srcset)=")(?![a-z][a-z+.-]*:|#)([^)\s"]+)')
IMAGES = (".png", ".svg", ".jpg", ".gif")


def absolute(text: str, repository: str, version: str) -> str:
    """Markdown whose relative links and images lead to the tag of this version in the repository."""

    def lead(found: re.Match[str]) -> str:
        kind = "raw" if found[2].endswith(IMAGES) else "blob"  # blob is a page around an image, not the image
        return f"{found[1]}{repository}/{kind}/v{version}/{found[2]}"

    return "".join(part if CODE.fullmatch(part) else TARGET.sub(lead, part) for part in CODE.split(text))


def long_description() -> str:
    """README.md as the distribution shows it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = re.search(r'__version__ = "(.+)"', (ROOT / "vlmprobe" / "_version.py").read_text(encoding="utf-8"))
    return absolute((ROOT / "README.md").read_text(encoding="utf-8"), project["urls"]["Repository"], version[1])


if __name__ == "__main__":
    setup(long_description=long_description(), long_description_content_type="text/markdown")
