"""A real SGLang on the CPU, without its kernels, against the same model run here. Run by ``make engine-test`` only."""

from __future__ import annotations

import time

import httpx
import numpy as np
import pytest
import torch
from engine_record import CANDIDATES, QUESTION, SINGLE, picture
from engine_tables import parity, write_checks
from sglang_server import missing, serving

import vlmprobe
from vlmprobe.engines.serving.health import examine
from vlmprobe.engines.serving.http import background_loop
from vlmprobe.errors import CapabilityError, EngineError, VlmprobeWarning
from vlmprobe.inputs.messages import Conversation
from vlmprobe.testing import check_engine
from vlmprobe.testing.subject import Subject
from vlmprobe.testing.tiny import build

pytestmark = pytest.mark.engine
TOLERANCE = 2e-5  # nats
LIKELIEST = 4 * TOLERANCE  # of unlikely tokens, which are farther off
MODEL = "Qwen2.5-VL"
GREEDY = {"max_new_tokens": 8, "do_sample": False}
PICTURES = {
    f"{MODEL}, text only": None,
    MODEL: picture(),
    f"{MODEL}, two pictures": [picture(), picture().rotate(180)],
}


@pytest.fixture(scope="session")
def figures():
    with parity("SGLang") as rows:
        yield rows


@pytest.fixture(scope="module", autouse=True)
def installed():
    if reason := missing():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def folder(installed, tmp_path_factory):
    return build("qwen2_5_vl", tmp_path_factory.mktemp("engine") / "qwen2_5_vl")


