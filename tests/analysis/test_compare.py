"""The same requests on two probes, against transformers' own forwards and arithmetic written out."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import wire_engines
from PIL import Image
from reference import chat, columns, encode, extended, forward
from typer.testing import CliRunner
from wire_server import WireServer

import vlmprobe
from vlmprobe.analysis.cases import Case, case_of, read_cases
from vlmprobe.analysis.compare import Compared, Comparison, compare
from vlmprobe.analysis.token_alignment import Aligned, align, first_difference
from vlmprobe.cli import app
from vlmprobe.demo import checkpoint
from vlmprobe.errors import CapabilityError, MessageError, ResultError
from vlmprobe.results.table import TokenTable, joined

PICTURES = sorted((Path(vlmprobe.__file__).parent / "demo" / "pictures").glob("*.png"))
DESCRIBE = "Describe the picture."
CASES = [{"question": DESCRIBE, "image": str(path), "id": path.stem} for path in PICTURES]
SURE = [case for case in CASES if not case["id"].startswith("unsure")]  # no tie that rounding may turn


def demo(dtype: str = "float32", noise: float = 0.0) -> SimpleNamespace:
    """The demo model as transformers loads it, with a share of each weight's spread added to it, and its processor."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(checkpoint(), dtype=dtype).eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in model.parameters():
            if noise and each.numel() > 1:
                each.add_(noise * each.std() * torch.randn(each.shape, generator=random))
    return SimpleNamespace(name="internvl", model=model, processor=AutoProcessor.from_pretrained(checkpoint()))


