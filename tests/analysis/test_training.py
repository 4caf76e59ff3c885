"""The callback in a real fine-tuning run of a tiny checkpoint, and what it leaves behind: nothing."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from common import picture
from reference import chat, encode, extended
from transformers import Trainer, TrainingArguments

import vlmprobe
from vlmprobe import Request
from vlmprobe.analysis import uncertainty
from vlmprobe.analysis.training import ProbeCallback
from vlmprobe.errors import ResultError

QUESTION = "What is it?"
ANSWER = "yes"


@pytest.fixture
def model(own):
    return copy.deepcopy(own("qwen2_vl").model)


@pytest.fixture
def processor(own):
    return own("qwen2_vl").processor


@pytest.fixture
def dataset(own):
    """One question with its answer and end token, over and over; the loss is on the answer only."""
    model = own("qwen2_vl")
    prompt = encode(model, chat(QUESTION, picture()))
    end = model.model.generation_config.eos_token_id
    end = end if isinstance(end, int) else end[0]
    answer = [*model.processor.tokenizer.encode(ANSWER, add_special_tokens=False), end]
    row = extended(model, prompt, answer)
    labels = torch.full_like(row["input_ids"], -100)
    labels[0, -len(answer) :] = torch.tensor(answer)
    return [{**row, "labels": labels}] * 24


def trainer(model, processor, dataset, folder, **options):
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=1, learning_rate=5e-3, max_steps=12, report_to=[],
        logging_steps=6, save_strategy="no", use_cpu=True, remove_unused_columns=False, disable_tqdm=True, **options,
    )  # fmt: skip
    return Trainer(
        model, arguments, train_dataset=dataset, eval_dataset=dataset[:1], processing_class=processor,
        data_collator=lambda rows: dict(rows[0]),
    )  # fmt: skip


def questions():
    return [Request(QUESTION, picture(), id="known"), Request("And now?", picture(7))]


def test_confidence_is_logged_while_the_model_learns(model, processor, dataset, tmp_path):
    callback = ProbeCallback(
        questions(),
        [ANSWER, "something else"],
        on=("begin", "end"),
        every=4,
        probes={"says_yes": lambda probe: float(np.exp(probe.score(QUESTION, [ANSWER], picture()).logprobs[0]))},
        max_new_tokens=4,
    )
    runner = callback.attach(trainer(model, processor, dataset, tmp_path))
    runner.train()
    assert [each["step"] for each in callback.history] == [0, 4, 8, 12]  # the end is at a step that was asked already
    first, last = callback.history[0], callback.history[-1]
    assert set(first) >= {
        f"probe/{name}" for name in ("confidence", "accuracy", "ece", "brier", "says_yes", "perplexity")
    }
    assert last["probe/says_yes"] > 0.9 > first["probe/says_yes"]
    assert (first["probe/accuracy"], last["probe/accuracy"]) == (0.0, 0.5)
    # The trainer's own log has them at their steps, for whatever reports it.
    logged = [each for each in runner.state.log_history if "probe/confidence" in each]
    assert [each["step"] for each in logged] == [0, 4, 8, 12]
    assert logged[-1]["probe/says_yes"] == last["probe/says_yes"]
    # The last numbers are those of a probe of the model as it now is.
    probe = vlmprobe.wrap(model, processor)
    results = [probe.generate(each.question, each.image, do_sample=False, max_new_tokens=4) for each in questions()]
    assert last["probe/confidence"] == pytest.approx(np.mean([each.confidence for each in results]), abs=1e-5)
    assert last["probe/perplexity"] == pytest.approx(
        np.mean([uncertainty.perplexity(each) for each in results]), rel=1e-4
    )


def test_training_goes_on_as_if_it_had_not_been_asked(own, processor, dataset, tmp_path):
    losses, modes = [], []
    for asked in (False, True):
        model = copy.deepcopy(own("qwen2_vl").model)
        model.model.visual.eval()  # a frozen tower in evaluation mode must stay so
        torch.manual_seed(0)
        runner = trainer(model, processor, dataset, tmp_path, seed=1)
        callback = ProbeCallback(questions(), on=(), every=1, max_new_tokens=2)
        if asked:
            callback.attach(runner)
        model_modes = []
        original = runner.training_step

        def step(module, *rest, seen=model_modes, run=original, **more):
            seen.append([each.training for each in module.modules()])
            return run(module, *rest, **more)

        runner.training_step = step
        runner.train()
        losses.append([each["loss"] for each in runner.state.log_history if "loss" in each])
        modes.append(model_modes)
        assert len(callback.history) == (12 if asked else 0)
    assert losses[0] == losses[1]
    assert modes[0] == modes[1]


def test_evaluation_asks(model, processor, dataset, tmp_path):
    callback = ProbeCallback([QUESTION], on=("evaluate",), max_new_tokens=2)
    runner = trainer(model, processor, dataset, tmp_path)
    runner.add_callback(callback)  # without attach: only the history has the numbers
    runner.evaluate()
    assert [each["step"] for each in callback.history] == [0]
    assert "probe/accuracy" not in callback.history[0]
    assert not [each for each in runner.state.log_history if "probe/confidence" in each]


def test_asking_puts_every_module_back(model, processor):
    model.train()
    model.model.visual.eval()
    before = [module.training for module in model.modules()]
    numbers = ProbeCallback([QUESTION], max_new_tokens=2).ask(model, processor)
    assert [module.training for module in model.modules()] == before
    assert 0 < numbers["confidence"] <= 1


def test_what_cannot_be_asked_is_said_before_training():
    cases = [
        ({"questions": []}, "questions is empty"),
        ({"questions": ["a"], "answers": ["b", "c"]}, "2 answers do not match 1"),
        ({"questions": ["a"], "on": ("epochs",)}, "Did you mean epoch"),
        ({"questions": ["a"], "every": 0}, "at least 1"),
        ({"questions": ["a"], "measures": ("entropy_mean",)}, "There is no measure"),
    ]
    for options, said in cases:
        with pytest.raises(ResultError, match=said):
            ProbeCallback(**options)


def test_a_trainer_without_a_processor_is_told(model, processor, dataset, tmp_path):
    runner = trainer(model, None, dataset, tmp_path)
    ProbeCallback([QUESTION], max_new_tokens=2).attach(runner)
    with pytest.raises(ResultError, match="processing_class"):
        runner.train()
