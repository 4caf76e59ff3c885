"""How a prompt is written: template arguments, tools, raw prompts, a last message that is judged.

The other path is the processor's own ``apply_chat_template`` or call, and the model's own forward of what it returns.
"""

from __future__ import annotations

import copy
import json
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from common import GOLDEN, QUESTION, picture
from prompt_templates import CHATML, GUARD, IMAGE
from reference import chat, columns, extended, forward

import vlmprobe
from vlmprobe.analysis.compare import compare
from vlmprobe.analysis.image_contrast import contrast
from vlmprobe.analysis.logit_lens import lens
from vlmprobe.analysis.yes_no import yes_no_many
from vlmprobe.errors import CapabilityError, CheckpointError, GenerationOptionError, MessageError, VlmprobeWarning
from vlmprobe.inputs.prompt_format import PROMPT_OPTIONS
from vlmprobe.results.files import load_result
from vlmprobe.testing import tiny

SCENE = picture()
OFF = {"enable_thinking": False}
NEW = {"do_sample": False, "max_new_tokens": 3, "min_new_tokens": 3}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather.", "parameters": {"type": "object"}},
}
CALL = {"type": "function", "id": "c1", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
CLOSE = 2e-4


def with_template(own, template):
    """The same model, with a copy of its processor that has another chat template, or none."""
    processor = copy.copy(own.processor)
    processor.tokenizer = copy.copy(processor.tokenizer)
    processor.chat_template = processor.tokenizer.chat_template = template
    return SimpleNamespace(name=own.name, model=own.model, processor=processor)


@pytest.fixture(scope="module")
def reader(own):
    """A model whose template reads all of it."""
    return with_template(own("qwen2_5_vl"), CHATML)


@pytest.fixture(scope="module")
def probe(reader):
    return vlmprobe.wrap(reader.model, reader.processor, name="reader")


@pytest.fixture(scope="module")
def unread(own):
    """A probe whose template reads contents and nothing else."""
    return vlmprobe.wrap(own("llava").model, own("llava").processor, name="llava")


def inputs(own, messages, **arguments):
    """What the processor makes of messages, whose texts are lists of parts, as vlmprobe gives them."""
    parted = [
        {**each, "content": [{"type": "text", "text": each["content"]}]}
        if isinstance(each.get("content"), str)
        else {**each, "content": each.get("content") or []}
        for each in messages
    ]
    arguments = {"add_generation_prompt": True, **arguments}
    return own.processor.apply_chat_template(parted, tokenize=True, return_dict=True, return_tensors="pt", **arguments)


def require_own(result, own, given):
    """The prompt's ids, and every number of prompt and answer, are those of the model's own forward."""
    ids = given["input_ids"][0].tolist()
    assert result.input_ids.tolist() == ids
    made = result.output.ids.tolist()
    rows = forward(own, extended(own, given, made))
    expected = columns(rows[len(ids) - 1 : -1], np.array(made))
    np.testing.assert_allclose(result.output.logprobs, expected["logprobs"], atol=CLOSE)
    seen = ~np.isnan(result.prompt.logprobs)
    before = columns(rows[result.prompt.positions[seen] - 1], result.prompt.ids[seen])
    np.testing.assert_allclose(result.prompt.logprobs[seen], before["logprobs"], atol=CLOSE)


# Arguments of the template


def test_arguments_reach_the_template_in_every_call(probe, reader):
    given = inputs(reader, chat(QUESTION, SCENE), **OFF)
    ids = given["input_ids"][0].tolist()
    assert ids != inputs(reader, chat(QUESTION, SCENE))["input_ids"][0].tolist()
    asked = {"chat_template_kwargs": OFF}
    result = probe.generate(QUESTION, SCENE, **asked, **NEW)
    require_own(result, reader, given)
    with probe.stream(QUESTION, SCENE, **asked, **NEW) as stream:
        list(stream)
    assert stream.result.input_ids.tolist() == ids
    scores = probe.score(QUESTION, ["cat", "dog"], SCENE, **asked)
    for text, table in zip(("cat", "dog"), scores.tables, strict=True):
        more = reader.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        rows = forward(reader, extended(reader, given, more))[len(ids) - 1 : -1]
        np.testing.assert_allclose(table.logprobs, columns(rows, np.array(more))["logprobs"], atol=CLOSE)
    assert scores.meta["chat_template_kwargs"] == OFF
    plain = probe.yes_no(QUESTION, SCENE)
    off = probe.yes_no(QUESTION, SCENE, **asked)
    assert off.meta["chat_template_kwargs"] == OFF
    assert off.logprobs.tolist() != plain.logprobs.tolist()
    sampled = probe.sample(QUESTION, SCENE, n=2, max_new_tokens=2, **asked)
    assert all(each.input_ids.tolist() == ids for each in sampled.results)


def test_arguments_for_all_calls_of_a_probe_and_of_a_session(probe, reader):
    given = inputs(reader, chat(QUESTION, SCENE), **OFF)["input_ids"][0].tolist()
    plain = inputs(reader, chat(QUESTION, SCENE))["input_ids"][0].tolist()
    wrapped = vlmprobe.wrap(reader.model, reader.processor, chat_template_kwargs=OFF)
    session = probe.session(SCENE, chat_template_kwargs=OFF)
    both = wrapped.session(SCENE)
    for asked, image in ((wrapped, SCENE), (session, None), (both, None)):
        assert asked.generate(QUESTION, image, max_new_tokens=1).input_ids.tolist() == given
        on = asked.generate(QUESTION, image, chat_template_kwargs={"enable_thinking": True}, max_new_tokens=1)
        assert on.input_ids.tolist() == plain
    # Analyses build their conversations as the methods do.
    assert lens(wrapped, QUESTION, SCENE, max_new_tokens=1).result.input_ids.tolist() == given
    compared = contrast(wrapped, QUESTION, SCENE, max_new_tokens=2)
    for told, image in ((compared.answer, SCENE), (compared.tables[0], compared.variants[0])):
        seen = inputs(reader, chat(QUESTION, image), **OFF)
        rows = forward(reader, extended(reader, seen, told.ids.tolist()))[seen["input_ids"].shape[1] - 1 : -1]
        np.testing.assert_allclose(told.logprobs, columns(rows, told.ids)["logprobs"], atol=CLOSE)


def test_a_loaded_probe_takes_them(checkpoint, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text(CHATML, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of the checks at load too
        probe = vlmprobe.load(
            checkpoint("qwen2_5_vl"), device="cpu", chat_template=file, chat_template_kwargs=OFF, tools=[TOOL]
        )
    result = probe.generate(QUESTION, SCENE, max_new_tokens=1)
    written = "".join(result.prompt.tokens)
    assert "get_weather" in written
    assert written.endswith("<think>\n\n</think>\n\n")
    assert result.meta["chat_template"] == CHATML
    assert result.meta["tools"] == [TOOL]


@pytest.mark.parametrize("of_row", [True, False])
def test_requests_have_their_own(probe, reader, of_row):
    """Requests that are written differently share no batch, and each has the numbers of its single call."""
    rows = [{"question": f"{QUESTION} {place}", "image": SCENE} for place in range(4)]
    for row in rows[::2]:
        row |= {"chat_template_kwargs": OFF} if of_row else {}
    more = {} if of_row else {"chat_template_kwargs": OFF}
    results = list(probe.generate_many(rows, **more, **NEW))
    for place, (row, result) in enumerate(zip(rows, results, strict=True)):
        off = OFF if not of_row or place % 2 == 0 else {}
        require_own(result, reader, inputs(reader, chat(row["question"], SCENE), **off))
        assert result.meta.get("chat_template_kwargs", {}) == off
    request = vlmprobe.Request(QUESTION, SCENE, tools=[TOOL])
    assert next(iter(probe.generate_many([request], max_new_tokens=1))).meta["tools"] == [TOOL]
    asked = [{"question": "Is it a cat?", "image": SCENE, "chat_template_kwargs": OFF}]
    assert next(iter(yes_no_many(probe, asked, progress=False))).meta["chat_template_kwargs"] == OFF


def test_tables_and_comparisons_have_them(probe, reader):
    frame = pd.DataFrame({"question": [QUESTION] * 2, "image": [SCENE] * 2, "chat_template_kwargs": [OFF, None]})
    off, plain = (inputs(reader, chat(QUESTION, SCENE), **more)["input_ids"][0].tolist() for more in (OFF, {}))
    results = list(probe.generate_many(frame, max_new_tokens=1))
    assert [each.input_ids.tolist() for each in results] == [off, plain]
    assert "chat_template_kwargs" not in results[1].meta
    unread = [{"question": QUESTION, "chat_template_kwargs": {"mood": 1}}, {"question": QUESTION, "raw_prompt": 3}]
    failures = list(probe.generate_many(unread, on_error="keep"))
    assert [type(each.error) for each in failures] == [CapabilityError, GenerationOptionError]
    requests = [
        {"question": QUESTION, "image": SCENE, "chat_template_kwargs": OFF},
        {"question": QUESTION, "image": SCENE, "candidates": ["cat", "dog"], "tools": [TOOL]},
    ]
    other = vlmprobe.wrap(reader.model, reader.processor, chat_template=CHATML)
    compared = compare(probe, other, requests, max_new_tokens=2, progress=False)
    assert compared.max_abs < 1e-5
    chosen = compared.requests[0].rows.a
    answer = probe.generate(QUESTION, SCENE, chat_template_kwargs=OFF, max_new_tokens=2, do_sample=False)
    np.testing.assert_allclose(chosen, answer.output.logprobs, atol=1e-5)
    scored = probe.score(QUESTION, ["cat", "dog"], SCENE, tools=[TOOL])
    np.testing.assert_allclose(compared.requests[1].rows.a, np.concatenate([each.logprobs for each in scored.tables]))


def test_documents_are_ranked_by_prompts_written_so(reader):
    wrapped = vlmprobe.wrap(reader.model, reader.processor, chat_template_kwargs=OFF)
    ranking = wrapped.rank("a cat", ["a dog"], yes="a", no="b", template="{query}? {document}", progress=False)
    row = forward(reader, inputs(reader, chat("a cat? a dog"), **OFF))[-1]
    one, other = (reader.processor.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in "ab")
    np.testing.assert_allclose(ranking.margins[0], row[one] - row[other], atol=CLOSE)
    assert ranking.meta["chat_template_kwargs"] == OFF


def test_an_argument_that_no_template_reads_is_an_error(probe, unread):
    told = "does not read enable_thinkin of chat_template_kwargs.*It reads enable_thinking"
    for ask in (
        lambda **more: probe.generate(QUESTION, **more),
        lambda **more: probe.score(QUESTION, ["a", "b"], **more),
        lambda **more: probe.stream(QUESTION, **more),
        lambda **more: list(probe.generate_many([{"question": QUESTION, **more}])),
        lambda **more: probe.session(**more).generate(QUESTION),
    ):
        with pytest.raises(CapabilityError, match=told):
            ask(chat_template_kwargs={"enable_thinkin": False})
    with pytest.raises(CapabilityError, match="no variable of a caller"):
        unread.generate(QUESTION, chat_template_kwargs=OFF)
    with pytest.raises(GenerationOptionError, match=r"pass chat_template_kwargs=\{'enable_thinking': False\}"):
        probe.generate(QUESTION, enable_thinking=False)


def test_a_set_variable_and_a_generation_block_are_understood(own):
    template = (
        "{% set mood = mood | default('calm') %}"
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{% generation %}{{ m.content[0].text }}{% endgeneration %}{% endfor %}{{ mood }}"
    )
    probe = vlmprobe.wrap(own("llava").model, own("llava").processor, chat_template=template)
    result = probe.generate("Hello", max_new_tokens=1, chat_template_kwargs={"mood": "glad"})
    assert "".join(result.prompt.tokens).endswith("Helloglad")
    with pytest.raises(CapabilityError, match=r"It reads mood\."):
        probe.generate("Hello", chat_template_kwargs={"moods": "glad"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chat_template_kwargs": ["a"]}, "must be a mapping such as"),
        ({"chat_template_kwargs": {"tools": []}}, "it is given as tools="),
        ({"chat_template_kwargs": {"messages": []}}, "it comes from the messages"),
        ({"chat_template_kwargs": {"enable_thinking": object()}}, "must hold what JSON can hold"),
        ({"tools": TOOL}, "tools must be a list"),
        ({"tools": ["get_weather"]}, "tools, number 0, is str, neither a function nor a schema"),
        ({"tools": [lambda city: city]}, "tools, number 0: "),
        ({"raw_prompt": "yes"}, "raw_prompt must be True or False"),
        ({"continue_final_message": 1}, "continue_final_message must be True or False"),
        ({"chat_template": "{% for %}"}, "is not a Jinja template: line 1"),
        ({"chat_template": "absent.jinja"}, "the file 'absent.jinja' cannot be read"),
        ({"chat_template": 3}, "the text of a template or the path of a file, not 3"),
        ({"chat_template": CHATML, "raw_prompt": True}, "leave out chat_template="),
    ],
)
def test_invalid_options(probe, options, message):
    for ask in (probe.generate, lambda question, **more: vlmprobe.Request(question, **more)):
        with pytest.raises(GenerationOptionError, match=message):
            ask(QUESTION, **options)
    with pytest.raises(TypeError, match="no argument 'temperature'"):
        probe.score(QUESTION, ["a", "b"], temperature=1.0)


# Tools, calls and reasoning


def test_tools_reach_the_template(probe, reader, unread):
    def get_weather(city: str) -> str:
        """The weather.

        Args:
            city: its name.
        """
        return city

    for tool in (TOOL, get_weather):
        result = probe.generate(QUESTION, SCENE, tools=[tool], **NEW)
        require_own(result, reader, inputs(reader, chat(QUESTION, SCENE), tools=[tool]))
    assert result.meta["tools"][0]["function"]["parameters"]["required"] == ["city"]
    with pytest.raises(CapabilityError, match="writes no tools, so tools= would be dropped"):
        unread.generate(QUESTION, tools=[TOOL])


def test_the_template_of_tools_is_taken_as_transformers_does(own):
    reader = with_template(own("qwen2_5_vl"), {"default": "{{ messages[0].content[0].text }}", "tool_use": CHATML})
    probe = vlmprobe.wrap(reader.model, reader.processor)
    written = probe.generate(QUESTION, tools=[TOOL], max_new_tokens=1).input_ids.tolist()
    only = with_template(reader, CHATML)
    assert written == inputs(only, chat(QUESTION), tools=[TOOL])["input_ids"][0].tolist()


@pytest.mark.parametrize("content", ["Let me look.", None])
def test_calls_and_answers_of_tools(probe, reader, content):
    """jundot/omlx#788: calls did not reach the template."""
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": content, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "name": "get_weather", "content": "Rain."},
    ]
    result = probe.generate(messages, tools=[TOOL], **NEW)
    require_own(result, reader, inputs(reader, messages, tools=[TOOL]))
    written = "".join(result.prompt.tokens)
    assert '"city": "Paris"' in written
    assert "<|im_start|>tool\nRain." in written
    if content is None:
        del messages[1]["content"]
        assert probe.generate(messages, tools=[TOOL], **NEW).input_ids.tolist() == result.input_ids.tolist()


@pytest.mark.parametrize(
    "answer",
    ["{{ m.content if m.content is string else m.content | tojson }}", "{{ m.content }}", "{{ m.content + '' }}"],
)
def test_the_answer_of_a_tool_is_a_string_where_the_template_wants_one(own, answer):
    """Llama's templates write a list as JSON: the parts themselves would stand in the prompt."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'tool' %}" + answer + ""
        "{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}"
        "{{ m.tool_calls | tojson if m.tool_calls }}"
        "<|im_end|>\n{% endfor %}"
    )
    reader = with_template(own("qwen2_5_vl"), template)
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Wait.", "tool_calls": [CALL]},
        {"role": "tool", "content": "Rain."},
    ]
    probe = vlmprobe.wrap(reader.model, reader.processor)
    written = "".join(probe.generate(messages, max_new_tokens=1).prompt.tokens)
    assert written.endswith("<|im_start|>tool\nRain.<|im_end|>\n")


def test_reasoning_reaches_the_template(probe, reader):
    """vllm-project/vllm#38488: reasoning_content was dropped."""
    messages = [
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "reasoning_content": "I add them.", "content": "It is"},
    ]
    result = probe.generate(messages, **NEW)
    require_own(result, reader, inputs(reader, messages, add_generation_prompt=False, continue_final_message=True))
    assert "<think>I add them.</think>It is" in "".join(result.prompt.tokens)
    # Its template leaves out that of an earlier turn, which is told.
    with pytest.warns(
        VlmprobeWarning, match="Message 1: the chat template reads 'reasoning_content', and leaves it out"
    ):
        result = probe.generate([*messages, {"role": "user", "content": "Sure?"}], max_new_tokens=1)
    assert "<think>" not in "".join(result.prompt.tokens)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (
            [{"role": "assistant", "content": "b", "tool_calls": [CALL]}],
            "Message 1: the chat template does not write 'too",
        ),
        ([{"role": "assistant", "content": "b", "reasoning_content": "c"}], "does not write 'reasoning_content'"),
        ([{"role": "assistant", "content": "b"}, {"role": "tool", "content": "c"}], "messages of role 'tool'"),
    ],
)
def test_what_the_template_does_not_write_is_an_error(own, messages, message):
    template = (
        "{% for m in messages if m.role != 'tool' %}<|im_start|>{{ m.role }}\n{{ m.content[0].text }}<|im_end|>\n"
        "{% endfor %}{# tool_calls, reasoning_content #}"
    )
    probe = vlmprobe.wrap(own("qwen2_5_vl").model, own("qwen2_5_vl").processor, chat_template=template)
    whole = [{"role": "user", "content": "a"}, *messages, {"role": "user", "content": "d"}]
    with pytest.raises(CapabilityError, match=message):
        probe.generate(whole, max_new_tokens=1)


