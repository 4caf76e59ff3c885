"""A real vLLM on CPU against the same models run here. Not run by default: ``make engine-test``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from engine_models import engine_model
from engine_record import CANDIDATES, QUESTION, SINGLE, picture
from engine_tables import parity
from reranker_template import RERANKER
from vllm_server import environment, missing, python, serving

import vlmprobe
from vlmprobe.errors import CapabilityError, EngineError
from vlmprobe.results.files import load_result

pytestmark = pytest.mark.engine
SHOWN = {"max_new_tokens": 8}
TOLERANCE = 1e-4
# vLLM writes the parts of a query or document as one string before the template sees them.
PARTS = re.compile(r"\{%- for part in message\.content -%\}.*?\n\{%- endfor -%\}", re.DOTALL)


@pytest.fixture(scope="session")
def figures():
    with parity("vLLM") as rows:
        yield rows


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    if reason := missing():
        pytest.skip(reason)
    made: dict[tuple[str, bool], Path] = {}

    def build(name: str, spaced: bool = False) -> Path:
        if (name, spaced) not in made:
            folder = tmp_path_factory.mktemp("engine") / f"{name}{'_spaced' if spaced else ''}"
            made[name, spaced] = engine_model(name, folder, spaced=spaced)
        return made[name, spaced]

    return build


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts servers, one at a time: the one before ends."""
    with ExitStack() as running:

        def begin(folder: Path, *flags: str, **more: str) -> str:
            running.close()
            log = tmp_path_factory.mktemp("log") / "vllm.log"
            return running.enter_context(serving(folder, *flags, log=log, **more))

        yield begin


def both(folder: Path, url: str):
    return vlmprobe.load(folder, check=False, device="cpu"), vlmprobe.connect(url, processor=folder)


def difference(one, other, name: str) -> float:
    a, b = getattr(one, name), getattr(other, name)
    assert np.array_equal(np.isnan(a), np.isnan(b)), name
    return float(np.nanmax(np.abs(a - b)))


def compare(local, served, image, figures, label: str, *, keep="stats") -> None:
    here = local.generate(QUESTION, image=image, do_sample=False, keep=keep, **SHOWN)
    there = served.generate(QUESTION, image=image, keep=keep, **SHOWN)
    assert here.input_ids.tolist() == there.input_ids.tolist()
    assert here.output.ids.tolist() == there.output.ids.tolist()
    assert here.text == there.text
    assert here.prompt.image_spans == there.prompt.image_spans
    assert here.prompt.tokens == there.prompt.tokens
    for what, one, other in (("prompt rows", here.prompt, there.prompt), ("generated", here.output, there.output)):
        figures[label, what] = difference(one, other, "logprobs")
        figures[label, f"{what}, likeliest"] = difference(one, other, "top_logprobs")
        if keep == "logits":
            for name in ("entropy", "logsumexp", "logits"):
                figures[label, f"{what}, {name}"] = difference(one, other, name)
    with served.stream(QUESTION, image=image, keep=keep, **SHOWN) as stream:
        rows = list(stream)
    assert [row.tokens[0] for row in rows] == here.output.tokens
    assert [int(row.positions[0]) for row in rows] == here.output.positions.tolist()
    streamed = np.concatenate([row.logprobs for row in rows])
    assert np.array_equal(streamed, stream.result.output.logprobs)
    figures[label, "streamed"] = float(np.abs(streamed - here.output.logprobs).max())
    assert stream.result.text == here.text
    assert stream.result.input_ids.tolist() == here.input_ids.tolist()
    assert stream.result.finish_reason == here.finish_reason
    assert max(value for (name, _), value in figures.items() if name == label) < TOLERANCE


def compare_scores(local, served, figures, label: str, how: str, image=None, candidates=CANDIDATES):
    here = local.score(QUESTION, candidates, image=image)
    there = served.score(QUESTION, candidates, image=image)
    assert how in there.meta["candidates"]
    what = f"candidates ({there.meta['candidates']})"
    figures[label, what] = float(np.abs(here.logprobs - there.logprobs).max())
    assert figures[label, what] < TOLERANCE
    assert here.boundaries == there.boundaries
    assert [each.ids.tolist() for each in here.tables] == [each.ids.tolist() for each in there.tables]
    return there


