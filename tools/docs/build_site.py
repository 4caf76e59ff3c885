"""Build the documentation site: ``python tools/docs/build_site.py`` (``make docs``) writes ``build/site``.

The pages are those of the repository, which are read there too: Markdown without directives of Sphinx. So what only the
site needs is added to copies of them in ``build/site-source``: the tables of contents, after the headings of
``docs/index.md``; pictures by the theme's switch of light and dark; addresses of files that are no pages; and the API
reference, from the names that each public module lists in ``__all__``.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
SOURCE, OUT = ROOT / "build" / "site-source", ROOT / "build" / "site"
SITE = Path(__file__).with_name("site")
INDEX = "docs/index.md"
CHINESE = "中文"
# Modules whose public names the reference lists beside those of vlmprobe.analysis.
PUBLIC = (
    "vlmprobe",
    "vlmprobe.analysis",
    "vlmprobe.testing",
    "vlmprobe.testing.tiny",
    "vlmprobe.adapter",
    "vlmprobe.demo",
)

# The start page is docs/index.html, since links between pages are those of the repository.
START = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>vlmprobe</title>
<meta http-equiv="refresh" content="0; url=docs/index.html"></head>
<body><a href="docs/index.html">vlmprobe</a></body></html>
"""

CODE = re.compile(r"(^```.*?^```$|`[^`\n]*`)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(\]\(|\bhref=\")(?![a-z][a-z+.-]*:|#)([^)\s\"#]+)(#[^)\s\"]*)?")
PICTURE = re.compile(
    r'<picture>\s*<source media="[^"]*dark[^"]*" srcset="([^"]+)">\s*<img src="([^"]+)"([^>]*)>\s*</picture>'
)


def pages() -> list[str]:
    """Every page of the site that is in the repository, as a path from its root."""
    found = [ROOT / name for name in ("README.md", "README.zh.md", "CHANGELOG.md", "CONTRIBUTING.md")]
    found += [*sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "notebooks").glob("*.ipynb"))]
    return [path.relative_to(ROOT).as_posix() for path in found if path.exists()]


def chapters() -> dict[str, list[str]]:
    """Headings of ``docs/index.md``, each with the pages that it links to in order; then, by folder, all others.

    A page belongs to the first heading that names it, so a new page is on the site before the index names it.
    """
    left = [page for page in pages() if page != INDEX]
    found: dict[str, list[str]] = {}
    caption = ""
    for line in (ROOT / INDEX).read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            caption = line.removeprefix("## ")
        for _, target, _ in LINK.findall(line):
            page = os.path.normpath(f"docs/{target}").replace(os.sep, "/")
            if caption and page in left:
                left.remove(page)
                found.setdefault(caption, []).append(page)
    folders = {"docs/use": "More questions", "docs/zh": CHINESE, "notebooks": "Notebooks"}
    for page in left:
        folder = CHINESE if page.endswith(".zh.md") else folders.get(page.rpartition("/")[0], "Project")
        found.setdefault(folder, []).append(page)
    return found


def modules() -> list[str]:
    """The modules of the API reference: those of ``PUBLIC``, and each of ``vlmprobe.analysis`` with an ``__all__``."""
    found = [*PUBLIC]
    for path in sorted((ROOT / "vlmprobe" / "analysis").glob("*.py")):
        assigned = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.Assign)]
        if any(ast.unparse(node.targets[0]) == "__all__" for node in assigned):
            found.append(f"vlmprobe.analysis.{path.stem}")
    return found