# Base models


@pytest.fixture(scope="module")
def base(own):
    """Mllama as its base release is: its processor has no chat template."""
    return with_template(own("mllama"), None)


@pytest.fixture(scope="module")
def base_probe(base):
    return vlmprobe.wrap(base.model, base.processor)


def plain(own, text, *images):
    """The processor's own call."""
    return dict(own.processor(text=text, **({"images": [list(images)]} if images else {}), return_tensors="pt"))


def test_a_base_model_without_a_template_names_both_ways(base_probe):
    for ask in (base_probe.generate, lambda *asked: base_probe.score(*asked[:1], ["a", "b"], *asked[1:])):
        with pytest.raises(CheckpointError, match="--chat-template FILE or --raw-prompt") as caught:
            ask(QUESTION, SCENE)
        assert "pass chat_template= (the text of one, or a file) or raw_prompt=True" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "written", "images"),
    [
        ("If I had to write a haiku for this one", "<|image|>If I had to write a haiku for this one", 1),
        ("<|image|><|begin_of_text|>A haiku:", "<|image|><|begin_of_text|>A haiku:", 1),
        ("Before <|image|> after", "Before <|image|> after", 1),
        ("First <|image|>, second <|image|>:", "First <|image|>, second <|image|>:", 2),
        ("Two:", "<|image|><|image|>Two:", 2),
        ("Once upon a time {{ x }} {%", "Once upon a time {{ x }} {%", 0),
    ],
)
def test_a_raw_prompt_is_the_text_as_written(base, base_probe, text, written, images):
    """With the placeholder of an image where the text has it, else before the text, where image= puts images."""
    pictures = [picture(seed) for seed in range(images)]
    result = base_probe.generate(text, pictures or None, raw_prompt=True, **NEW)
    require_own(result, base, plain(base, written, *pictures))
    assert result.meta["raw_prompt"] is True
    scores = base_probe.score(text, [" one", " two"], pictures or None, raw_prompt=True)
    given = plain(base, written, *pictures)
    more = base.processor.tokenizer(" one", add_special_tokens=False)["input_ids"]
    rows = forward(base, extended(base, given, more))[given["input_ids"].shape[1] - 1 : -1]
    np.testing.assert_allclose(scores.logprobs[0], columns(rows, np.array(more))["logprobs"].sum(), atol=CLOSE)


