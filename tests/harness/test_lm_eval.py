"""A probe as a model of lm-eval: with stand-ins of its classes, and with lm-eval itself where it is installed."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from harness_standins import HARNESSES, harness

import vlmprobe
from vlmprobe.errors import CapabilityError, ImageError, MessageError

QUESTION = "Which digit is on the left?"
WORDS = ["one", "two", "seven", "nine"]
OPTIONS = {"until": ["\n"], "max_gen_toks": 6, "do_sample": False, "temperature": 0.0}


@pytest.fixture(scope="module")
def probe():
    return vlmprobe.load("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def images(documents):
    return [each["image"] for each in documents]


@pytest.fixture(params=HARNESSES)
def lm_eval(request):
    with harness("lm_eval", request.param) as found:
        yield found


def model_of(lm_eval, probe):
    return lm_eval.module.LMEvalProbe(probe, batch_size="auto")


def choices(lm_eval, context, image, words=WORDS, doc_id=0):
    """The requests of one document of a multiple choice task; they share what holds the images, as lm-eval makes it."""
    extra = {"visual": [image]}
    return [lm_eval.request("loglikelihood", (context, word, extra), "mc", doc_id) for word in words]


# -- log-likelihoods ----------------------------------------------------------------------------


def test_log_likelihoods_of_chats_are_those_of_score(lm_eval, probe, images):
    """The chat template is written once, by the probe, whatever begin token it has."""
    model = model_of(lm_eval, probe)
    context = model.apply_chat_template([{"role": "user", "content": f"<image>{QUESTION}"}])
    requests = [each for place, image in enumerate(images) for each in choices(lm_eval, context, image, doc_id=place)]
    found = np.array(model.loglikelihood(requests)).reshape(3, len(WORDS), 2)
    for pairs, image in zip(found, images, strict=True):
        np.testing.assert_allclose(pairs[:, 0], probe.score(QUESTION, WORDS, image=image).logprobs, atol=1e-4)


def test_without_the_chat_template_a_prompt_is_raw(lm_eval, probe, images):
    """As lm-eval means it: a template that its user did not ask for would be applied in silence."""
    found = model_of(lm_eval, probe).loglikelihood(choices(lm_eval, f"<image>\n{QUESTION}\nAnswer:", images[0]))
    raw = probe.score(f"\n{QUESTION}\nAnswer:", WORDS, image=images[0], raw_prompt=True)
    chat = probe.score(f"\n{QUESTION}\nAnswer:", WORDS, image=images[0])
    np.testing.assert_allclose([value for value, _ in found], raw.logprobs, atol=1e-4)
    assert not np.allclose(raw.logprobs, chat.logprobs, atol=0.1)


def test_a_prefix_of_the_answer_is_continued(lm_eval, probe, images):
    model = model_of(lm_eval, probe)
    chat = [{"role": "user", "content": f"<image>{QUESTION}"}, {"role": "assistant", "content": "It is a"}]
    context = model.apply_chat_template(chat, add_generation_prompt=False)
    found = model.loglikelihood(choices(lm_eval, context, images[0], [" one", " two"]))
    messages = [{"role": "user", "content": QUESTION}, chat[1]]
    asked = probe.score(messages, [" one", " two"], image=images[0])
    np.testing.assert_allclose([value for value, _ in found], asked.logprobs, atol=1e-4)


def test_two_images_stand_where_the_text_has_them(lm_eval, probe, images):
    model = model_of(lm_eval, probe)
    context = model.apply_chat_template([{"role": "user", "content": "<image>First, <image>second. Equal?"}])
    request = lm_eval.request("loglikelihood", (context, "no", {"visual": images[:2]}))
    part = [{"type": "image", "image": each} for each in images[:2]]
    texts = [{"type": "text", "text": text} for text in ("First, ", "second. Equal?")]
    asked = probe.score([{"role": "user", "content": [part[0], texts[0], part[1], texts[1]]}], ["no"])
    assert model.loglikelihood([request])[0][0] == pytest.approx(asked.logprobs[0], abs=1e-4)


def test_texts_alone_are_asked_too(lm_eval, probe):
    model = model_of(lm_eval, probe)
    context = model.apply_chat_template([{"role": "user", "content": "Two and two?"}])
    found = model.loglikelihood([lm_eval.request("loglikelihood", (context, "four"))])
    assert found[0][0] == pytest.approx(probe.score("Two and two?", ["four"]).logprobs[0], abs=1e-4)


def test_equal_texts_about_other_images_are_other_prompts(lm_eval, probe, images):
    model = model_of(lm_eval, probe)
    context = model.apply_chat_template([{"role": "user", "content": f"<image>{QUESTION}"}])
    one, two = (choices(lm_eval, context, image, ["one"])[0] for image in images[:2])
    alone = [model.loglikelihood([each])[0][0] for each in (one, two)]
    assert [value for value, _ in model.loglikelihood([one, two, one])] == pytest.approx([*alone, alone[0]], abs=1e-4)
    assert alone[0] != pytest.approx(alone[1], abs=1e-3)


# -- answers ------------------------------------------------------------------------------------


def test_answers_are_those_of_generate(lm_eval, probe, images):
    model = model_of(lm_eval, probe)
    context = model.apply_chat_template([{"role": "user", "content": f"<image>{QUESTION}"}])
    requests = [lm_eval.request("generate_until", (context, OPTIONS, {"visual": [each]})) for each in images]
    asked = [probe.generate(QUESTION, image=each, max_new_tokens=6, do_sample=False).text for each in images]
    assert model.generate_until(requests) == asked
    assert OPTIONS["until"] == ["\n"], "what lm-eval holds is left as it is"


def test_each_result_is_handed_over_as_it_comes(lm_eval, probe, images, monkeypatch):
    """lm-eval's own cache of answers, by what it looks them up with; so a run that is killed goes on there."""
    model = model_of(lm_eval, probe)
    kept = []
    monkeypatch.setattr(model.cache_hook, "add_partial", lambda *given: kept.append(given))
    context = model.apply_chat_template([{"role": "user", "content": f"<image>{QUESTION}"}])
    requests = choices(lm_eval, context, images[0], ["one", "two"])
    found = model.loglikelihood(requests)
    assert kept == [("loglikelihood", each.args, value) for each, value in zip(requests, found, strict=True)]
    kept.clear()
    asked = lm_eval.request("generate_until", (context, OPTIONS, {"visual": [images[0]]}))
    assert [("generate_until", asked.args, text) for text in model.generate_until([asked])] == kept