def for_the_site(text: str, page: str, known: set[str], repository: str) -> str:
    """Markdown of a page with pictures and links as the site needs them; code is left alone."""

    def lead(found: re.Match[str]) -> str:
        before, target, anchor = found[1], found[2], found[3] or ""
        path = os.path.normpath(f"{os.path.dirname(page)}/{target}" if "/" in page else target).replace(os.sep, "/")
        if path in known:  # Sphinx resolves links of Markdown, but leaves HTML as it is
            return f"{before}{re.sub(r'[.](md|ipynb)$', '.html', target) if 'href' in before else target}{anchor}"
        if target.endswith((".png", ".svg")):
            return found[0]
        return f"{before}{repository}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}{anchor}"

    def picture(found: re.Match[str]) -> str:
        dark, light, rest = found.groups()
        return f'<img class="only-light" src="{light}"{rest}>\n<img class="only-dark" src="{dark}"{rest}>'

    parts = CODE.split(text)
    return "".join(part if CODE.fullmatch(part) else LINK.sub(lead, PICTURE.sub(picture, part)) for part in parts)


def toctree(caption: str, names: list[str]) -> str:
    """A hidden table of contents, which the theme shows at the side."""
    listed = "\n".join(f"/{re.sub(r'[.](md|ipynb)$', '', name)}" for name in names)
    return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```\n"


def lay_out() -> None:
    """Write ``build/site-source`` anew."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(SITE, SOURCE, ignore=shutil.ignore_patterns("*.css", "__pycache__"))
    (SOURCE / "_static").mkdir()
    shutil.copy(SITE / "site.css", SOURCE / "_static")
    for place in (SOURCE, SOURCE / "_extra"):  # for images of Markdown, and for those of HTML
        shutil.copytree(ROOT / "docs" / "img", place / "docs" / "img")
    (SOURCE / "_extra" / "index.html").write_text(START, encoding="utf-8")

    repository = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
    known = set(pages())
    for page in known:
        there = SOURCE / page
        there.parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / page).read_text(encoding="utf-8")
        if page.endswith(".ipynb"):
            notebook = json.loads(text)
            for cell in notebook["cells"]:
                if cell["cell_type"] == "markdown":
                    cell["source"] = for_the_site("".join(cell["source"]), page, known, repository)
            text = json.dumps(notebook)
        else:
            text = for_the_site(text, page, known, repository)
        if page == INDEX:
            text += "".join(toctree(caption, names) for caption, names in chapters().items())
            text += toctree("API", [f"api/{module}.rst" for module in modules()]).replace(".rst", "")
        there.write_text(text, encoding="utf-8")
    (SOURCE / "api").mkdir()
    for module in modules():
        body = f"{module}\n{'=' * len(module)}\n\n.. automodule:: {module}\n   :members:\n"
        (SOURCE / "api" / f"{module}.rst").write_text(body, encoding="utf-8")


class Seen(HTMLParser):
    """Names that can be linked to, links, and what a page loads when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        given = {name: value or "" for name, value in attrs}
        self.names |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(given.get("href", ""))
        elif given.get("src"):
            self.loads.append(given["src"])


def objections(out: Path) -> list[str]:
    """What is wrong with built pages: files that they load from elsewhere, links to nothing."""
    seen = {}
    for path in sorted(out.rglob("*.html")):
        seen[path] = Seen()
        seen[path].feed(path.read_text(encoding="utf-8"))
    found = []
    for path, page in seen.items():
        name = path.relative_to(out).as_posix()
        found += [f"{name} loads {each}" for each in page.loads if urlsplit(each).netloc]
        for link in (*page.links, *page.loads):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            anchor = unquote(parts.fragment)
            if not there.is_file() or (anchor and there in seen and anchor not in seen[there].names):
                found.append(f"{name} leads to {link}, which is not there")
    return found


def main() -> int:
    """Build the site; a warning of Sphinx is an error, and so is a link to nothing. Returns the exit status."""
    from sphinx.cmd.build import build_main

    lay_out()
    shutil.rmtree(OUT, ignore_errors=True)
    status = build_main(["-W", "--keep-going", "-q", "-b", "html", str(SOURCE), str(OUT), *sys.argv[1:]])
    found = objections(OUT)
    for each in found:
        print(each, file=sys.stderr)  # noqa: T201
    return status or bool(found)


if __name__ == "__main__":
    sys.exit(main())