def test_qwen2_vl(model, start, figures):
    folder = model("qwen2_vl")
    local, served = both(folder, start(folder, "--enable-scale-out"))
    label = "Qwen2-VL"
    compare(local, served, picture(), figures, label)
    compare(local, served, None, figures, f"{label}, text only")
    compare(local, served, [picture(), picture().rotate(180)], figures, f"{label}, two pictures")
    compare_scores(local, served, figures, label, "ids", picture())
    scores = compare_scores(local, served, figures, label, "chosen ids", picture(), SINGLE)
    assert scores.meta["candidates"] == "chosen ids"
    compare_scores(local, served, figures, label, "chosen ids", picture(), [*CANDIDATES, *SINGLE])
    served.engine.tokens_in = False
    compare_scores(local, served, figures, label, "continue_final_message", picture())
    asked = [vlmprobe.Request(f"Question {n}?", picture(), id=n) for n in range(16)]
    together = list(served.generate_many(asked, max_new_tokens=8))
    alone = [served.generate(each.question, each.image, max_new_tokens=8) for each in asked]
    assert [each.meta["id"] for each in together] == list(range(16))
    figures[label, "16 at once, one by one"] = max(
        difference(one.output, other.output, "logprobs") for one, other in zip(together, alone, strict=True)
    )
    assert figures[label, "16 at once, one by one"] == 0
    end = int(alone[0].output.ids[2])
    stopped = served.generate("Question 0?", picture(), max_new_tokens=8, eos_token_id=end)
    assert stopped.output.ids.tolist() == alone[0].output.ids[: stopped.output.ids.tolist().index(end) + 1].tolist()
    assert stopped.finish_reason == "stop"