# -- what would be measured otherwise ------------------------------------------------------------


def test_errors_name_the_task_and_the_document(lm_eval, probe, images):
    model = model_of(lm_eval, probe)
    mark, chat = "<image>", model.apply_chat_template
    bad = {
        "0 times for 1 images": (QUESTION, images[:1], MessageError),  # the image would not be seen
        "2 times for 1 images": (mark + QUESTION + mark, images[:1], MessageError),  # few-shot examples without theirs
        "a task gives str": (mark + QUESTION, ["/etc/passwd"], ImageError),
    }
    for message, (text, given, kind) in bad.items():
        context = chat([{"role": "user", "content": text}])
        request = lm_eval.request("loglikelihood", (context, "one", {"visual": given}), "mc", 17)
        with pytest.raises(kind, match=f"mc/17.*{message}"):
            model.loglikelihood([request])
    with pytest.raises(CapabilityError, match=r"mc/3.*not audio"):
        model.generate_until([lm_eval.request("generate_until", ("a", OPTIONS, {"audio": [b""]}), "mc", 3)])


def test_an_unconditional_likelihood_is_an_error(lm_eval, probe, images):
    """Of acc_mutual_info: lm-eval asks it with an empty context, and gives it the image."""
    model = model_of(lm_eval, probe)
    with pytest.raises(MessageError, match="mc/0"):
        model.loglikelihood([lm_eval.request("loglikelihood", ("", "one", {"visual": images[:1]}), "mc")])
    with pytest.raises(MessageError, match="mc/0"):
        model.loglikelihood([lm_eval.request("loglikelihood", ("", "one"), "mc")])


def test_whole_documents_and_named_templates_are_refused(lm_eval, probe):
    model = model_of(lm_eval, probe)
    with pytest.raises(CapabilityError, match="loglikelihood_rolling"):
        model.loglikelihood_rolling([lm_eval.request("loglikelihood_rolling", ("a document",))])
    with pytest.raises(CapabilityError, match="--apply_chat_template tool_use"):
        model.chat_template("tool_use")
    assert model.chat_template(True) == ""


def test_the_default_device_of_lm_eval_is_no_wish(lm_eval, monkeypatch):
    """It hands over cuda:0 where its user says nothing."""
    given = []
    monkeypatch.setattr(lm_eval.module, "opened", lambda *each: given.append(each))
    monkeypatch.setattr(lm_eval.module.torch.cuda, "is_available", lambda: False)
    for model, device in [("demo", "cuda:0"), ("demo", "cpu"), ("http://localhost:8000", "cuda:0")]:
        lm_eval.module.LMEvalProbe(model, device=device, dtype="float32")
    monkeypatch.setattr(lm_eval.module.torch.cuda, "is_available", lambda: True)
    for model in ("demo", "http://localhost:8000"):
        lm_eval.module.LMEvalProbe(model, device="cuda:0")
    assert [device for _, device, _ in given] == [None, "cpu", None, "cuda:0", None]
    assert given[0][2] == {"dtype": "float32"}