@pytest.fixture(scope="module")
def a():
    return vlmprobe.load("demo", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def changed(a):
    """A copy, as transformers holds it, whose weights were disturbed until it answers some questions otherwise."""
    for noise in (0.2, 0.15, 0.1, 0.05, 0.25):
        own = demo(noise=noise)
        if 0 < compare(a, vlmprobe.wrap(own.model, own.processor), CASES, prompt=False).equal_answers < 1:
            return own
    raise AssertionError("no disturbance changes some of the answers and not all")


@pytest.fixture(scope="module")
def b(changed):
    return vlmprobe.wrap(changed.model, changed.processor)


@pytest.fixture(scope="module")
def found(a, b):
    return compare(a, b, CASES)


def own_logprobs(own: SimpleNamespace, path: Path, ids: list[int]) -> np.ndarray:
    """Log-probabilities of an answer under a forward without a cache over prompt and answer."""
    inputs = encode(own, chat(DESCRIBE, Image.open(path).convert("RGB")))
    if own.model.dtype != torch.float32:
        inputs = {
            key: value.to(own.model.dtype) if value.is_floating_point() else value for key, value in inputs.items()
        }
    start = inputs["input_ids"].shape[1]
    rows = forward(own, extended(own, inputs, ids))[start - 1 : start - 1 + len(ids)]
    return columns(rows, np.array(ids))["logprobs"]


class Blind:
    """An engine that only generates: it has no ``score_ids``, and its candidates are refused."""

    def __init__(self, engine, prompts: bool = True):
        self.engine, self.prompts = engine, prompts

    def check(self, conversations, options):
        if options.prompt and not self.prompts:
            raise CapabilityError("This server tells nothing of prompts.")
        self.engine.check(conversations, options)

    def batch_size(self, wanted, options):
        return self.engine.batch_size(wanted, options)

    def generate(self, conversations, options):
        return self.engine.generate(conversations, options)

    def score(self, conversation, candidates, options):
        raise CapabilityError("This server scores no candidates.")


# -- numbers -------------------------------------------------------------------------------------------


def test_both_columns_are_those_of_the_models_own_forwards(found, changed, a):
    own = demo()
    assert {each.how for each in found.requests} == {"same", "forced"}, "both ways should be seen here"
    for each, path in zip(found.requests, PICTURES, strict=True):
        ids = a.generate(DESCRIBE, path, do_sample=False).output.ids.tolist()
        np.testing.assert_allclose(each.rows.a, own_logprobs(own, path, ids), atol=1e-4)
        np.testing.assert_allclose(each.rows.b, own_logprobs(changed, path, ids), atol=1e-4)
    assert found.max_abs > 1e-2, "the copy says the same, so this compares nothing"
    assert found.compared == 1.0


def test_sums_are_those_of_the_rows(found):
    gaps = np.concatenate([each.rows.b.astype(float) - each.rows.a for each in found.requests])
    assert found.max_abs == pytest.approx(np.abs(gaps).max())
    assert found.mean_abs == pytest.approx(np.abs(gaps).mean())
    equal = [each.answers[0] == each.answers[1] for each in found.requests]
    assert 0 < found.equal_answers == np.mean(equal) < 1
    tops = [
        one == other for each in found.requests for one, other in zip(each.rows.top_a, each.rows.top_b, strict=True)
    ]
    assert found.top1_agreement == pytest.approx(np.mean(tops))
    assert found.top1_agreement < 1


def test_bfloat16_differs_by_its_rounding_and_no_more(a):
    half = vlmprobe.load("demo", dtype="bfloat16", device="cpu")
    found = compare(a, half, SURE)
    assert (found.a["dtype"], found.b["dtype"]) == ("float32", "bfloat16")
    assert found.same_prompts
    assert found.same_kind
    assert 1e-5 < found.max_abs < 0.1
    assert found.mean_abs < 0.01
    own = demo("bfloat16")
    for each, case in zip(found.requests, SURE, strict=True):
        path = Path(case["image"])
        ids = a.generate(DESCRIBE, path, do_sample=False).output.ids.tolist()
        np.testing.assert_allclose(each.rows.b, own_logprobs(own, path, ids), atol=0.1)


def test_a_model_and_itself_are_one(a):
    found = compare(a, a, CASES)
    assert found.max_abs == found.mean_abs == 0
    assert found.equal_answers == found.top1_agreement == found.compared == 1
    assert found.objections(0) == []
    assert len(found.prompt_differences) > 0
    assert not found.prompt_differences.any()


def test_candidates_are_compared_by_score(a, b):
    case = {"question": "Is there a two?", "image": str(PICTURES[0]), "candidates": ["yes", "no"]}
    found = compare(a, b, [case, CASES[0]])
    each = found.requests[0]
    assert each.how == "candidates"
    scores = [probe.score("Is there a two?", ["yes", "no"], PICTURES[0]) for probe in (a, b)]
    for column, score in zip((each.rows.a, each.rows.b), scores, strict=True):
        np.testing.assert_allclose(column, np.concatenate([table.logprobs for table in score.tables]), atol=1e-6)
    assert each.answers == (scores[0].best, scores[1].best)
    assert found.same_prompts is True  # of the request that was answered


def test_without_scoring_the_comparison_ends_where_answers_part(a, b, found):
    blind = vlmprobe.Probe(Blind(b.engine), b.meta)
    ended = compare(a, blind, CASES, alternatives=32)
    for each, forced in zip(ended.requests, found.requests, strict=True):
        if forced.how == "same":
            continue
        assert each.how == "prefix"
        assert each.diverged == forced.diverged
        there = slice(0, each.diverged + 1)  # where they part, both still follow the same tokens
        known = ~np.isnan(each.rows.b[there])
        np.testing.assert_allclose(each.rows.b[there][known], forced.rows.b[there][known], atol=1e-4)
        assert known[:-1].all()
        assert known[-1] or forced.rows.b[each.diverged] < np.log(1 / 11)  # not among the ten likeliest of b
        assert np.isnan(each.rows.b[each.diverged + 1 :]).all()
        assert each.rows.same_top[each.diverged] == 0
    assert ended.compared < 1


def test_prompts_are_left_out_where_an_engine_has_none(a, b):
    blind = vlmprobe.Probe(Blind(b.engine, prompts=False), b.meta)
    found = compare(a, blind, CASES[:1])
    assert len(found.prompt_differences) == 0


def test_another_template_is_an_objection(a):
    own = demo()
    own.processor.chat_template = own.processor.chat_template.replace("<|end|>", "<|end|><|end|>", 1)
    assert own.processor.chat_template != demo().processor.chat_template
    found = compare(a, vlmprobe.wrap(own.model, own.processor), CASES[:2])
    assert found.same_prompts is False
    assert "different token ids" in found.objections(100.0)[0]
    assert all(each.how in ("same", "prefix") for each in found.requests)


def test_requests_with_options_of_their_own(a):
    cases = [CASES[0], {**CASES[1], "options": {"max_new_tokens": 2}}, "Which digit is on the left?"]
    found = compare(a, a, cases, max_new_tokens=3)
    assert [len(each.rows.tokens) for each in found.requests][:2] == [3, 2]
    assert [each.id for each in found.requests] == [PICTURES[0].stem, PICTURES[1].stem, None]


# -- servers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["sglang", "lightllm", "llamacpp", "ollama"])
def test_a_server_of_the_same_model_is_that_model(a, engine):
    routes = {"sglang": "/generate", "lightllm": "/generate", "ollama": "/api/chat"}
    answer = getattr(wire_engines, engine)(wire_engines.Model(a, DESCRIBE))
    with WireServer({**wire_engines.facts(engine), routes.get(engine, "/v1/chat/completions"): answer}) as server:
        found = compare(a, vlmprobe.connect(server.url, processor=a), CASES[:3])
    assert found.objections(1e-3) == []
    assert found.equal_answers == 1
    assert found.compared > 0.9  # Ollama's wire has no ids, and with them goes nothing but the end token
    assert found.same_prompts is (True if engine in ("sglang", "lightllm") else None)
    assert (len(found.prompt_differences) > 0) is (engine in ("sglang", "lightllm"))
    assert np.isnan(found.top1_agreement) == (engine == "lightllm")  # it tells no alternatives


def test_a_server_of_another_model_scores_the_tokens_of_the_first(a, b, found):
    answer = wire_engines.sglang(wire_engines.Model(b, DESCRIBE))
    with WireServer({**wire_engines.facts("sglang"), "/generate": answer}) as server:
        served = compare(a, vlmprobe.connect(server.url, processor=a), CASES)
    assert [each.how for each in served.requests] == [each.how for each in found.requests]
    assert "forced" in [each.how for each in served.requests]
    for each, here in zip(served.requests, found.requests, strict=True):
        known = ~np.isnan(each.rows.b)
        assert known[:-1].all()  # the end token is no part of a text that is scored
        np.testing.assert_allclose(each.rows.b[known], here.rows.b[known], atol=1e-4)


# -- rows ----------------------------------------------------------------------------------------------


def table(ids: list[int] | None, tokens: list[str], logprobs: list[float], tops: list[list[tuple[int, str, float]]]):
    count = len(tokens)
    unknown = np.full(count, np.nan, np.float32)
    return TokenTable(
        ids=None if ids is None else np.array(ids),
        tokens=tokens,
        kinds=["special" if token.startswith("<") else "text" for token in tokens],
        positions=np.arange(count),
        offsets=joined(tokens),
        logprobs=np.array(logprobs, np.float32),
        entropy=unknown,
        ranks=np.zeros(count, np.int64),
        logsumexp=unknown,
        top_ids=np.array([[each[0] for each in row] for row in tops]).reshape(count, -1),
        top_logprobs=np.array([[each[2] for each in row] for row in tops], np.float32).reshape(count, -1),
        top_tokens=[[each[1] for each in row] for row in tops],
    )


ONE = partial(
    table,
    [5, 6, 7],
    ["a", "b", "c"],
    [-0.1, -0.2, -0.3],
    [[(5, "a", -0.1), (9, "z", -3)], [(6, "b", -0.2), (8, "y", -2)], [(7, "c", -0.3), (8, "y", -4)]],
)


def test_rows_by_hand():
    other = table(
        [5, 8, 7],
        ["a", "y", "c"],
        [-0.5, -0.6, -0.7],
        [[(9, "z", -0.4), (5, "a", -0.5)], [(8, "y", -0.6), (6, "b", -0.9)], [(7, "c", -0.7), (6, "b", -3)]],
    )
    rows = align(ONE(), other)
    assert first_difference(ONE(), other) == 1
    np.testing.assert_allclose(rows.b, np.array([-0.5, -0.9, np.nan]), rtol=1e-6)
    np.testing.assert_array_equal(rows.same_top, [0, 0, np.nan])
    assert rows.top_b == ["z", "y", None]


def test_rows_without_ids_go_by_text():
    other = table(None, ["a", "b"], [-0.5, -0.6], [[(-1, "a", -0.5), (-1, "z", -2)], [(-1, "b", -0.6), (-1, "y", -3)]])
    assert first_difference(ONE(), other) == 2
    rows = align(ONE(), other)
    np.testing.assert_allclose(rows.b, np.array([-0.5, -0.6, np.nan]), rtol=1e-6)
    np.testing.assert_array_equal(rows.same_top, [1, 1, np.nan])
    ended = table([5, 6, 2], ["a", "b", "<end>"], [-0.1, -0.2, -0.3], [[], [], []])
    assert first_difference(ended, other) is None  # the wire has no end token
    assert np.isnan(align(ended, other).same_top).all()


def test_what_is_not_known_enters_no_sum():
    rows = Aligned(
        ["a", "b"],
        np.array([-1, -2], np.float32),
        np.array([-1.5, np.nan], np.float32),
        ["a", None],
        ["a", None],
        np.array([1, np.nan], np.float32),
    )
    none = Aligned(
        ["a"], np.full(1, -1, np.float32), np.full(1, np.nan, np.float32), [None], [None], np.array([np.nan])
    )
    known = Compared("k", "?", ("ab", "ac"), "prefix", rows, 1, np.array([np.nan, 0.25]), True)
    empty = Compared("e", "?", ("a", "b"), "prefix", none, 0, np.zeros(0), None)
    found = Comparison((known, empty))
    assert (found.max_abs, found.mean_abs, found.top1_agreement) == (0.5, 0.5, 1.0)
    assert found.compared == pytest.approx(1 / 3)
    assert found.same_prompts is None
    assert found.prompt_differences.tolist() == [0.25]
    assert len(found.objections(0.1)) == 2
    assert found.objections(0.5) == []
    assert "no token" in Comparison((empty,)).objections(1)[0]
    assert np.isnan(Comparison((empty,)).max_abs)
    with pytest.raises(ResultError, match="nothing to draw"):
        Comparison((empty,)).plot()
    with pytest.raises(ResultError, match="tolerance"):
        found.objections(float("nan"))


def test_pandas_and_plot(found):
    pytest.importorskip("pandas")
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    frame = found.to_pandas()
    assert len(frame) == sum(len(each.rows.tokens) for each in found.requests)
    assert frame["difference"].abs().max() == pytest.approx(found.max_abs)
    ax = found.plot(tolerance=0.01)
    drawn = np.concatenate([each.get_offsets() for each in ax.collections])
    np.testing.assert_allclose(np.sort(drawn[:, 1]), np.sort(found.differences), atol=1e-12)


# -- requests ------------------------------------------------------------------------------------------


def test_requests_of_a_file(tmp_path):
    path = tmp_path / "requests.jsonl"
    lines = [
        {"id": 7, "question": "What?", "image": "a.png"},
        {"messages": [{"role": "user", "content": "Hi"}], "images": ["https://example.org/b.png", "/c.png"]},
        {"question": "Is it?", "candidates": ["yes", "no"]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    first, second, third = read_cases(path)
    assert first == Case("What?", [str(tmp_path / "a.png")], 7)
    assert second.image == ["https://example.org/b.png", "/c.png"]
    assert (third.candidates, third.image) == (("yes", "no"), None)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"question": ', "line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ('{"image": "a.png"}', "line 2 must have either"),
        ('{"question": "a", "pictures": []}', "line 2 has 'pictures'"),
        ('{"question": "a", "imag": "b"}', "Did you mean image"),
        ('{"question": "a", "candidates": "yes"}', "list of strings"),
        ('{"question": "a", "options": 3}', "'options' must be an object"),
        ('{"question": "a", "candidates": ["b"], "options": {"max_new_tokens": 3}}', "leave 'options' out"),
        ('{"question": "a", "image": "b", "images": ["c"]}', "one of them"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, words):
    path = tmp_path / "requests.jsonl"
    path.write_text('{"question": "fine"}\n' + line, encoding="utf-8")
    with pytest.raises(MessageError) as raised:
        list(read_cases(path))
    assert words in str(raised.value)


def test_no_requests_at_all(a, tmp_path):
    with pytest.raises(MessageError, match="no request"):
        compare(a, a, [])
    with pytest.raises(MessageError, match="request is an object"):
        case_of(3)
    with pytest.raises(MessageError, match="cannot be read"):
        list(read_cases(tmp_path / "none.jsonl"))


# -- the command ---------------------------------------------------------------------------------------


@pytest.fixture
def requests_file(tmp_path) -> str:
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in CASES[:3]), encoding="utf-8")
    return str(path)


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: object, code: int = 0):
        result = CliRunner().invoke(app, ["compare", *map(str, arguments)])
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return call


