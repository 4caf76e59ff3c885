"""``Probe.ask(think=)``: numbers against full forwards over prompt, thought and candidate; formats; wrong input.

No tiny model thinks, so a logits processor makes it end its thought where a test wants it.
"""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace
from types import SimpleNamespace
from weakref import WeakKeyDictionary

import numpy as np
import pytest
from common import GOLDEN, picture
from prompt_templates import CHATML, IMAGE, THINKING
from reference import chat, columns, encode, extended, forward
from rich.console import Console
from transformers import LogitsProcessor

import vlmprobe
from vlmprobe.adapter import Adapter
from vlmprobe.adapter.thought_format import ThoughtFormat, opens_thought, switched, thought_format
from vlmprobe.engines.base import Options
from vlmprobe.errors import AdapterError, CapabilityError, GenerationOptionError, VlmprobeWarning
from vlmprobe.inputs.begun import Begun
from vlmprobe.probe import ask
from vlmprobe.results.asked import Answers, Choice
from vlmprobe.results.files import load_result

QUESTION = "Is there a cat?"
OPTIONS = ["red", "blue sky", "green"]
SCENE = picture()
BUDGET = 7
MARKS = ("<think>", "</think>", "◁think▷", "◁/think▷", "<answer>")
OPEN = (  # a prompt that opens no thought, of a template that knows of none
    "{%- for m in messages %}<|im_start|>{{ m.role }}{{ '\\n' }}{%- for part in m.content %}"
    f"{{{{ part.text if part.type == 'text' else '{IMAGE}' }}}}{{%- endfor %}}<|im_end|>{{{{ '\\n' }}}}{{%- endfor %}}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)


@pytest.fixture(autouse=True)
def no_warnings_of_random_models():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VlmprobeWarning)
        yield


@pytest.fixture(scope="module")
def model_with(own):
    """Template, and whether the marks are tokens -> the same model and processor with them."""

    def made(template, marked=True):
        model, processor = own("qwen2_5_vl").model, copy.deepcopy(own("qwen2_5_vl").processor)
        processor.chat_template = processor.tokenizer.chat_template = template
        if marked:
            assert processor.tokenizer.add_tokens(list(MARKS)) == len(MARKS)
            assert len(processor.tokenizer) <= model.get_input_embeddings().weight.shape[0]
        return SimpleNamespace(name="qwen2_5_vl", model=model, processor=processor)

    return made


@pytest.fixture(scope="module")
def thinker(model_with):
    return model_with(THINKING)


@pytest.fixture(scope="module")
def probe(thinker):
    return vlmprobe.wrap(thinker.model, thinker.processor, name="thinker")


class Writes(LogitsProcessor):
    """Makes the model write given ids from a step on."""

    def __init__(self, prompt: int, step: int, ids: list[int]) -> None:
        self.start, self.ids = prompt + step, ids

    def __call__(self, input_ids, scores):
        at = input_ids.shape[1] - self.start
        if 0 <= at < len(self.ids):
            scores = scores.clone().fill_(-1e9)
            scores[:, self.ids[at]] = 0
        return scores


def prompt_of(own, question, image=None):
    images = [] if image is None else [image]
    text = own.processor.apply_chat_template(chat(question, *images), add_generation_prompt=True, tokenize=False)
    return text, own.processor(text=text, images=images or None, return_tensors="pt")


def ids_of(own, text):
    return own.processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def logprob(own, given, before: list[int], text: str) -> float:
    """Of a text after a prompt and further ids, by one forward of the model over all of it."""
    made = ids_of(own, text)
    rows = forward(own, extended(own, given, [*before, *made]))[-len(made) - 1 : -1]
    return float(columns(rows, np.array(made))["logprobs"].sum())