@pytest.fixture(scope="module")
def local(folder):
    return vlmprobe.load(folder, check=False, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def url(folder, tmp_path_factory):
    with serving(folder, log=tmp_path_factory.mktemp("log") / "sglang.log") as url:
        yield url


@pytest.fixture(scope="module")
def served(url, folder):
    return vlmprobe.connect(url, processor=folder)


def difference(one, other, name: str) -> float:
    a, b = getattr(one, name), getattr(other, name)
    assert np.array_equal(np.isnan(a), np.isnan(b)), name
    return float(np.nanmax(np.abs(a - b)))


def require_same(here, there, rows, label: str) -> None:
    """Ids, texts and every number of an answer and of its prompt."""
    assert here.input_ids.tolist() == there.input_ids.tolist()
    assert here.output.ids.tolist() == there.output.ids.tolist()
    assert here.output.tokens == there.output.tokens
    assert here.text.rstrip("\ufffd") == there.meta.get("text_of_ids", there.text).rstrip("\ufffd")
    assert here.finish_reason == there.finish_reason
    assert here.prompt.image_spans == there.prompt.image_spans
    assert here.prompt.tokens == there.prompt.tokens
    for what, one, other in (("prompt rows", here.prompt, there.prompt), ("generated", here.output, there.output)):
        rows[label, what] = difference(one, other, "logprobs")
        rows[label, f"{what}, likeliest"] = difference(one, other, "top_logprobs")
        assert rows[label, what] < TOLERANCE
        assert rows[label, f"{what}, likeliest"] < LIKELIEST


def require_same_stream(probe, whole, rows, label: str, image, **asked) -> None:
    """Row by row what ``generate`` gave."""
    with probe.stream(QUESTION, image=image, **asked) as stream:
        pieces = list(stream)
    assert [piece.tokens[0] for piece in pieces] == whole.output.tokens
    streamed = stream.result
    assert np.concatenate([piece.logprobs for piece in pieces]).tobytes() == streamed.output.logprobs.tobytes()
    assert streamed.output.ids.tolist() == whole.output.ids.tolist()
    assert (streamed.text, streamed.finish_reason) == (whole.text, whole.finish_reason)
    rows[label, "streamed"] = difference(whole.output, streamed.output, "logprobs")
    assert rows[label, "streamed"] < TOLERANCE
    assert difference(whole.output, streamed.output, "top_logprobs") < LIKELIEST


@pytest.mark.parametrize("label", PICTURES)
def test_answers_prompts_and_streams(local, served, figures, label):
    asked = {"image": PICTURES[label], "alternatives": 10, **GREEDY}
    here, there = (probe.generate(QUESTION, prompt=True, **asked) for probe in (local, served))
    assert here.prompt.image_spans if PICTURES[label] else not here.prompt.image_spans
    require_same(here, there, figures, label)
    require_same_stream(served, there, figures, label, PICTURES[label], **GREEDY, alternatives=10)


@pytest.mark.parametrize("label", PICTURES)
def test_candidates(local, served, figures, label):
    single = [each for each in (*SINGLE, "a", "b") if len(local.score(QUESTION, [each]).tables[0]) == 1]
    ways = {"chosen ids": single, "prompts": CANDIDATES, "chosen ids and prompts": [*single, *CANDIDATES]}
    for how, candidates in ways.items():
        here, there = (probe.score(QUESTION, candidates, image=PICTURES[label]) for probe in (local, served))
        assert ("candidates" in there.meta) == how.startswith("chosen ids")
        assert [each.ids.tolist() for each in here.tables] == [each.ids.tolist() for each in there.tables]
        assert here.boundaries == there.boundaries
        figures[label, f"candidates ({how})"] = difference(here, there, "logprobs")
        assert figures[label, f"candidates ({how})"] < LIKELIEST * max(map(len, here.tables))
    assert max(map(len, here.tables)) > 1
    answers = [probe.yes_no(QUESTION, image=PICTURES[label]) for probe in (local, served)]
    assert answers[1].probability == pytest.approx(answers[0].probability, abs=TOLERANCE)


def test_sixteen_at_once(served, figures):
    asked = [vlmprobe.Request(f"Question {n}?", picture(), id=n) for n in range(16)]
    together = list(served.generate_many(asked, **GREEDY))
    alone = [served.generate(each.question, each.image, **GREEDY) for each in asked]
    assert [each.meta["id"] for each in together] == list(range(16))
    assert [each.output.ids.tolist() for each in together] == [each.output.ids.tolist() for each in alone]
    figures[MODEL, "16 at once, one by one"] = max(
        difference(one.output, other.output, "logprobs") for one, other in zip(together, alone, strict=True)
    )
    assert figures[MODEL, "16 at once, one by one"] < TOLERANCE


def test_the_suite(local, served):
    report = check_engine(served, local, tolerance=TOLERANCE, image_tolerance=TOLERANCE)
    write_checks("SGLang", report)
    assert report.raise_for_failures().counts() == {"passed": 12}


def test_all_alternatives_give_the_entropy(local, served, figures):
    asked = {"alternatives": 10_000, "max_new_tokens": 3, "do_sample": False, "prompt": True}
    here, there = (probe.generate(QUESTION, picture(), **asked) for probe in (local, served))
    figures[MODEL, "entropy, with all alternatives"] = max(
        difference(here.output, there.output, "entropy"), difference(here.prompt, there.prompt, "entropy")
    )
    assert figures[MODEL, "entropy, with all alternatives"] < TOLERANCE
    assert there.output.top_ids.shape == here.output.top_ids.shape
    assert np.isnan(there.output.logsumexp).all()  # the raw logits are not known


# -- options -------------------------------------------------------------------------------------------


def test_where_an_answer_ends(local, served):
    asked = {"max_new_tokens": 12, "do_sample": False}
    here = local.generate(QUESTION, picture(), **asked)
    stop, end = next(each for each in here.output.tokens[2:] if each.isalpha()), int(here.output.ids[3])
    for more in ({"stop_strings": [stop]}, {"eos_token_id": end}):
        one, other = (probe.generate(QUESTION, picture(), **asked, **more) for probe in (local, served))
        assert len(one.output) < 12
        assert other.output.ids.tolist() == one.output.ids.tolist(), more
        assert other.finish_reason == one.finish_reason == "stop", more
        assert difference(one.output, other.output, "logprobs") < TOLERANCE
    late = {"min_new_tokens": 6, "eos_token_id": end}
    one, other = (probe.generate(QUESTION, picture(), **asked, **late) for probe in (local, served))
    count = len(other.output)  # the model's own end is one beside that of the request: in transformers it is not
    assert count >= 6
    assert other.output.ids.tolist() == one.output.ids[:count].tolist()


def penalised(local, question: str, penalty: float, count: int, *, prompt: bool) -> list[int]:
    """Greedy ids where the logits of tokens that were there are divided by a penalty, or multiplied if negative."""
    here = Subject(local)
    asked = here.adapter.encode([Conversation.build(question)]).inputs
    seen: list[int] = []
    for _ in range(count):
        inputs = here.adapter.extend(asked, torch.tensor([seen])) if seen else asked
        row = here.forward(here.on_device(dict(inputs))).logits[0, -1].double()
        for each in {*seen, *(asked["input_ids"][0].tolist() if prompt else ())}:
            row[each] = row[each] / penalty if row[each] > 0 else row[each] * penalty
        seen.append(int(row.argmax()))
    return seen


def test_a_repetition_penalty_counts_the_answer_only(local, served):
    question, penalty = "Count: one two three four five.", 1.5
    with pytest.warns(VlmprobeWarning, match="counts the tokens of the answer only"):
        there = served.generate(question, repetition_penalty=penalty, max_new_tokens=16, do_sample=False)
    assert there.output.ids.tolist() == penalised(local, question, penalty, 16, prompt=False)
    here = local.generate(question, repetition_penalty=penalty, max_new_tokens=16, do_sample=False)
    assert here.output.ids.tolist() == penalised(local, question, penalty, 16, prompt=True) != there.output.ids.tolist()
    with pytest.raises(CapabilityError, match="at most 2"):
        served.generate(question, repetition_penalty=2.5)


def test_numbers_are_tempered(local, served):
    drawn = served.generate(QUESTION, picture(), do_sample=True, temperature=0.5, top_k=5, max_new_tokens=6, seed=3)
    assert drawn.meta["value_kind"] == "tempered"
    assert np.isnan(drawn.output.logprobs).all()
    first = local.generate(QUESTION, picture(), max_new_tokens=1, do_sample=False, keep="logits").output.logits[0]
    heated = torch.log_softmax(torch.tensor(first, dtype=torch.float64) / 0.5, dim=-1)
    assert drawn.output.scores[0] == pytest.approx(float(heated[drawn.output.ids[0]]), abs=TOLERANCE)


def test_a_seed_that_has_no_effect_is_told(served):
    asked = {"do_sample": True, "temperature": 1.0, "max_new_tokens": 12, "seed": 3}
    drawn = [served.generate(QUESTION, picture(), **asked) for _ in range(4)]
    assert len({tuple(each.output.ids.tolist()) for each in drawn}) > 1
    assert all("--enable-deterministic-inference" in each.meta["absent"]["seed"] for each in drawn)
    assert "seed" not in served.generate(QUESTION, picture(), seed=3, **GREEDY).meta.get("absent", {})


def test_another_model_with_raw_numbers_and_a_stream_without_repeats(figures, tmp_path):
    """Its server is told to give the model's own numbers, and in each event only what is new."""
    folder, flags = build("qwen3_vl", tmp_path / "qwen3_vl"), {"SGLANG_RETURN_ORIGINAL_LOGPROB": "1"}
    local = vlmprobe.load(folder, check=False, device="cpu", dtype="float32")
    with serving(folder, "--incremental-streaming-output", log=tmp_path / "sglang.log", **flags) as url:
        probe = vlmprobe.connect(url, processor=folder)
        label = "Qwen3-VL, SGLANG_RETURN_ORIGINAL_LOGPROB=1"
        drawn = probe.generate(QUESTION, picture(), do_sample=True, temperature=2.0, alternatives=5, max_new_tokens=4)
        assert drawn.meta["value_kind"] == "raw"
        one, other = (each.generate(QUESTION, picture(), prompt=True, **GREEDY) for each in (local, probe))
        assert np.abs(drawn.output.top_logprobs[0] - one.output.top_logprobs[0, :5]).max() < LIKELIEST
        require_same(one, other, figures, label)
        label = "Qwen3-VL, --incremental-streaming-output"
        require_same_stream(probe, other, figures, label, picture(), **GREEDY)
        report = check_engine(probe, local, tolerance=TOLERANCE, image_tolerance=TOLERANCE).raise_for_failures()
        assert report.counts() == {"passed": 12}
        assert report["E8"].notes == ("they are raw",)


# -- what a server says --------------------------------------------------------------------------------


def test_a_stream_that_is_left_ends_the_servers_work(url, served):
    def running() -> int:
        loads = httpx.get(f"{url}/v1/loads", timeout=10).json()["loads"]
        return sum(each["num_running_reqs"] + each["num_waiting_reqs"] for each in loads)

    with served.stream("Count.", max_new_tokens=3000, min_new_tokens=3000, do_sample=False) as stream:
        next(iter(stream))
        assert running() == 1
    end = time.monotonic() + 20
    while running() and time.monotonic() < end:
        time.sleep(0.2)
    assert running() == 0


def test_errors_say_what_is_wrong(served):
    with pytest.raises(EngineError, match="context length"):
        served.generate("word " * 5000, max_new_tokens=2)
    with pytest.raises(EngineError, match="context length"):
        list(served.stream("word " * 5000, max_new_tokens=2))
    with pytest.raises(CapabilityError, match="no full rows"):
        served.generate(QUESTION, keep="logits")


def test_doctor(served):
    health = background_loop.run(examine(served.engine))
    found = {each.name: each for each in health.findings}
    assert found["images"].state == "yes"
    assert found["candidates"].detail == "of any text"