def test_images_of_a_raw_prompt_are_where_their_parts_are(base, base_probe):
    parts = [{"type": "text", "text": "A "}, {"type": "image", "image": SCENE}, {"type": "text", "text": " shows"}]
    result = base_probe.generate([{"role": "user", "content": parts}], raw_prompt=True, **NEW)
    require_own(result, base, plain(base, "A <|image|> shows", SCENE))


def test_raw_prompts_in_a_batch(base, base_probe):
    texts = ["A haiku:", "If I had to write a haiku for this one, it would be"]
    rows = [{"question": text, "image": SCENE, "raw_prompt": True} for text in texts]
    for text, result in zip(texts, base_probe.generate_many(rows, **NEW), strict=True):
        require_own(result, base, plain(base, f"<|image|>{text}", SCENE))


def test_wrong_raw_prompts(base_probe, probe):
    with pytest.raises(MessageError, match=r"has <\|image\|> 2 times, and 1 images"):
        base_probe.generate("<|image|><|image|>A haiku:", SCENE, raw_prompt=True)
    with pytest.raises(CapabilityError, match="which has no image: Found 1"):
        base_probe.generate("<|image|>A haiku:", raw_prompt=True)
    turns = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(MessageError, match="A raw prompt is one text"):
        base_probe.generate(turns, raw_prompt=True)
    for more in ({"chat_template_kwargs": OFF}, {"tools": [TOOL]}):
        with pytest.raises(CapabilityError):
            probe.generate(QUESTION, raw_prompt=True, **more)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "internvl", "idefics3", "qianfan_ocr", "emu3"])