def require_own(answer, own, question, closing, image=None):
    """Every number of the thought, and of each spelling, is that of the model's own forward."""
    _, given = prompt_of(own, question, image)
    thought = answer.thought
    drawn = thought.output.ids.tolist()
    opening = ids_of(own, thought.opening)
    start = given["input_ids"].shape[1] + len(opening)
    rows = forward(own, extended(own, given, [*opening, *drawn]))[start - 1 : -1]
    own_columns = columns(rows, np.array(drawn))
    np.testing.assert_allclose(thought.output.logprobs, own_columns["logprobs"], atol=1e-4)
    assert thought.mean_logprob == pytest.approx(own_columns["logprobs"].mean(), abs=1e-4)
    assert thought.mean_confidence == pytest.approx(np.exp(own_columns["logprobs"].mean()), abs=1e-4)
    assert thought.least_sure == int(own_columns["logprobs"].argmin())
    assert thought.closing == closing
    before = [*opening, *drawn, *ids_of(own, closing)]
    for text, found, table in zip(
        answer.spellings.candidates, answer.spellings.logprobs, answer.spellings.tables, strict=True
    ):
        assert found == pytest.approx(logprob(own, given, before, text), abs=1e-4)
        assert int(table.positions[0]) == given["input_ids"].shape[1] + len(before)


# -- numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marked", [True, False], ids=["tokens", "texts"])
def test_answers_are_scored_after_a_thought_that_the_model_closes(model_with, marked):
    own = model_with(THINKING, marked)
    probe = vlmprobe.wrap(own.model, own.processor, name="thinker")
    _, given = prompt_of(own, QUESTION, SCENE)
    end = Writes(given["input_ids"].shape[1], 4, ids_of(own, "</think>"))
    think = {"max_new_tokens": 30, "do_sample": False, "logits_processor": [end]}
    answer = probe.ask(QUESTION, SCENE, options=OPTIONS, think=think)
    assert isinstance(answer, Choice)
    assert answer.thought.ended == "closed"
    assert len(answer.thought) == 4 + len(ids_of(own, "</think>"))
    assert "think" not in answer.thought.text
    assert not answer.thought.cut
    require_own(answer, own, QUESTION, "\n\n", SCENE)
    assert answer.meta["thought"] == {"tokens": len(answer.thought), "ended": "closed", "budget": 30}


@pytest.mark.parametrize("image", [None, SCENE], ids=["text", "image"])
def test_a_thought_that_is_cut_is_closed_as_the_template_closes_it(probe, thinker, image):
    answer = probe.ask(QUESTION, image, options=OPTIONS, think=BUDGET)
    assert answer.thought.cut
    assert len(answer.thought) == BUDGET
    require_own(answer, thinker, QUESTION, "\n</think>\n\n", image)
    plain = probe.generate(QUESTION, image, max_new_tokens=BUDGET, do_sample=False)
    np.testing.assert_array_equal(answer.thought.output.ids, plain.output.ids)


def test_a_model_that_ends_its_answer_within_the_thought(probe, thinker):
    _, given = prompt_of(thinker, QUESTION)
    end = Writes(given["input_ids"].shape[1], 3, [thinker.processor.tokenizer.eos_token_id])
    think = {"max_new_tokens": 30, "do_sample": False, "logits_processor": [end]}
    answer = probe.ask(QUESTION, options=OPTIONS, think=think)
    assert (answer.thought.ended, len(answer.thought)) == ("stopped", 3)
    require_own(answer, thinker, QUESTION, "\n</think>\n\n")


def test_several_questions_think_in_one_batch_each_as_alone(probe, monkeypatch):
    asked = {"cat": "Is there a cat?", "hue": ("Which colour is it, as far as you can tell?", OPTIONS)}
    alone = {
        "cat": probe.ask(asked["cat"], SCENE, think=BUDGET),
        "hue": probe.ask(asked["hue"][0], SCENE, options=OPTIONS, think=BUDGET),
    }
    sizes = []
    generate = type(probe.engine).generate

    def counted(self, conversations, *rest):
        sizes.append(len(conversations))
        return generate(self, conversations, *rest)

    monkeypatch.setattr(type(probe.engine), "generate", counted)
    together = probe.ask(asked, SCENE, think=BUDGET)
    assert sizes == [2]
    assert isinstance(together, Answers)
    for name, answer in together.items():
        np.testing.assert_array_equal(answer.thought.output.ids, alone[name].thought.output.ids)
        np.testing.assert_allclose(answer.logprobs, alone[name].logprobs, atol=1e-4)
    frame = together.to_pandas()
    assert frame["thought_tokens"].tolist() == [BUDGET, BUDGET]
    assert frame["thought_confidence"].tolist() == [each.thought.mean_confidence for each in together.values()]


