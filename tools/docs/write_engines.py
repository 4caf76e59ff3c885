"""Generate the tables of methods and of abilities by engine in engines.md: ``python tools/docs/write_engines.py``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmprobe.engines.base import (
    GivesPromptIds,
    Ranks,
    ReadsLayers,
    ReadsSecondPrompt,
    RemembersImages,
    ScoresIds,
    Streams,
    abilities,
    has,
)
from vlmprobe.engines.constraint import Kind as ConstraintKind
from vlmprobe.engines.local import LocalEngine
from vlmprobe.engines.providers.lmdeploy.in_process import LMDeployEngine
from vlmprobe.engines.providers.vllm.in_process import VLLMEngine
from vlmprobe.engines.serving.answer import Abilities
from vlmprobe.engines.serving.registry import engines

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "engines.md"
BLOCK = re.compile(
    r"(<!-- (methods|abilities), written by tools/docs/write_engines.py -->\n).*?(<!-- end -->)", re.DOTALL
)


def _declared(engine: Any) -> Abilities:
    """What an engine says before it has seen a server or its options."""
    return getattr(engine, "abilities", Abilities())


def _prompts(engine: Any) -> bool:
    return engine is LocalEngine or not _declared(engine).no_prompt


def _scores(engine: Any) -> bool:
    return engine is LocalEngine or not _declared(engine).no_score


def _scores_any_text(engine: Any) -> bool:
    return _scores(engine) and not _declared(engine).one_token


def _constrains(engine: Any, kind: ConstraintKind) -> bool:
    return engine is LocalEngine or kind in _declared(engine).constraints


def _local(engine: Any) -> bool:
    return engine is LocalEngine


METHODS: dict[str, Callable[[Any], bool]] = {  # as they stand in the table: what an engine must have
    "`generate`, `generate_many`, `sample`; uncertainty, calibration, gating, detection, export": lambda engine: True,
    "columns of the prompt, `result.prompt`": _prompts,
    "`score`, `yes_no`; `compare` with candidates": _scores_any_text,
    "`score`, `yes_no` of one token each, from the tokens that the engine lists at one position": lambda engine: (
        _scores(engine) and not _scores_any_text(engine)
    ),
    "`schema=`": lambda engine: _constrains(engine, "schema"),
    "`grammar=`": lambda engine: _constrains(engine, "grammar"),
    "`rank`": lambda engine: _scores(engine) or has(engine, Ranks),
    "`stream`": lambda engine: has(engine, Streams),
    '`keep="hidden"`, `heads`, `logits_processor=`, `prefix_allowed_tokens_fn=`': _local,
    "`session`": lambda engine: has(engine, RemembersImages),
    "`branch`": lambda engine: has(engine, GivesPromptIds),
    "`contrast`": lambda engine: has(engine, ScoresIds),
    "`lens`": lambda engine: has(engine, ReadsLayers),
    "`ImageContrast` decoding": lambda engine: has(engine, ReadsSecondPrompt),
}


def written(text: str) -> str:
    """The page's text with the tables regenerated from the engines."""
    tables = {"methods": _methods, "abilities": _abilities}
    return BLOCK.sub(lambda block: f"{block[1]}\n{tables[block[2]]()}\n\n{block[3]}", text)


def _named() -> dict[str, Any]:
    return {
        "transformers, in this process": LocalEngine,
        "vLLM, in this process": VLLMEngine,
        "LMDeploy, in this process": LMDeployEngine,
        **{f"{engine.title}, served": engine for _, engine in sorted(engines().items())},
    }


def _methods() -> str:
    lines = ["| | engines |", "|---|---|"]
    for method, works in METHODS.items():
        those = [name for name, engine in _named().items() if works(engine)]
        lines.append(f"| {method} | {'all' if len(those) == len(_named()) else '; '.join(those)} |")
    return "\n".join(lines)


def _abilities() -> str:
    having = {name: abilities(engine) for name, engine in _named().items()}
    lines = ["| | engines |", "|---|---|"]
    for ability in next(iter(having.values())):
        those = [name for name, has_it in having.items() if has_it[ability]]
        lines.append(f"| {ability} | {'; '.join(those)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