def test_a_rendered_prompt_asked_for_raw_is_the_same_prompt(probe_of, name):
    """What the template writes, written by the caller; and the placeholder is the one that the template writes."""
    probe = probe_of(name)
    result = probe.generate(QUESTION, SCENE, max_new_tokens=1)
    written = probe.engine.adapter.render([probe.conversation(QUESTION, SCENE)])[0]
    raw = probe.generate(written, SCENE, raw_prompt=True, max_new_tokens=1)
    assert raw.input_ids.tolist() == result.input_ids.tolist()
    np.testing.assert_allclose(raw.output.logprobs, result.output.logprobs, atol=1e-5)
    spans = [probe.engine.adapter.encode([each]).prompts[0].spans for each in (
        probe.conversation(QUESTION, SCENE), probe.conversation(QUESTION, SCENE, raw_prompt=True)
    )]  # fmt: skip
    assert len(spans[0]) == len(spans[1]) > 0


@pytest.mark.parametrize("name", ["gemma3", "qwen2_5_vl", "llava"])
def test_the_placeholder_of_a_processor_without_a_template(own, name):
    """Gemma 3's text has the token that begins an image, most others' the token of an image."""
    bare = with_template(own(name), None)
    probe = vlmprobe.wrap(bare.model, bare.processor)
    mark = {"gemma3": "<start_of_image>", "qwen2_5_vl": "<|image_pad|>", "llava": "<image>"}[name]
    result = probe.generate("A haiku:", SCENE, raw_prompt=True, max_new_tokens=1)
    assert result.input_ids.tolist() == plain(bare, f"{mark}A haiku:", SCENE)["input_ids"][0].tolist()