def test_thoughts_of_different_lengths_share_a_batch(probe, thinker):
    """The prompts of other images are padded on their left to one length, thoughts included."""
    length = prompt_of(thinker, QUESTION, SCENE)[1]["input_ids"].shape[1]
    end = Writes(length, 2, ids_of(thinker, "</think>"))
    options = {"options": {"A": ["A"], "B": ["B"]}}
    short = probe.ask(QUESTION, SCENE, think={"max_new_tokens": 9, "logits_processor": [end]}, **options)
    long = probe.ask(QUESTION, picture(seed=2), think=9, **options)
    conversations = []
    for answer, image in ((short, SCENE), (long, picture(seed=2))):
        plain = probe.conversation(QUESTION, image)
        ids = (*answer.thought.output.ids.tolist(), *ids_of(thinker, answer.thought.closing))
        text = "".join(answer.thought.output.tokens) + answer.thought.closing
        conversations.append(replace(plain, begun=Begun("", ids, text)))
    requests = [vlmprobe.Request(each, [], candidates=["A", "B"]) for each in conversations]
    both = list(probe.score_many(requests, batch_size=2))
    assert both[0].meta["batch_size"] == 2
    np.testing.assert_allclose(both[0].logprobs, short.spellings.logprobs, atol=1e-4)
    np.testing.assert_allclose(both[1].logprobs, long.spellings.logprobs, atol=1e-4)


def test_each_order_of_letters_has_a_thought_of_its_own(probe, thinker):
    answer = probe.ask("Which?", options=OPTIONS, by="letters", rotate="all", think=3)
    assert answer.by_order.shape == (3, 3)
    lines = "Which?\nA. red\nB. blue sky\nC. green\nAnswer with the option's letter from the given choices directly."
    _, given = prompt_of(thinker, lines)
    rows = forward(thinker, extended(thinker, given, answer.thought.output.ids.tolist()))
    assert answer.thought.output.ids.tolist() == rows[given["input_ids"].shape[1] - 1 : -1].argmax(-1).tolist()
    once = probe.ask("Which?", options=OPTIONS, by="letters", think=3)
    np.testing.assert_allclose(answer.by_order[0], once.logprobs, atol=1e-4)


def test_a_session_asks_about_its_image(probe):
    with probe.session(SCENE) as session:
        first, again = (session.ask(QUESTION, options=OPTIONS, think=4) for _ in range(2))
    fresh = probe.ask(QUESTION, SCENE, options=OPTIONS, think=4)
    np.testing.assert_allclose(first.logprobs, fresh.logprobs, atol=1e-4)
    np.testing.assert_allclose(again.logprobs, fresh.logprobs, atol=1e-4)


@pytest.mark.parametrize("name", ["mllama", "paligemma", "gemma3", "internvl", "qwen2_vl"])
def test_what_has_begun_belongs_to_the_prompt(probe_of, own, name):
    """Of one prompt, and of two in a left-padded batch: by full forwards over prompt, beginning and candidate."""
    probe, asked = probe_of(name), ["Is there a cat?", "Is there a bird in it, or a fish?"]
    beginnings = [probe.tokenizer(each, add_special_tokens=False)["input_ids"] for each in ("I look at it.", "Yes:")]
    conversations = [
        replace(probe.conversation(question, picture(seed=place)), begun=Begun("", tuple(ids), "..."))
        for place, (question, ids) in enumerate(zip(asked, beginnings, strict=True))
    ]
    requests = [vlmprobe.Request(each, [], candidates=["a", "b"]) for each in conversations]
    together = list(probe.score_many(requests, batch_size=2))
    generated = list(probe.generate_many(requests, batch_size=2, max_new_tokens=3, do_sample=False))
    for place, (conversation, ids) in enumerate(zip(conversations, beginnings, strict=True)):
        given = encode(own(name), chat(asked[place], picture(seed=place)))
        alone = probe.score(conversation, ["a", "b"])
        tokens = [int(table.ids[0]) for table in alone.tables]
        row = forward(own(name), extended(own(name), given, ids))[-1]
        expected = [columns(row[None], np.array([each]))["logprobs"][0] for each in tokens]
        np.testing.assert_allclose(alone.logprobs, expected, atol=1e-4)
        np.testing.assert_allclose(together[place].logprobs, expected, atol=1e-4)
        assert generated[place].input_ids.tolist() == [*given["input_ids"][0].tolist(), *ids]
        assert generated[place].output.ids[0] == row.argmax()
        assert generated[place].output.logprobs[0] == pytest.approx(
            columns(row[None], np.array([row.argmax()]))["logprobs"][0], abs=1e-4
        )