def test_command_says_whether_it_is_the_same_model(run, requests_file, tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    plot = tmp_path / "plots" / "differences.png"
    dtypes = ("--dtype-a", "float32", "--dtype-b", "bfloat16", "--device", "cpu")
    result = run("demo", "demo", requests_file, *dtypes, "--tolerance", 0.5, "--plot", plot)
    assert "the same model within 0.5 nats" in result.stdout
    assert "bfloat16" in result.stdout
    assert Image.open(plot).width > 400
    result = run("demo", "demo", requests_file, *dtypes, "--tolerance", 1e-6, "--json", code=1)
    told = json.loads(result.stdout)
    assert told["passed"] is False
    assert told["max_abs"] > 1e-6
    assert told["b"]["dtype"] == "bfloat16"
    first = told["requests"][0]
    gaps = [abs(b - a) for a, b in zip(first["logprobs_a"], first["logprobs_b"], strict=True)]
    assert max(gaps) == pytest.approx(first["max_abs"])
    assert any("differ by more" in each for each in told["objections"])


def test_command_without_a_tolerance_passes_no_judgement(run, requests_file):
    result = run("demo", "demo", requests_file, "--json", "--no-prompt", "--max-new-tokens", 3, "--device", "cpu")
    told = json.loads(result.stdout)
    assert (told["passed"], told["objections"], told["max_abs"]) == (None, None, 0.0)
    assert all(len(each["tokens"]) == 3 for each in told["requests"])


def test_command_on_a_server(run, a, requests_file):
    answer = wire_engines.sglang(wire_engines.Model(a, DESCRIBE))
    with WireServer({**wire_engines.facts("sglang"), "/generate": answer}) as server:
        told = run(
            "demo", server.url, requests_file, "--dtype-a", "float32", "--device", "cpu", "--tolerance", 1e-3, "--json"
        )
    document = json.loads(told.stdout)
    assert (document["passed"], document["b"]["engine"], document["same_prompts"]) == (True, "sglang", True)


def test_command_refuses_before_a_model_is_loaded(run, requests_file, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}", encoding="utf-8")
    assert "line 1 must have either" in run("demo", "demo", bad, code=2).stderr
    run("demo", "demo", tmp_path / "none.jsonl", code=2)
    run("demo", "demo", requests_file, "--plot", tmp_path / "plot.txt", code=2)
    run("demo", "demo", requests_file, "--engine-a", "vllm", code=2)
    run("http://127.0.0.1:9", "demo", requests_file, "--dtype-a", "float32", code=2)