def test_a_placeholder_that_nobody_knows(own):
    bare = with_template(own("pp_chart2table"), None)
    with pytest.raises(CapabilityError, match="write it into the raw prompt where the image is"):
        vlmprobe.wrap(bare.model, bare.processor).generate("Data:", SCENE, raw_prompt=True)


@pytest.mark.parametrize("form", ["text", "path", "name", "json"])
def test_a_template_in_place_of_none(base, base_probe, tmp_path, form):
    template = base.processor.tokenizer.bos_token + (
        "{% for m in messages %}{{ m.role }}: {% for p in m.content %}"
        "{{ '<|image|>' if p.type == 'image' else p.text }}{% endfor %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    file = tmp_path / "chat_template.json" if form == "json" else tmp_path / "chat.jinja"
    file.write_text(json.dumps({"chat_template": template}) if form == "json" else template, encoding="utf-8")
    given = {"text": template, "name": str(file)}.get(form, file)
    result = base_probe.generate(QUESTION, SCENE, chat_template=given, **NEW)
    require_own(result, base, inputs(with_template(base, template), chat(QUESTION, SCENE)))
    assert result.meta["chat_template"] == template


def test_load_of_a_base_model(checkpoint, tmp_path, monkeypatch):
    """The checks at load ask as the probe will ask."""
    folder = tiny.build("mllama", tmp_path / "base")
    for file in folder.glob("chat_template*"):
        file.unlink()
    held = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    held.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(held), encoding="utf-8")
    monkeypatch.setenv("VLMPROBE_CHECK", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe = vlmprobe.load(folder, device="cpu", raw_prompt=True)
    assert probe.generate("A haiku:", SCENE, max_new_tokens=1).meta["raw_prompt"] is True
    with pytest.warns(VlmprobeWarning, match="has no chat template, as base models have none: pass chat_template="):
        vlmprobe.load(folder, device="cpu")


# A last message that is judged


@pytest.fixture(scope="module")
def guard(own):
    return with_template(own("mllama"), GUARD)


TURNS = [
    {"role": "user", "content": [{"type": "text", "text": "How is it made?"}, {"type": "image", "image": SCENE}]},
    {"role": "assistant", "content": [{"type": "text", "text": " Like this. "}]},
]
JUDGE = {"continue_final_message": False}


def test_the_prompt_of_the_guard(guard):
    written = guard.processor.apply_chat_template(TURNS, tokenize=False)
    begin, told, end = written.partition("<BEGIN CONVERSATION>\n\nUser: How is it made?\n\nAgent: Like this.\n\n")
    assert begin.startswith(
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|image|> Task: Check if there"
    )
    assert "unsafe content in 'Agent' messages" in begin
    assert "\nS1: Violent Crimes.\nS2: Non-Violent Crimes.\n" in begin
    assert told
    assert end.startswith("<END CONVERSATION>\n\nProvide your safety assessment for ONLY THE LAST Agent message in the")
    assert end.endswith("list of violated categories. <|eot_id|><|start_header_id|>assistant<|end_header_id|>")


def test_a_guard_judges_an_answer(guard):
    probe = vlmprobe.wrap(guard.model, guard.processor)
    given = inputs(guard, TURNS)
    result = probe.generate(TURNS, **JUDGE, **NEW)
    require_own(result, guard, given)
    assert "".join(result.prompt.tokens).endswith("<|eot_id|><|start_header_id|>assistant<|end_header_id|>")
    assert result.meta["continue_final_message"] is False
    ids = given["input_ids"][0].tolist()
    scores = probe.score(TURNS, ["safe", "unsafe"], **JUDGE)
    for text, table in zip(("safe", "unsafe"), scores.tables, strict=True):
        more = guard.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        rows = forward(guard, extended(guard, given, more))[len(ids) - 1 : -1]
        np.testing.assert_allclose(table.logprobs, columns(rows, np.array(more))["logprobs"], atol=CLOSE)
    many = list(probe.generate_many([{"question": TURNS, **JUDGE}, TURNS[:1]], **NEW))
    require_own(many[0], guard, given)
    require_own(many[1], guard, inputs(guard, TURNS[:1]))
    with probe.session(**JUDGE) as session:
        assert session.generate(TURNS, **NEW).input_ids.tolist() == ids
    less = {"excluded_category_keys": ["S1"]}
    require_own(probe.generate(TURNS, **JUDGE, chat_template_kwargs=less, **NEW), guard, inputs(guard, TURNS, **less))


def test_by_default_an_answer_is_continued(probe, reader):
    messages = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "It is"}]
    begun = inputs(reader, messages, add_generation_prompt=False, continue_final_message=True)
    for more in ({}, {"continue_final_message": True}):
        require_own(probe.generate(messages, **more, **NEW), reader, begun)
    require_own(probe.generate(messages, **JUDGE, **NEW), reader, inputs(reader, messages))
    with pytest.raises(MessageError, match="needs an 'assistant' message at the end, not one of 'user'"):
        probe.generate(messages[:1], continue_final_message=True)