def test_an_original_format_thinks_too():
    """By one run over given ids, of the prompt that its own code writes for thinking."""
    probe = vlmprobe.load(GOLDEN / "minicpmv-4.5", dtype="float32", device="cpu", check=False)
    answer = probe.ask(QUESTION, SCENE, options=["red", "blue"], think=6)
    on = probe.conversation(QUESTION, SCENE, chat_template_kwargs={"enable_thinking": True})
    closing = probe.tokenizer(answer.thought.closing, add_special_tokens=False)["input_ids"]
    before = [*answer.thought.output.ids.tolist(), *closing]
    for text, found in zip(answer.spellings.candidates, answer.spellings.logprobs, strict=True):
        made = probe.tokenizer(text, add_special_tokens=False)["input_ids"]
        (table,) = probe.engine.score_ids([on], [*before, *made], Options())
        assert found == pytest.approx(table.logprobs[len(before) :].sum(), abs=1e-4)
    off = probe.ask(QUESTION, SCENE, think=False)
    assert off.meta["chat_template_kwargs"] == {"enable_thinking": False}


def test_an_adapter_that_leaves_the_thought_out_is_found_out(probe, monkeypatch):
    encode = type(probe.engine.adapter).encode

    def without(self, conversations):
        return encode(self, [replace(each, begun=Begun()) for each in conversations])

    monkeypatch.setattr(Adapter, "encode", without)
    with pytest.raises(AdapterError, match=r"leaves out Conversation\.begun.*with_begun"):
        probe.ask(QUESTION, SCENE, think=4)


# -- without a thought --------------------------------------------------------------------------------------


def test_thinking_is_turned_off_by_the_variable_of_the_template(model_with):
    own = model_with(CHATML)
    probe = vlmprobe.wrap(own.model, own.processor, name="switch")
    off = probe.ask(QUESTION, SCENE, think=False)
    by_hand = probe.ask(QUESTION, SCENE, chat_template_kwargs={"enable_thinking": False})
    np.testing.assert_allclose(off.logprobs, by_hand.logprobs, atol=1e-6)
    assert off.meta["chat_template_kwargs"] == {"enable_thinking": False}
    assert off.thought is None
    with pytest.raises(GenerationOptionError, match="contradict"):
        probe.ask(QUESTION, SCENE, think=False, chat_template_kwargs={"enable_thinking": True})
    with pytest.raises(GenerationOptionError, match="contradict"):
        probe.ask(QUESTION, SCENE, think=5, chat_template_kwargs={"enable_thinking": False})


def test_without_a_variable_an_empty_thought_is_written_as_the_template_writes_it(probe, thinker):
    """Its tokens are those of the whole text: the line breaks of an empty thought may be one token."""
    text, _ = prompt_of(thinker, QUESTION)
    given = thinker.processor(text=text + "\n</think>\n\n", return_tensors="pt")
    answer = probe.ask(QUESTION, options=OPTIONS, think=False)
    for each, found in zip(answer.spellings.candidates, answer.spellings.logprobs, strict=True):
        assert found == pytest.approx(logprob(thinker, given, [], each), abs=1e-4)
    assert answer.meta["thought"] == {"tokens": 0, "ended": "off"}
    zero = probe.ask(QUESTION, options=OPTIONS, think=0)
    np.testing.assert_allclose(zero.logprobs, answer.logprobs, atol=1e-6)


def test_by_default_the_prompt_is_that_of_the_template(probe, thinker):
    _, given = prompt_of(thinker, QUESTION)
    answer = probe.ask(QUESTION, options=OPTIONS)
    for each, found in zip(answer.spellings.candidates, answer.spellings.logprobs, strict=True):
        assert found == pytest.approx(logprob(thinker, given, [], each), abs=1e-4)
    assert answer.thought is None


