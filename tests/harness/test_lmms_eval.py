"""A probe as a model of lmms-eval: with stand-ins of its classes, and with lmms-eval itself where it is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points
from types import SimpleNamespace

import numpy as np
import pytest
from harness_standins import HARNESSES, harness

import vlmprobe
from vlmprobe.errors import CapabilityError, ImageError, MessageError

WORDS = ["one", "two", "seven", "nine"]
OPTIONS = {"max_new_tokens": 6, "temperature": 0, "top_p": 0, "num_beams": 1, "until": ["\n\n"]}


@pytest.fixture(scope="module")
def probe():
    return vlmprobe.load("demo", device="cpu", dtype="float32")


@pytest.fixture(params=HARNESSES)
def lmms_eval(request):
    with harness("lmms_eval", request.param) as found:
        yield found


class Task:
    """What a task of lmms-eval has that a model meets."""

    OUTPUT_TYPE = "multiple_choice"

    def __init__(self, shots=0, visual="image"):
        self.config = SimpleNamespace(num_fewshot=shots, process_results=lambda doc, results: {})
        self.visual = visual

    def doc_to_visual(self, doc):
        return [doc[self.visual]] if self.visual else None

    def doc_to_text(self, doc):
        return doc["question"]

    def doc_to_messages(self, doc):
        content = [{"type": "text", "text": "Look: "}, {"type": "image", "url": doc["image"]}]
        return [{"role": "user", "content": [*content, {"type": "text", "text": doc["question"]}]}]


def model_of(lmms_eval, probe, documents, chat=False):
    made = lmms_eval.module.LMMsEvalChatProbe if chat else lmms_eval.module.LMMsEvalProbe
    model = made(probe, batch_size="auto")
    model.task_dict = {"vlm": {"test": documents}}
    return model


def asked(lmms_eval, kind, place, second, task=None, context=None, question=None):
    """A request as lmms-eval makes it for models that are not given messages."""
    task = task or Task()
    arguments = (context or question, second, task.doc_to_visual, place, "vlm", "test")
    return lmms_eval.request(kind, arguments, "vlm", place)


# -- log-likelihoods ----------------------------------------------------------------------------


def test_log_likelihoods_are_those_of_score(lmms_eval, probe, documents):
    model = model_of(lmms_eval, probe, documents)
    requests = [
        asked(lmms_eval, "loglikelihood", place, word, question=each["question"])
        for place, each in enumerate(documents)
        for word in WORDS
    ]
    found = np.array(model.loglikelihood(requests)).reshape(3, len(WORDS), 2)
    for pairs, each in zip(found, documents, strict=True):
        scores = probe.score(each["question"], WORDS, image=each["image"])
        np.testing.assert_allclose(pairs[:, 0], scores.logprobs, atol=1e-4)
        assert pairs[:, 1].tolist() == [not table.ranks.any() for table in scores.tables]


def test_a_target_that_is_read_from_the_document(lmms_eval, probe, documents):
    """As tasks of the type loglikelihood give it."""
    model = model_of(lmms_eval, probe, documents)
    each = documents[1]
    request = asked(lmms_eval, "loglikelihood", 1, lambda doc: doc["choices"][2], question=each["question"])
    scores = probe.score(each["question"], ["seven"], image=each["image"])
    assert model.loglikelihood([request])[0][0] == pytest.approx(scores.logprobs[0], abs=1e-4)


def test_a_pair_passes_through_lmms_eval_and_not_into_its_cache(lmms_eval):
    """0.7 makes a text of a bare pair; what is stored would be found again for other images of the same texts."""
    pair = lmms_eval.module.LogLikelihood((-1.5, True))
    assert pair == (-1.5, True)
    assert pair.text is pair
    assert pair.token_counts is None
    assert not pair.strip()
    if lmms_eval.registered is None and "lmms_eval.evaluator" in sys.modules:
        from lmms_eval.api.instance import unwrap_generation_output

        assert unwrap_generation_output(pair) == (pair, None)


# -- answers ------------------------------------------------------------------------------------


def test_answers_are_those_of_generate(lmms_eval, probe, documents):
    """A blank line is no stop string: lmms-eval adds it to every task that names none."""
    model = model_of(lmms_eval, probe, documents)
    options = {**OPTIONS, "image_aspect_ratio": "original"}
    requests = [
        asked(lmms_eval, "generate_until", place, options, question=each["question"])
        for place, each in enumerate(documents)
    ]
    greedy = {"max_new_tokens": 6, "do_sample": False}
    assert model.generate_until(requests) == [
        probe.generate(each["question"], image=each["image"], **greedy).text for each in documents
    ]


def test_stop_strings_of_the_task_are_heeded(lmms_eval, probe, documents):
    whole = probe.generate("?", image=documents[0]["image"], max_new_tokens=6, do_sample=False).text
    model = model_of(lmms_eval, probe, documents)
    request = asked(lmms_eval, "generate_until", 0, {**OPTIONS, "until": ["\n\n", whole[1]]}, question="?")
    assert model.generate_until([request]) == [whole.partition(whole[1])[0]]


def test_chat_messages_keep_images_where_they_are(lmms_eval, probe, documents):
    model = model_of(lmms_eval, probe, documents, chat=True)
    task = Task()
    each = documents[0]
    arguments = (each["question"], task.doc_to_messages, OPTIONS, 0, "vlm", "test")
    request = lmms_eval.request("generate_until", arguments, "vlm", 0)
    parts = [{"type": "text", "text": "Look: "}, {"type": "image", "image": each["image"]}]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": each["question"]}]}]
    assert model.generate_until([request]) == [probe.generate(messages, max_new_tokens=6, do_sample=False).text]


def test_tasks_of_text_alone(lmms_eval, probe, documents):
    model = model_of(lmms_eval, probe, documents)
    request = asked(lmms_eval, "loglikelihood", 0, "four", Task(shots=2, visual=None), question="Two and two?")
    scores = probe.score("Two and two?", ["four"])
    assert model.loglikelihood([request])[0][0] == pytest.approx(scores.logprobs[0], abs=1e-4)


# -- what would be measured otherwise ------------------------------------------------------------


def test_examples_without_their_images_are_an_error(lmms_eval, probe, documents):
    model = model_of(lmms_eval, probe, documents)
    request = asked(lmms_eval, "loglikelihood", 0, "one", Task(shots=2), question="?")
    with pytest.raises(CapabilityError, match=r"vlm/0.*--num_fewshot 0"):
        model.loglikelihood([request])


def test_a_context_that_the_messages_do_not_hold_is_an_error(lmms_eval, probe, documents):
    """lmms-eval leaves examples, a description and a system instruction out of the messages of a task with images."""
    model = model_of(lmms_eval, probe, documents, chat=True)
    context = f"You are careful. {documents[0]['question']}"
    arguments = (context, Task().doc_to_messages, OPTIONS, 0, "vlm", "test")
    with pytest.raises(CapabilityError, match=r"vlm/0.*--force_simple"):
        model.generate_until([lmms_eval.request("generate_until", arguments, "vlm", 0)])


def test_paths_and_videos_are_no_images(lmms_eval, probe, documents):
    rows = [{**documents[0], "image": "/etc/passwd"}]
    model = model_of(lmms_eval, probe, rows)
    with pytest.raises(ImageError, match=r"vlm/0.*a task gives str"):
        model.loglikelihood([asked(lmms_eval, "loglikelihood", 0, "one", question="?")])
    chat = model_of(lmms_eval, probe, rows, chat=True)
    for part, message in (
        ({"type": "image", "url": "a.png"}, "a task gives str"),
        ({"type": "video", "url": "a.mp4"}, "video"),
    ):
        messages = [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]
        arguments = ("?", lambda doc, given=messages: given, OPTIONS, 0, "vlm", "test")
        with pytest.raises((ImageError, MessageError), match=message):
            chat.generate_until([lmms_eval.request("generate_until", arguments, "vlm", 0)])


def test_rounds_are_refused(lmms_eval, probe, documents):
    with pytest.raises(CapabilityError, match="multi_round"):
        model_of(lmms_eval, probe, documents).generate_until_multi_round([])


class Scored(Task):
    """A task that scores its choices as lmms-eval does, by the least number or by the greatest."""

    def __init__(self, take):
        super().__init__()
        self.config.process_results = None
        self.take = take
        self._metric_fn_list = {"acc": None}
        self.multiple_input = self.multiple_target = 1

    def doc_to_choice(self, doc):
        return doc["choices"]

    def doc_to_target(self, doc):
        return doc["answer"]

    def process_results(self, doc, results):
        numbers, _ = zip(*results, strict=True)
        assert len(numbers) == len(self.doc_to_choice(doc))
        return {"acc": float(self.take(numbers) == self.doc_to_target(doc))}


@pytest.mark.parametrize("take", [np.argmin, np.argmax])
def test_the_likeliest_choice_is_taken_whichever_way_lmms_eval_compares(lmms_eval, take):
    task = Scored(take)
    for _ in range(2):  # seen twice, it is not turned around again
        lmms_eval.module.count_likelihoods(task)
    pairs = [lmms_eval.module.LogLikelihood((value, False)) for value in (-3.0, -1.0, -2.0)]
    told = [task.process_results({"choices": "abc", "answer": place}, pairs)["acc"] for place in range(3)]
    assert told == [0.0, 1.0, 0.0]
    losses = [(value, False) for value in (3.0, 1.0, 2.0)]  # of another model: left as they are
    assert task.process_results({"choices": "abc", "answer": int(take([3.0, 1.0, 2.0]))}, losses)["acc"] == 1.0


def test_a_task_that_scores_its_choices_itself_gets_what_is_documented(lmms_eval):
    task = Scored(np.argmin)
    task.config.process_results = print
    lmms_eval.module.count_likelihoods(task)
    assert "process_results" not in vars(task)


# -- lmms-eval itself -----------------------------------------------------------------------------


def test_the_stand_in_is_like_the_real_one():
    with harness("lmms_eval", "real") as real:
        arguments = ("context", "word", print, 0, "vlm", "test")
        made = real.request("loglikelihood", arguments, "vlm", 3)
        given = real.module.manifest()
        result = real.module.GenerationResult(text="a")
    with harness("lmms_eval", "stand-in") as stand_in:
        ours = stand_in.request("loglikelihood", arguments, "vlm", 3)
        assert vars(stand_in.module.manifest()).items() <= vars(given).items()
        assert vars(stand_in.module.GenerationResult(text="a")) == vars(result)
    names = ("request_type", "args", "task_name", "doc_id")
    assert [getattr(made, name) for name in names] == [getattr(ours, name) for name in names]


def test_the_entry_point_leads_to_both_classes(lmms_eval):
    manifest = lmms_eval.module.manifest()
    classes = [lmms_eval.module.LMMsEvalProbe, lmms_eval.module.LMMsEvalChatProbe]
    assert [manifest.simple_class_path, manifest.chat_class_path] == [
        f"vlmprobe.harness.lmms_eval.{each.__name__}" for each in classes
    ]
    assert [each.is_simple for each in classes] == [True, False]


TASK = """
task: {name}
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_visual: image
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
"""
MULTIPLE = TASK + (
    "output_type: multiple_choice\ndoc_to_choice: choices\n"
    'target_delimiter: ""\nmetric_list: [{{metric: acc}}, {{metric: acc_norm}}]\n'
)
GENERATE = TASK + (
    "output_type: generate_until\nmetric_list: [{{metric: exact_match}}]\n"
    "generation_kwargs: {{max_new_tokens: 6, temperature: 0, do_sample: false}}\n"
)


@pytest.fixture
def tasks(tmp_path, parquet):
    for name, text in (("vlm_choice", MULTIPLE), ("vlm_answer", GENERATE)):
        (tmp_path / f"{name}.yaml").write_text(text.format(name=name, data=parquet), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("more", [["--force_simple", "--tasks", "vlm_choice,vlm_answer"], ["--tasks", "vlm_answer"]])
def test_the_command_line_gives_the_numbers_of_the_probe(tasks, probe, documents, offline, more):
    """Parquet with images, offline, and a second time with lmms-eval's cache."""
    pytest.importorskip("lmms_eval")
    if not any(each.value == "vlmprobe.harness.lmms_eval:manifest" for each in entry_points(group="lmms_eval.models")):
        pytest.skip("the installed metadata of vlmprobe have no entry point of lmms-eval: install it anew")
    command = [
        sys.executable,
        "-m",
        "lmms_eval",
        "--model",
        "vlmprobe",
        "--model_args",
        "pretrained=demo,dtype=float32",
    ]
    command += ["--batch_size", "auto", "--include_path", str(tasks), "--output_path", "out", "--log_samples", *more]
    for _ in range(2):
        done = subprocess.run(
            [*command, "--use_cache", "cache"], cwd=tasks, env=offline, capture_output=True, text=True, check=False
        )
        assert not done.returncode, done.stderr
    runs = list((tasks / "out").rglob("*samples_vlm_choice.jsonl"))
    assert len(runs) == 2 * ("--force_simple" in more), done.stdout + done.stderr
    for run in runs:
        samples = [json.loads(line) for line in run.read_text(encoding="utf-8").splitlines()]
        assert [sample["acc"] for sample in samples] == [1.0, 1.0, 0.0]
        for sample, each in zip(samples, documents, strict=True):
            scores = probe.score(each["question"], each["choices"], image=each["image"])
            told = [float(value) for value, _ in sample["filtered_resps"]]
            np.testing.assert_allclose(told, scores.logprobs, atol=1e-4)
            assert sample["acc"] == float(scores.best == each["choices"][each["answer"]])
            lengths = [len(word) for word in each["choices"]]
            assert sample["acc_norm"] == float(np.argmax(scores.logprobs / lengths) == each["answer"])
    runs = list((tasks / "out").rglob("*samples_vlm_answer.jsonl"))
    assert len(runs) == 2
    for run in runs:
        texts = [json.loads(line)["filtered_resps"] for line in run.read_text(encoding="utf-8").splitlines()]
        greedy = {"max_new_tokens": 6, "do_sample": False}
        assert texts == [probe.generate(each["question"], image=each["image"], **greedy).text for each in documents]
