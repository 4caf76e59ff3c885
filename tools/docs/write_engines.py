"""Generate the table of engine abilities in engines.md: ``python tools/docs/write_engines.py``."""

from __future__ import annotations

import re
from pathlib import Path

from vlmprobe.engines.base import abilities
from vlmprobe.engines.local import LocalEngine
from vlmprobe.engines.providers.lmdeploy.in_process import LMDeployEngine
from vlmprobe.engines.providers.vllm.in_process import VLLMEngine
from vlmprobe.engines.serving.registry import engines

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "engines.md"
BLOCK = re.compile(r"(<!-- abilities, written by tools/docs/write_engines.py -->\n).*?(<!-- end -->)", re.DOTALL)


def written(text: str) -> str:
    """The page's text with the table regenerated from the engines."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{_table()}\n\n{block[2]}", text)


def _table() -> str:
    named = {
        "transformers, in this process": LocalEngine,
        "vLLM, in this process": VLLMEngine,
        "LMDeploy, in this process": LMDeployEngine,
        **{f"{engine.title}, served": engine for _, engine in sorted(engines().items())},
    }
    having = {name: abilities(engine) for name, engine in named.items()}
    lines = ["| | engines |", "|---|---|"]
    for ability in next(iter(having.values())):
        those = [name for name, has in having.items() if has[ability]]
        lines.append(f"| {ability} | {'; '.join(those)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