def test_answers_within_an_opened_thought_are_told(thinker, monkeypatch):
    monkeypatch.setattr(ask, "_TOLD", WeakKeyDictionary())
    probe = vlmprobe.wrap(thinker.model, thinker.processor, name="thinker")
    with pytest.warns(VlmprobeWarning, match=r"opens a thought.*think=256.*think=False"):
        answer = probe.ask(QUESTION, SCENE, options=OPTIONS)
    assert "The prompt opens a thought, so they were scored as the beginning of that" in answer.note
    assert answer.meta["thought"] == {"opened": True}
    assert "opens a thought" not in probe.ask(QUESTION, SCENE, options=OPTIONS, think=False).note


# -- how thoughts are written -------------------------------------------------------------------------------

HARMONY = (
    "{%- for m in messages %}{%- if m.reasoning_content %}"
    "<|start|>assistant<|channel|>analysis<|message|>{{ m.reasoning_content }}<|end|>{%- endif %}"
    "<|start|>{{ m.role }}{{ '<|channel|>final' if m.role == 'assistant' }}<|message|>"
    f"{{%- for part in m.content %}}{{{{ part.text if part.type == 'text' else '{IMAGE}' }}}}{{%- endfor %}}"
    "<|end|>{%- endfor %}{%- if add_generation_prompt %}<|start|>assistant{%- endif %}"
)
# As that of Qwen3, which strips thoughts of earlier turns, with a switch and without reasoning_content.
SWITCH = (
    OPEN + "{%- if add_generation_prompt and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
)
EXPECTED = {
    "thinking": (THINKING, ThoughtFormat("", "</think>", "\n</think>\n\n")),
    "reasoning": (CHATML, ThoughtFormat("<think>", "</think>", "</think>")),
    "harmony": (
        HARMONY,
        ThoughtFormat(
            "<|channel|>analysis<|message|>", "<|end|>", "<|end|><|start|>assistant<|channel|>final<|message|>"
        ),
    ),
    "switch": (SWITCH, ThoughtFormat("<think>\n", "</think>", "\n</think>\n\n")),
    # As that of Gemma 4, whose prompt closes an empty thought unless thinking is turned on.
    "channel": (
        OPEN + "{%- if add_generation_prompt and enable_thinking is not true %}"
        "{{ '<|channel>thought\\n<channel|>' }}{%- endif %}",
        ThoughtFormat("<|channel>thought\n", "<channel|>", "<channel|>"),
    ),
    # As that of GLM-4.5: the line break before the thought is not in the prompt.
    "break": (
        CHATML.replace("<think>{{", "{{ '\\n<think>' }}{{").replace("}}</think>", "}}{{ '</think>\\n' }}"),
        ThoughtFormat("\n<think>", "</think>", "</think>\n"),
    ),
    # As that of Apriel 1.6: the marks are words, and the prompt begins the thought.
    "words": (
        OPEN.replace(
            "{%- for part in", "{{ m.reasoning_content + '\\n[FINAL]\\n' if m.reasoning_content }}{%- for part in"
        ).replace("assistant\\n", "assistant\\nHere are my steps:\\n"),
        ThoughtFormat("", "[FINAL]", "\n[FINAL]\n"),
    ),
    "tokens": (OPEN, ThoughtFormat("<think>", "</think>", "</think>")),
    "named": ("{# ◁think▷ #}" + OPEN, ThoughtFormat("◁think▷", "◁/think▷", "◁/think▷")),
    "opened": (OPEN.replace("assistant\\n", "assistant\\n<think>"), ThoughtFormat("", "</think>", "</think>")),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_template_and_the_tokenizer_tell_how_a_thought_is_written(model_with, name):
    template, expected = EXPECTED[name]
    own = model_with(template)
    if name == "harmony":
        own.processor.tokenizer.add_tokens(["<|end|>"], special_tokens=True)
    probe = vlmprobe.wrap(own.model, own.processor, name=name)
    asked = switched(probe.engine.adapter, probe.conversation(QUESTION, SCENE), True)
    assert thought_format(probe.engine.adapter, asked) == expected
    assert opens_thought(probe.engine.adapter, asked) == (not expected.opening)


def test_the_mark_that_a_given_end_goes_with_is_written_too(model_with):
    """As for Kimi-VL, whose template and tokenizer tell of no thought."""
    own = model_with(OPEN, marked=False)
    probe = vlmprobe.wrap(own.model, own.processor, name="kimi")
    off = probe.ask(QUESTION, options=OPTIONS, think=False, think_end="◁/think▷")
    _, given = prompt_of(own, QUESTION)
    for each, found in zip(off.spellings.candidates, off.spellings.logprobs, strict=True):
        assert found == pytest.approx(logprob(own, given, ids_of(own, "◁think▷◁/think▷"), each), abs=1e-4)


def test_a_thought_that_the_prompt_does_not_open_is_opened(model_with):
    own = model_with(CHATML)
    probe = vlmprobe.wrap(own.model, own.processor, name="opens")
    answer = probe.ask(QUESTION, SCENE, options=OPTIONS, think=5)
    assert answer.thought.opening == "<think>"
    require_own(answer, own, QUESTION, "</think>", SCENE)


def test_the_end_of_a_thought_can_be_given(model_with):
    own = model_with(OPEN)
    probe = vlmprobe.wrap(own.model, own.processor, name="tags")
    answer = probe.ask(QUESTION, options=OPTIONS, think=5, think_end="</think><answer>")
    assert answer.thought.opening == "<think>"
    require_own(answer, own, QUESTION, "</think><answer>")


def test_what_is_not_known_is_an_error_that_names_what_to_pass():
    probe = vlmprobe.load("demo")
    for think in (False, 5):
        with pytest.raises(CapabilityError, match=r"not known how this model writes a thought.*think_end='</think>'"):
            probe.ask(QUESTION, SCENE, think=think)
    answer = probe.ask(QUESTION, SCENE, think=5, think_end=" so:")
    assert answer.thought.closing.strip() == "so:" or answer.thought.ended == "closed"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"think": True}, "how many tokens"),
        ({"think": -1}, "how many tokens"),
        ({"think": 1.5}, "how many tokens"),
        ({"think": "256"}, "how many tokens"),
        ({"think": {"temperature": 1}}, "max_new_tokens"),
        ({"think": {"max_new_tokens": 5, "stop_strings": ["x"]}}, "stop_strings"),
        ({"think_end": "</think>"}, "think=256"),
        ({"think": 5, "think_end": " "}, "ends a thought"),
    ],
)
def test_wrong_arguments_are_told(probe, arguments, told):
    with pytest.raises(GenerationOptionError, match=told):
        probe.ask(QUESTION, SCENE, **arguments)