def test_sampling_is_raw_and_a_server_says_what_it_gives(model, start):
    folder = model("qwen2_vl")
    url = start(folder)
    local, served = both(folder, url)
    options = {"do_sample": True, "temperature": 0.5, "top_k": 5, "seed": 3}
    result = served.generate(QUESTION, image=picture(), max_new_tokens=4, **options)
    assert result.meta["value_kind"] == "raw"
    greedy = local.generate(QUESTION, image=picture(), max_new_tokens=4, do_sample=False)
    assert abs(result.output.top_logprobs[0] - greedy.output.top_logprobs[0]).max() < TOLERANCE
    with pytest.raises(CapabilityError, match="max-logprobs"):
        served.generate("Hi", alternatives=21)
    found = subprocess.run(
        [sys.executable, "-m", "vlmprobe", "doctor", url, "--json"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 3, found.stderr  # --enable-scale-out would give more
    assert '"max_logprobs": 20' in found.stdout
    assert '"mode": "raw_logprobs"' in found.stdout


@pytest.mark.parametrize("flags", [(), ("--logprobs-mode", "raw_logits", "--max-logprobs", "-1")], ids=["", "logits"])
def test_numbers_under_a_grammar_are_renormalised(model, start, flags):
    folder = model("qwen2_vl")
    local, served = both(folder, start(folder, *flags))
    asked = {"grammar": 'root ::= ("yes" | "no") " " [0-9] [0-9]', "image": picture(), "max_new_tokens": 12}
    here, there = (probe.generate(QUESTION, **asked) for probe in (local, served))
    assert re.fullmatch("(yes|no) [0-9]{2}", there.text)
    assert there.output.ids.tolist() == here.output.ids.tolist()
    assert there.meta["value_kind"] == "constrained"
    assert np.isnan(there.output.logprobs).all()
    assert difference(here.output, there.output, "scores") < TOLERANCE
    colour = served.generate(QUESTION, schema={"enum": ["red", "blue"]}, max_new_tokens=12)
    assert json.loads(colour.text) in ("red", "blue")
    with pytest.raises(EngineError, match=r"[Gg]rammar"):
        served.generate(QUESTION, grammar="root = yes", max_new_tokens=2)


def test_qwen2_5_vl_and_a_template_that_ends_in_a_space(model, start, figures):
    folder = model("qwen2_5_vl", True)
    local, served = both(folder, start(folder, "--enable-scale-out"))
    label = "Qwen2.5-VL, template ending in a space"
    compare(local, served, picture(), figures, label)
    candidates = ["a cat", "the", "yes", "I see"]
    scores = compare_scores(local, served, figures, label, "ids", picture(), candidates)
    assert any(scores.boundaries)
    served.engine.tokens_in = False
    compare_scores(local, served, figures, label, "continue_final_message", picture(), candidates)


def test_internvl_with_whole_rows(model, start, figures):
    folder = model("internvl")
    flags = ("--logprobs-mode", "raw_logits", "--max-logprobs", "-1", "--enable-scale-out")
    local, served = both(folder, start(folder, *flags))
    compare(local, served, picture(), figures, "InternVL-HF, several tiles, raw_logits", keep="logits")
    plain = served.generate(QUESTION, image=picture(), max_new_tokens=3)
    assert not np.isnan(plain.output.logprobs).any()
    assert not np.isnan(plain.output.entropy).any()
    with pytest.raises(CapabilityError, match="raw_logprobs"):
        served.score(QUESTION, CANDIDATES, image=picture())
    here = local.score(QUESTION, CANDIDATES, image=picture())
    there = served.score(QUESTION, CANDIDATES, image=picture(), keep="logits")
    assert np.abs(here.logprobs - there.logprobs).max() < TOLERANCE


@pytest.mark.parametrize("mode", ["processed_logprobs", "processed_logits"])
def test_processed_numbers_are_told_apart(model, start, figures, mode):
    folder = model("qwen2_vl")
    local, served = both(folder, start(folder, "--logprobs-mode", mode))
    greedy = served.generate(QUESTION, image=picture(), max_new_tokens=3)
    assert greedy.meta["logprobs_mode"] == mode
    assert greedy.meta["value_kind"] == "raw"  # nothing processes a greedy answer
    here = local.generate(QUESTION, image=picture(), max_new_tokens=3, do_sample=False)
    if mode == "processed_logprobs":
        figures[f"Qwen2-VL, {mode}", "generated"] = difference(greedy.output, here.output, "logprobs")
        assert figures[f"Qwen2-VL, {mode}", "generated"] < TOLERANCE
    else:
        assert np.isnan(greedy.output.logprobs).all()
        assert (greedy.output.logprobs_at_most >= here.output.logprobs - TOLERANCE).all()
    drawn = {"do_sample": True, "temperature": 0.5, "top_k": 5, "seed": 3}
    sampled = served.generate(QUESTION, image=picture(), max_new_tokens=3, **drawn)
    assert sampled.meta["value_kind"] == "filtered"
    assert np.isnan(sampled.output.logprobs).all()
    if mode == "processed_logprobs":
        begin = sampled.output.ids.tolist()
        rows = local.engine.score_ids([_conversation()], begin, _every())[0].logits / 0.5
        kept = np.where(rows >= np.sort(rows, axis=1)[:, [-5]], rows, -np.inf)
        expected = rows[np.arange(3), begin] - np.logaddexp.reduce(kept, axis=1)
        assert np.abs(sampled.output.scores - expected).max() < TOLERANCE


def test_tensor_parallel(model, start, figures):
    folder = model("qwen2_vl")
    url = start(folder, "--tensor-parallel-size", "2", VLLM_CPU_OMP_THREADS_BIND="0|1")
    local, served = both(folder, url)
    compare(local, served, picture(), figures, "Qwen2-VL, tensor parallel 2")


def test_a_reranker(model, start, figures, tmp_path):
    import shutil

    from transformers import AutoProcessor

    folder = tmp_path / "reranker"
    model("qwen2_vl")  # skips where there is no vLLM
    engine_model("qwen3_vl", folder, untied=True)
    template = tmp_path / "reranker.jinja"
    template.write_text(PARTS.sub("{{- message.content -}}", RERANKER))
    overrides = (
        '{"architectures":["Qwen3VLForSequenceClassification"],"classifier_from_token":[".","?"],'
        '"is_original_qwen3_reranker":true,"text_config":{"tie_word_embeddings":false}}'
    )
    url = start(folder, "--runner", "pooling", "--hf-overrides", overrides, "--chat-template", str(template))
    named = tmp_path / "named"
    shutil.copytree(folder, named)
    processor = AutoProcessor.from_pretrained(named)
    processor.chat_template = {"default": processor.chat_template, "reranker": RERANKER}
    processor.save_pretrained(named)
    local, served = vlmprobe.load(named, check=False, device="cpu"), vlmprobe.connect(url)
    image = picture().resize((64, 64))
    documents = ["a red tiger", image, "a blue cat"]
    here, there = local.rank("a tiger", documents, yes="?", no="."), served.rank("a tiger", documents)
    figures["Qwen3-VL reranker, /score", "margins"] = float(np.abs(here.margins - there.margins).max())
    assert figures["Qwen3-VL reranker, /score", "margins"] < TOLERANCE
    with pytest.raises(vlmprobe.VlmprobeError):
        served.generate("Hi")


@pytest.mark.parametrize("mode", ["raw_logprobs", "raw_logits"])
def test_in_process(model, figures, mode, tmp_path):
    folder = model("qwen2_vl")
    script = Path(__file__).with_name("in_process.py")
    found = subprocess.run(
        [python(), script, folder, mode, tmp_path], capture_output=True, text=True, env=environment(), cwd=tmp_path
    )
    assert found.returncode == 0, found.stderr[-3000:]
    local = vlmprobe.load(folder, check=False, device="cpu")
    keep = "logits" if mode == "raw_logits" else "stats"
    label = f"Qwen2-VL in process, {mode}"
    for name, image in (("shown", picture()), ("plain", None), ("again", None)):
        here = local.generate(QUESTION, image=image, max_new_tokens=4, do_sample=False, keep=keep)
        there = load_result(tmp_path / name)
        assert here.input_ids.tolist() == there.input_ids.tolist()
        assert here.output.ids.tolist() == there.output.ids.tolist()
        assert (here.text, here.prompt.tokens) == (there.text, there.prompt.tokens)
        for side in ("prompt", "output"):
            one, other = getattr(here, side), getattr(there, side)
            for column in ("logprobs", "top_logprobs", *(("entropy", "logits") if keep == "logits" else ())):
                value = difference(one, other, column)
                figures[label, column] = max(value, figures.get((label, column), 0))
                assert value < TOLERANCE, (name, side, column)
    scores = local.score(QUESTION, CANDIDATES, image=picture())
    assert np.abs(scores.logprobs - load_result(tmp_path / "scores").logprobs).max() < TOLERANCE


def _conversation():
    from vlmprobe.inputs.messages import Conversation

    return Conversation.build(QUESTION, picture())


def _every():
    from vlmprobe.engines.base import Options

    return Options(keep=frozenset({"logits"}), generation={"max_new_tokens": 1})