# What results keep


def test_a_saved_result_can_be_asked_for_again(probe, reader, tmp_path):
    messages = chat(QUESTION, SCENE)
    asked = {"chat_template_kwargs": OFF, "tools": [TOOL], "chat_template": CHATML + " "}
    result = probe.generate(messages, **asked, **NEW)
    result.save(tmp_path / "saved")
    kept = load_result(tmp_path / "saved")
    again = {name: kept.meta[name] for name in PROMPT_OPTIONS if name in kept.meta}
    assert again == {**asked, "tools": [TOOL]}
    assert probe.generate(messages, **again, **NEW).input_ids.tolist() == result.input_ids.tolist()
    bare = probe.generate(messages, **NEW)
    assert not set(PROMPT_OPTIONS) & set(bare.meta)


def test_a_branch_is_asked_as_its_result_was(probe, reader):
    result = probe.generate(QUESTION, SCENE, chat_template_kwargs=OFF, **NEW)
    other = int(result.output.top_ids[1][1])
    branched = probe.branch(result, 1, other, **NEW)
    assert branched.input_ids.tolist() == result.input_ids.tolist()
    assert branched.meta["chat_template_kwargs"] == OFF
    # Also by a probe that asks otherwise, and by one that asks with arguments for a result without.
    off = vlmprobe.wrap(reader.model, reader.processor, chat_template_kwargs=OFF)
    bare = probe.generate(QUESTION, SCENE, **NEW)
    assert off.branch(bare, 1, other, **NEW).input_ids.tolist() == bare.input_ids.tolist()
    with pytest.raises(GenerationOptionError, match="chat_template_kwargs is no option of generation"):
        probe.branch(result, 1, other, chat_template_kwargs=OFF)