def test_methods_without_a_thought_name_the_one_that_has(probe):
    for method in (probe.yes_no, lambda *asked, **more: probe.score_many([asked], ["a"], **more)):
        with pytest.raises(TypeError, match=r"think= is one of probe\.ask"):
            method(QUESTION, SCENE, think=5)


def test_an_answer_that_is_continued_has_no_new_thought(probe):
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "It is"}]
    with pytest.raises(GenerationOptionError, match="continues one"):
        probe.ask(messages, think=5)


# -- what is seen and kept ----------------------------------------------------------------------------------


def test_an_answer_after_a_thought_prints_saves_and_shows_it_folded(probe, tmp_path):
    answer = probe.ask(QUESTION, SCENE, think=BUDGET)
    assert str(answer).endswith("7 tokens of thought, cut at its budget)")
    assert repr(answer.thought).startswith("Thought('")
    loaded = load_result(answer.save(tmp_path / "answer.safetensors"))
    assert type(loaded) is type(answer)
    assert loaded.thought.to_dict() == answer.thought.to_dict()
    assert str(loaded) == str(answer)
    several = probe.ask({"a": QUESTION, "b": ("Which?", OPTIONS)}, SCENE, think=3)
    again = load_result(several.save(tmp_path / "several"))
    assert [each.thought.text for each in again.values()] == [each.thought.text for each in several.values()]
    told = json.loads(answer.to_json())["thought"]
    assert (told["ended"], len(told["tokens"])) == ("budget", BUDGET)
    assert "<summary>Thought of 7 tokens, cut at its budget" in answer.to_html()
    console = Console(width=100, record=True)
    console.print(answer)
    console.print(several)
    text = " ".join(console.export_text().split())
    assert "after a thought of 7 tokens, cut at its budget" in text
    assert text.count("3 tokens, cut at its") == 2