# -- lm-eval itself -------------------------------------------------------------------------------


def test_the_stand_in_is_like_the_real_one():
    """A request has the same attributes, the model is found, and a chat survives lm-eval's cache of requests."""
    with harness("lm_eval", "real") as real:
        from lm_eval.api.model import LM, CachingLM
        from lm_eval.api.registry import get_model

        arguments = ("context", "word", {"visual": []})
        made = real.request("loglikelihood", arguments, "mc", 3)
        assert get_model("vlmprobe") is real.module.LMEvalProbe
        assert get_model("dummy").__module__.startswith("lm_eval."), "those of lm-eval are there too"
        assert issubclass(real.module.LMEvalProbe, LM)
        assert callable(CachingLM)
        chat = real.module.Chat('[{"role": "user", "content": "?"}]')
        assert type(pickle.loads(pickle.dumps(chat))) is real.module.Chat
    with harness("lm_eval", "stand-in") as stand_in:
        assert stand_in.registered == {"vlmprobe": stand_in.module.LMEvalProbe}
        ours = stand_in.request("loglikelihood", arguments, "mc", 3)
    names = ("request_type", "args", "task_name", "doc_id")
    assert [getattr(made, name) for name in names] == [getattr(ours, name) for name in names]


TASK = """
task: {name}
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_image: [image]
doc_to_text: "<image>{{{{question}}}}"
"""
MULTIPLE = TASK + "output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: answer\n"
GENERATE = TASK + (
    "output_type: generate_until\ndoc_to_target: answer\n"
    'generation_kwargs: {{until: ["\\n"], max_gen_toks: 6}}\nmetric_list: [{{metric: exact_match}}]\n'
)


@pytest.fixture
def tasks(tmp_path, parquet):
    for name, text in (("vlm_choice", MULTIPLE), ("vlm_answer", GENERATE)):
        (tmp_path / f"{name}.yaml").write_text(text.format(name=name, data=parquet), encoding="utf-8")
    return tmp_path


def test_the_command_line_gives_the_numbers_of_the_probe(tasks, probe, documents, offline):
    """Parquet with images, offline; then again with the answers in lm-eval's cache."""
    pytest.importorskip("lm_eval")
    command = [sys.executable, "-m", "vlmprobe.harness.lm_eval", "run", "--model", "vlmprobe", "--batch_size", "auto"]
    command += ["--model_args", "pretrained=demo,dtype=float32", "--tasks", "vlm_choice,vlm_answer", "--log_samples"]
    command += ["--include_path", str(tasks), "--output_path", "out", "--apply_chat_template", "--use_cache", "cache"]
    for _ in range(2):
        done = subprocess.run(command, cwd=tasks, env=offline, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr
    assert "Cached requests: 12, Requests remaining: 0" in done.stderr
    for run in sorted((tasks / "out").rglob("samples_vlm_choice*.jsonl")):
        samples = [json.loads(line) for line in run.read_text(encoding="utf-8").splitlines()]
        assert [sample["acc"] for sample in samples] == [1.0, 1.0, 0.0]
        assert len(samples) == len(documents)
        for sample, document in zip(samples, documents, strict=True):
            asked = probe.score(document["question"], document["choices"], image=document["image"])
            told = [(float(value), greedy) for ((value, greedy),) in sample["resps"]]
            np.testing.assert_allclose([value for value, _ in told], asked.logprobs, atol=1e-4)
            assert [greedy == "True" for _, greedy in told] == [not table.ranks.any() for table in asked.tables]
            assert sample["acc"] == float(asked.best == document["choices"][document["answer"]])
    for run in sorted((tasks / "out").rglob("samples_vlm_answer*.jsonl")):
        texts = [json.loads(line)["resps"][0][0] for line in run.read_text(encoding="utf-8").splitlines()]
        greedy = {"max_new_tokens": 6, "do_sample": False}
        assert texts == [probe.generate(each["question"], image=each["image"], **greedy).text for each in documents]
    results = [json.loads(each.read_text(encoding="utf-8")) for each in (tasks / "out").rglob("results*.json")]
    assert len(results) == 2
    assert results[0]["config"]["vlmprobe"]["dtype"] == "float32"