def test_an_answer_to_another_prompt_is_refused(probe):
    result = probe.generate(QUESTION, SCENE, chat_template_kwargs=OFF, **NEW)
    with pytest.raises(MessageError, match="their prompts differ"):
        lens(probe, QUESTION, SCENE, answer=result)
    with probe.session(chat_template_kwargs=OFF) as session:
        lens(session, QUESTION, SCENE, answer=result)


# Families with prompts of their own


def test_families_without_templates(own):
    named = own("blip_2")
    probe = vlmprobe.wrap(named.model, named.processor)
    asked = probe.generate(QUESTION, SCENE, max_new_tokens=1)
    raw = probe.generate(QUESTION, SCENE, raw_prompt=True, max_new_tokens=1)
    assert raw.input_ids.tolist() == asked.input_ids.tolist()
    for more in ({"chat_template_kwargs": OFF}, {"tools": [TOOL]}):
        with pytest.raises(CapabilityError, match="asked without a chat template, so nothing reads"):
            probe.generate(QUESTION, SCENE, **more)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content[-1].text }}{% endfor %}{{ mood }}"
    told = probe.generate(QUESTION, SCENE, chat_template=template, chat_template_kwargs={"mood": "!"}, max_new_tokens=1)
    assert told.meta["chat_template"] == template
    assert "".join(told.prompt.tokens).endswith(f"user: {QUESTION}!")


