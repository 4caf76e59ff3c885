"""docs/reference/other-ways.md says what benchmarks/other_ways.json holds; and how its numbers are reached."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest
from common import ROOT

DATA = ROOT / "benchmarks" / "other_ways.json"
PAGE = ROOT / "docs" / "reference" / "other-ways.md"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("write_other_ways", ROOT / "tools" / "docs" / "write_other_ways.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks its module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def record(**peers):
    return {
        "words": ["yes", "no"],
        "texts": ["a b"],
        "reference": {"answers": [-1.0, -2.0], "candidates": [-3]},
    } | peers


def held(**families):
    return {"when": "2026-01-01", "versions": {"vlmprobe": "1", "minicons": "not installed"}, "families": families}


def test_the_page_is_what_the_data_say(script):
    stored = json.loads(DATA.read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8") == script.page(stored), "run: python -m tools.docs.write_other_ways --page"


def test_the_data_have_every_family_and_our_numbers_are_those_of_the_reference(script):
    families = json.loads(DATA.read_text(encoding="utf-8"))["families"]
    assert tuple(families) == script.FAMILIES
    for name, found in families.items():
        for what in ("answers", "candidates"):
            assert script.difference(found, what, "vlmprobe") < script.CLOSE, (name, what)


def test_a_difference_is_the_greatest_of_a_row_and_bold_where_it_matters(script):
    apart = {"answers": [-1.5, -2.0], "candidates": [-3.0], "why": "a second begin token"}
    text = script.page(held(one=record(vlmprobe={"answers": [-1.0, -2.00001], "candidates": [-3]}, minicons=apart)))
    (answers, candidates) = (line for line in text.splitlines() if line.startswith("| one |"))
    assert answers == '| one | "yes" -1.0000, "no" -2.0000 | 1e-05 | **0.5** | - | minicons: a second begin token |'
    assert candidates == "| one | -3.0000 | 0 | 0 |  |", "no reason is given where the numbers agree"


def test_a_peer_that_failed_says_what_with_and_one_that_is_absent_has_no_numbers(script):
    text = script.page(held(one=record(minicons={"error": "ValueError: no | such"})))
    assert '| one | "yes" -1.0000, "no" -2.0000 | - | fails | - | minicons: ValueError: no \\| such |' in text
    assert "minicons not installed" in text


@pytest.mark.parametrize(
    ("ids", "reason"), [([7, 1, 2], ""), ([7, 7, 1, 2], "a second begin token"), ([7, 1, 3], "other ids of the prompt")]
)
def test_why_the_inputs_of_a_peer_are_others(script, ids, reason):
    torch = pytest.importorskip("torch")

    own = {"input_ids": torch.tensor([[7, 1, 2]]), "token_type_ids": torch.zeros(1, 3)}
    asked = SimpleNamespace(own=own, processor=SimpleNamespace(tokenizer=SimpleNamespace(bos_token_id=7)))
    made = {"input_ids": torch.tensor([ids]), "token_type_ids": None}
    assert script.why(asked, made) == reason
    del made["token_type_ids"]
    assert script.why(asked, made).endswith("without token_type_ids")


@pytest.mark.long
def test_our_numbers_are_those_of_an_independent_forward(script, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(script, "PEERS", ("vlmprobe",))
    found = script.measure(["llava"])["families"]["llava"]
    assert script.difference(found, "answers", "vlmprobe") < script.CLOSE
    assert script.difference(found, "candidates", "vlmprobe") < script.CLOSE
