"""What engines can: one protocol for each ability, read by errors, ``vlmprobe doctor`` and engines.md."""

from __future__ import annotations

import runpy

import pytest
from common import DOCS

from vlmprobe.engines.base import ABILITIES, abilities, require
from vlmprobe.engines.local import LocalEngine
from vlmprobe.engines.providers.ollama import Ollama
from vlmprobe.engines.providers.openai import OpenAI
from vlmprobe.engines.providers.vllm.server import VLLM
from vlmprobe.errors import CapabilityError

TOKENS, MANY, RANKS = "Token-by-token streaming", "Concurrent requests", "Relevance scores"


def test_abilities_of_a_class_are_those_of_its_engines(probe_of):
    engine = probe_of("llava").engine
    assert list(abilities(LocalEngine).values()) == [isinstance(engine, each) for each in ABILITIES]


@pytest.mark.parametrize(("engine", "has"), [(VLLM, [TOKENS, MANY, RANKS]), (OpenAI, [TOKENS, MANY]), (Ollama, [MANY])])
def test_abilities_of_servers(engine, has):
    names = [name for name, there in abilities(engine).items() if there]
    assert len(names) == len(has)
    assert all(name.startswith(start) for name, start in zip(names, has, strict=True))


@pytest.mark.parametrize("ability", ABILITIES)
def test_an_engine_without_an_ability_is_told_by_its_words(ability):
    class Bare:
        """An engine that has nothing but what all must."""

    with pytest.raises(CapabilityError, match=r"^This needs [a-z].*, which Bare does not provide: "):
        require(Bare(), ability)


def test_the_page_of_engines_lists_them():
    text = (DOCS / "reference" / "engines.md").read_text(encoding="utf-8")
    written = runpy.run_path(str(DOCS.parent / "tools" / "docs" / "write_engines.py"))["written"]
    assert written(text) == text, "run: python tools/docs/write_engines.py"