@pytest.mark.parametrize("case", ["internvl2-qwen2", "minicpmv-2.6", "omnilmm"])
def test_original_formats_refuse(case):
    probe = vlmprobe.load(GOLDEN / case, device="cpu")
    for name, value in {
        "chat_template_kwargs": OFF,
        "tools": [TOOL],
        "raw_prompt": True,
        "chat_template": CHATML,
    }.items():
        unread = "enable_thinking" if name == "chat_template_kwargs" else name
        with pytest.raises(CapabilityError, match=f"as its original code does, which reads no {unread}: leave it out"):
            probe.generate("Hello", SCENE, **{name: value})
    called = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [CALL]}]
    with pytest.raises(CapabilityError, match="reads no tool_calls, messages of role 'tool'"):
        probe.generate([*called, {"role": "tool", "content": "c"}])


@pytest.mark.parametrize("case", ["internvl2-qwen2", "minicpmv-2.6", "omnilmm"])
def test_original_formats_judge_an_answer(case):
    """A second answer begins as the answer to a further question does, after the first one."""
    probe = vlmprobe.load(GOLDEN / case, device="cpu")
    turns = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "It is red"}]
    render = [
        probe.engine.adapter.encode([probe.conversation(messages, **more)]).prompts[0].text
        for messages, more in ((turns[:1], {}), (turns, JUDGE), ([*turns, {"role": "user", "content": "Why?"}], {}))
    ]
    alone, judged, asked = render
    assert judged.startswith(f"{alone}It is red")
    begins = asked[len(asked) - len(asked.rpartition("Why?")[2]) :]
    answer = judged.rpartition("It is red")[2]
    assert begins.endswith(answer[-8:])
    assert asked.startswith(judged[: judged.rindex("It is red") + len("It is red")])


def test_thinking_of_minicpmv_4_5_in_a_call():
    probe = vlmprobe.load(GOLDEN / "minicpmv-4.5", device="cpu")
    for thinking, end in ((True, "assistant\n<think>\n"), (False, "assistant\n<think>\n\n</think>\n\n")):
        result = probe.generate("Why?", chat_template_kwargs={"enable_thinking": thinking}, max_new_tokens=1)
        assert "".join(result.prompt.tokens).endswith(end)
    with pytest.raises(
        CapabilityError, match=r"reads no mood: leave it out; chat_template_kwargs may hold enable_thinking"
    ):
        probe.generate("Why?", chat_template_kwargs={"mood": 1})


def test_the_placeholder_of_this_template(reader):
    assert vlmprobe.wrap(reader.model, reader.processor).engine.adapter.image_text == IMAGE


def test_an_option_that_the_template_does_not_read_is_no_fault_of_the_adapter(checkpoint, monkeypatch):
    monkeypatch.setenv("VLMPROBE_CHECK", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # load warned that the numbers of the model cannot be trusted
        with pytest.raises(CapabilityError, match="does not read enable_thinking"):
            vlmprobe.load(checkpoint("llava"), device="cpu", chat_template_kwargs=OFF)
