"""What engines' numbers become: bounds, sentinels, whole rows, meanings; each against a distribution known here."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import entropy
from wire_server import WireServer, json_reply, refusal

import vlmprobe
from vlmprobe.engines.base import Options
from vlmprobe.engines.option_checks import check_value
from vlmprobe.engines.serving import Alternative, Decoding, Meaning, Row
from vlmprobe.engines.serving.answer_tables import answer_table
from vlmprobe.engines.serving.generation_options import BASIC, NEUTRAL
from vlmprobe.engines.serving.http import background_loop
from vlmprobe.engines.serving.rows import columns, entropy_at_least
from vlmprobe.engines.serving.value_kind import judge
from vlmprobe.errors import CapabilityError, EngineResponseError, GenerationOptionError, ResultError
from vlmprobe.probe.sample import PURE
from vlmprobe.results.files import load_result

RNG = np.random.default_rng(0)
RAW = Meaning("raw")
TAKES = frozenset({"max_new_tokens", "do_sample", "temperature", "top_p"})


def distribution(size=50, spread=3.0):
    return log_softmax(RNG.normal(0, spread, size))


def top(logprobs, k, offset=0.0):
    order = np.argsort(-logprobs)[:k]
    return tuple(Alternative(float(logprobs[each]) + offset, int(each)) for each in order)


@pytest.mark.parametrize("k", [1, 2, 5, 20, 50])
@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0, 12.0])
def test_the_bound_of_entropy_holds_and_is_tight_where_all_is_told(k, spread):
    for _ in range(50):
        logprobs = distribution(spread=spread)
        bound = entropy_at_least(np.sort(logprobs)[::-1][:k])
        truth = entropy(np.exp(logprobs))
        assert bound <= truth + 1e-9
        if k == 50:
            assert bound == pytest.approx(truth, abs=1e-9)
    if spread == 0:
        assert bound == pytest.approx(math.log(50))  # a uniform one is known from one value


def test_columns_of_the_likeliest_tokens():
    logprobs = distribution()
    order = np.argsort(-logprobs)
    rows = [Row(float(logprobs[each]), int(each), top=top(logprobs, 5)) for each in (order[0], order[3], order[9])]
    numbers = columns(rows, 5, RAW, "none", "here").numbers
    assert numbers["ranks"].tolist() == [0, 3, -1]
    assert numbers["logprobs"] == pytest.approx(logprobs[order[[0, 3, 9]]])
    assert numbers["top_ids"].tolist() == [order[:5].tolist()] * 3
    assert np.isnan(numbers["entropy"]).all()
    assert np.isnan(numbers["logsumexp"]).all()
    assert "logprobs_at_most" not in numbers
    assert (numbers["entropy_at_least"] <= entropy(np.exp(logprobs)) + 1e-6).all()


@pytest.mark.parametrize("logits", [False, True])
def test_columns_of_whole_rows_are_exact(logits):
    raw = RNG.normal(0, 4, 40)
    logprobs = log_softmax(raw)
    values = (raw if logits else logprobs).astype(np.float32)
    row = Row(float(values[7]), 7, full=values)
    numbers = columns([row], 3, Meaning("raw", logits=logits), "none", "here").numbers
    assert numbers["logprobs"][0] == pytest.approx(logprobs[7], abs=1e-5)
    assert numbers["entropy"][0] == pytest.approx(entropy(np.exp(logprobs)), abs=1e-5)
    assert numbers["ranks"][0] == (raw > raw[7]).sum()
    assert numbers["top_ids"][0].tolist() == np.argsort(-raw)[:3].tolist()
    assert numbers["top_logprobs"][0] == pytest.approx(np.sort(logprobs)[::-1][:3], abs=1e-5)
    if logits:
        assert numbers["logsumexp"][0] == pytest.approx(np.logaddexp.reduce(raw), abs=1e-5)
        assert numbers["logits"][0] == pytest.approx(raw, abs=1e-5)
    else:
        assert np.isnan(numbers["logsumexp"][0])
        assert "logits" not in numbers


def test_logits_without_their_row_only_bound_a_log_probability():
    raw = RNG.normal(0, 4, 40)
    logprobs = log_softmax(raw)
    for each in np.argsort(-raw)[[0, 2, 20]]:
        row = Row(float(raw[each]), int(each), top=top(raw, 5))
        numbers = columns([row], 5, Meaning("raw", logits=True), "none", "here").numbers
        assert np.isnan(numbers["logprobs"][0])
        assert np.isnan(numbers["top_logprobs"]).all()
        assert logprobs[each] <= numbers["logprobs_at_most"][0] + 1e-6
        assert "entropy_at_least" not in numbers


@pytest.mark.parametrize("sentinel", [-9999.0, -3.4028234663852886e38, -math.inf])
def test_a_sentinel_is_a_bound_and_never_a_number(sentinel):
    logprobs = distribution()
    row = Row(sentinel, 49, top=(*top(logprobs, 3), Alternative(sentinel, 48)))
    clamped = columns([row], 5, RAW, "none", "here").numbers
    assert np.isnan(clamped["logprobs"][0])
    assert clamped["logprobs_at_most"][0] == np.float32(sentinel)
    assert clamped["top_ids"].tolist() == [[*(each.id for each in top(logprobs, 3)), -1]]
    assert np.isnan(clamped["top_logprobs"][0, 3])
    listed = columns([row], 5, Meaning("raw", clamped=False), "none", "here").numbers
    assert listed["logprobs_at_most"][0] == pytest.approx(top(logprobs, 3)[-1].value)


def test_no_mean_counts_a_sentinel():
    logprobs = distribution()
    rows = [Row(-1.0, 1, top=top(logprobs, 2)), Row(-9999.0, 2, top=top(logprobs, 2))]
    table = answer_table(rows, 0, 2, RAW, "none", None, "here")
    assert math.isnan(table.perplexity), "without the bounded token it would be too low"
    assert math.isnan(table.logprob)
    assert (table[:1].logprob, table[:1].perplexity) == (-1.0, pytest.approx(math.e))
    result = vlmprobe.Result("x", None, table, None, {})
    assert math.isnan(result.confidence)


@pytest.mark.parametrize(("kind", "processing"), [("tempered", "tempered"), ("filtered", "filtered")])
def test_processed_numbers_are_scores(kind, processing):
    logprobs = distribution()
    row = Row(float(logprobs[3]), 3, top=top(logprobs, 4))
    numbers = columns([row], 4, Meaning(kind), processing, "here").numbers
    assert np.isnan(numbers["logprobs"][0])
    assert numbers["scores"][0] == pytest.approx(logprobs[3])
    assert numbers["top_logprobs"].shape == (1, 0)
    plain = columns([row], 4, Meaning(kind), "none", "here").numbers  # nothing was processed: they are raw
    assert plain["logprobs"][0] == pytest.approx(logprobs[3])


def test_a_probability_above_one_is_an_error():
    with pytest.raises(EngineResponseError, match="above 0"):
        columns([Row(1.5, 0)], 1, RAW, "none", "here")
    assert columns([Row(1e-5, 0)], 1, RAW, "none", "here").numbers["logprobs"][0] == 0  # rounding


@pytest.mark.parametrize(
    ("mode", "meaning"),
    [
        ("raw_logprobs", Meaning("raw")),
        ("raw_logits", Meaning("raw", logits=True)),
        ("processed_logprobs", Meaning("filtered")),
        ("processed_logits", Meaning("filtered", logits=True)),
        ("tempered", Meaning("tempered")),
    ],
)
@pytest.mark.parametrize("shift", [-40.0, 0.0, 15.0])
@pytest.mark.parametrize("seed", range(2))
def test_modes_are_told_apart(mode, meaning, shift, seed):
    raw = np.random.default_rng(seed).normal(0, 3, 5_000) + shift

    def said(temperature, filtered):
        values = raw / (1 if mode.startswith("raw") else temperature)
        if filtered and mode.startswith("processed"):
            values = np.where(values == values.max(), values, -np.inf)
        values = values if mode.endswith("logits") else log_softmax(values)
        return np.sort(np.maximum(values, -9999.0))[::-1][:20].tolist()

    assert judge(said(1, False), said(2, False), said(1, True)) == meaning
    assert meaning.mode in (mode, "processed_logprobs")


def test_what_cannot_be_told_is_unknown():
    assert judge([], [], []).kind == "unknown"
    assert judge([-1.0, -1.001], [-1.0, -1.001], [-1.0]).kind == "unknown"


def test_options_are_those_of_transformers():
    read = Decoding.read({"max_new_tokens": 5, "do_sample": True, "temperature": 0.5, "num_beams": 1}, TAKES, "X")
    assert read == Decoding(5, True, 0.5)
    assert read.processing == "tempered"
    assert Decoding.read({"max_new_tokens": 5, "temperature": 0.5}, TAKES, "X") == read
    assert Decoding.read({"max_new_tokens": 5, "temperature": 0}, TAKES, "X") == Decoding(5)
    with pytest.raises(GenerationOptionError, match="contradicts"):
        Decoding.read({"do_sample": False, "temperature": 0.5}, TAKES, "X")
    assert Decoding.read({"stop_strings": "."}, {"stop_strings"}, "X").stop_strings == (".",)
    assert Decoding(do_sample=True, top_p=0.9).processing == "filtered"
    assert Decoding(temperature=0.5).processing == "none"  # a greedy answer has no temperature
    assert Decoding(repetition_penalty=1.1).processing == "tempered"
    with pytest.raises(CapabilityError, match="does not take top_k"):
        Decoding.read({"top_k": 5}, TAKES, "X")
    with pytest.raises(GenerationOptionError, match="Did you mean temperature"):
        Decoding.read({"temprature": 1.0}, TAKES, "X")
    with pytest.raises(GenerationOptionError, match="at least 1"):
        check_value("max_new_tokens", 0)


def test_options_that_change_nothing_are_left_out():
    """Pure sampling names them, and every served engine refused it."""
    assert Decoding.read({**PURE, "do_sample": True, "max_new_tokens": 4}, BASIC, "X") == Decoding(4, True)
    assert Decoding.read(NEUTRAL, BASIC, "X") == Decoding()
    for name, value in {"typical_p": 0.5, "no_repeat_ngram_size": 2, "min_length": 3, "use_cache": False}.items():
        with pytest.raises(GenerationOptionError, match=f"have no generation option '{name}'"):
            Decoding.read({name: value}, BASIC, "X")
    with pytest.raises(GenerationOptionError, match="use_cache must be True or False"):
        Decoding.read({"use_cache": 1}, BASIC, "X")


# -- a server without ids --------------------------------------------------------------------------


def chat(request):
    words = [(" red", -0.2), (" blue", -2.0), (" green", -4.0)][: request.json["top_logprobs"]]
    content = [
        {"token": " red", "logprob": -0.2, "top_logprobs": [{"token": t, "logprob": p} for t, p in words]},
        {"token": "!", "logprob": -9999.0, "top_logprobs": [{"token": t, "logprob": p} for t, p in words]},
    ][: request.json["max_tokens"]]
    return json_reply(
        {"choices": [{"message": {"content": " red!"}, "finish_reason": "length", "logprobs": {"content": content}}]}
    )


@pytest.fixture
def plain():
    with WireServer({"/v1/models": {"data": [{"id": "m"}]}, "/v1/chat/completions": chat}) as server:
        yield server


def test_without_ids_there_are_none(plain, tmp_path):
    probe = vlmprobe.connect(plain.url)
    assert probe.meta["engine"] == "openai"
    result = probe.generate("What colour?", max_new_tokens=2)
    assert result.output.ids is None
    assert result.input_ids is None
    assert result.prompt is None
    assert "no prompt log-probabilities" in result.meta["absent"]["prompt"]
    assert result.output.top_ids.tolist() == [[-1] * 3] * 2
    assert result.output.top_tokens[0] == [" red", " blue", " green"]
    assert result.output.ranks.tolist() == [0, -1]
    assert np.isnan(result.output.logprobs).tolist() == [False, True]
    assert result.output.logprobs_at_most.tolist()[1] == -4.0  # OpenAI's floor: not among those listed
    assert result.text == " red!"
    again = load_result(result.save(tmp_path / "r.safetensors"))
    assert again.output.ids is None
    assert again.input_ids is None
    assert again.output.tokens == result.output.tokens
    assert "id" not in result.output.to_pandas().columns
    assert "red" in result.to_html()
    result.show()


def test_a_server_samples_from_its_own_distribution(plain):
    samples = vlmprobe.connect(plain.url, value_kind="raw").sample("What colour?", n=2, seed=5, max_new_tokens=1)
    assert samples.texts == [" red!"] * 2
    assert samples.logprobs.tolist() == pytest.approx([-0.2] * 2)
    assert samples.pure
    sent = [request.json for request in plain.of("/v1/chat/completions")]
    assert [each["seed"] for each in sent] == [5, 6]
    assert {(each["temperature"], each["top_p"]) for each in sent} == {(1.0, 1.0)}
    assert not any(set(each) & {"typical_p", "no_repeat_ngram_size"} for each in sent)


def test_what_the_protocol_lacks_is_said_first(plain):
    probe = vlmprobe.connect(plain.url)
    for asked, said in (({"prompt": True}, "no prompt side"), ({"alternatives": 21}, "at most 20")):
        with pytest.raises(CapabilityError, match=said):
            probe.generate("Hi", **asked)
    assert plain.of("/v1/chat/completions") == []
    with pytest.raises(CapabilityError, match=r"several tokens cannot be had: .* vLLM"):
        probe.score("Hi", ["a", "b"])


def test_a_failure_that_nobody_waited_for_is_not_told_to_the_next_call():
    broken = [True]

    def starting(request):
        return json_reply({"error": "still starting"}, 500, wait_s=0.3) if broken[0] else chat(request)

    with WireServer({"/v1/models": {"data": [{"id": "m"}]}, "/v1/chat/completions": starting}) as server:
        probe = vlmprobe.connect(server.url)
        work = background_loop.start(probe.engine.known())
        while not server.in_flight:
            time.sleep(0.01)
        background_loop.settle([work])
        while not probe.engine._finding["meaning"].done():
            time.sleep(0.01)
        broken[0] = False
        assert probe.generate("Hi", max_new_tokens=1).output.tokens == [" red"]


def test_a_known_kind_spares_the_probing(plain):
    probe = vlmprobe.connect(plain.url, value_kind="raw")
    assert probe.generate("Hi", max_new_tokens=1).meta["value_kind"] == "raw"
    assert len(plain.of("/v1/chat/completions")) == 1


def test_probing_happens_once_for_many_requests(plain):
    probe = vlmprobe.connect(plain.url)
    assert len(list(probe.generate_many(["Hi"] * 20, max_new_tokens=1))) == 20
    assert len(plain.of("/v1/chat/completions")) == 23


def test_a_refusal_of_the_probe_requests_leaves_the_kind_unknown():
    def picky(request):
        return refusal(400, "top_p must be 1") if request.json["top_p"] != 1 else chat(request)

    with WireServer({"/v1/models": {"data": [{"id": "m"}]}, "/v1/chat/completions": picky}) as server:
        result = vlmprobe.connect(server.url).generate("Hi", max_new_tokens=1)
    assert result.meta["value_kind"] == "unknown"
    assert result.output.logprobs[0] == pytest.approx(-0.2)


def test_an_engine_behind_a_server_only(checkpoint):
    with pytest.raises(CapabilityError, match="start one"):
        vlmprobe.load(checkpoint("llava"), engine="openai")
    with pytest.raises(GenerationOptionError, match="Did you mean vllm"):
        vlmprobe.load(checkpoint("llava"), engine="vlm")


def test_options_of_engines_default_to_what_is_demanded():
    assert Options().demanded == {"prompt", "alternatives"}


def test_a_table_that_lost_its_ids_is_no_result(plain, tmp_path):
    import json

    saved = vlmprobe.connect(plain.url).generate("Hi", max_new_tokens=1).save(tmp_path / "r")
    document = json.loads((saved / "result.json").read_text())
    del document["output"]["ids"]
    (saved / "result.json").write_text(json.dumps(document))
    with pytest.raises(ResultError):
        load_result(saved)
