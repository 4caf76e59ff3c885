"""Nothing is dropped or made up between a conversation and the model: placeholders in texts, templates that refuse."""

from __future__ import annotations

import io

import jinja2
import numpy as np
import pytest
from common import QUESTION, families, picture
from reference import chat, columns, encode, forward

from vlmprobe.analysis.heads import answer_states
from vlmprobe.analysis.image_contrast import contrast
from vlmprobe.analysis.logit_lens import lens
from vlmprobe.errors import CapabilityError, MessageError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.testing import tiny

FEW = ("gemma3", "aya_vision", "qwen2_5_vl", "mllama")  # of which two mark images with other ids than processors check
CALL = {"max_new_tokens": 2, "do_sample": False}
FURTHER = {"ovis2": ("<IMG_START>", "<IMG_COL>"), "idefics2": ("<image>",), "molmo2": ("<im_patch>",)}


def named(name: str) -> str:
    """The image placeholder as the checkpoint's config and tokenizer write it."""
    own = {"mllama": "<|image|>", "gemma3": "<image_soft_token>", "aya_vision": "<|IMG_PATCH|>"}
    return own.get(name, "<|image_pad|>")


def asked(text: str, *, role: str = "user", image=None) -> list[dict]:
    """A conversation one of whose messages is the text."""
    parts = [] if image is None else [{"type": "image", "image": image}]
    turns = {
        "system": [{"role": "system", "content": text}, {"role": "user", "content": [*parts, text_part(QUESTION)]}],
        "user": [{"role": "user", "content": [*parts, text_part(text)]}],
        "assistant": [
            {"role": "user", "content": [*parts, text_part(QUESTION)]},
            {"role": "assistant", "content": text},
            {"role": "user", "content": "Why?"},
        ],
    }
    return turns[role]


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


# A text that spells an image


@pytest.mark.parametrize("image", [None, picture()], ids=["without an image", "with an image"])
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize("name", FEW)
def test_a_text_that_spells_a_placeholder_is_refused(name, role, image, probe_of):
    """It used to become an image row without an image, or one row more than the image has."""
    mark = named(name)
    with pytest.raises(MessageError, match=r"contains.*image placeholder") as caught:
        probe_of(name).generate(asked(f"What does {mark} mean?", role=role, image=image), **CALL)
    assert mark in str(caught.value)
    assert str(caught.value).startswith(f"Message {['system', 'assistant'].index(role) if role != 'user' else 0}")
    assert probe_of(name).generate(QUESTION, image, **CALL).output.logprobs.size  # nothing is left behind


@pytest.mark.parametrize("name", families())
def test_no_spelling_of_a_special_token_is_an_image_row(name, probe_of):
    """Every token of the vocabulary that is no text, alone in a question without an image."""
    adapter = probe_of(name).engine.adapter
    if not tiny.family(name).text_only:
        pytest.skip("it needs an image")
    plain = adapter.encode([Conversation.build("What is < b >?")])
    assert plain.prompts[0].spans == ()
    spelt = {*adapter.tokenizer.all_special_tokens, *map(str, adapter.tokenizer.added_tokens_decoder.values())}
    refused = set()
    for mark in sorted(spelt, key=str):
        try:
            prompt = adapter.encode([Conversation.build(f"What is {mark}?")]).prompts[0]
        except (MessageError, CapabilityError):
            refused.add(mark)
            continue
        assert prompt.spans == (), mark
        assert not adapter.image_ids.intersection(prompt.ids.tolist()), mark
    assert refused


@pytest.mark.parametrize("name", FURTHER)
def test_every_placeholder_of_a_family_is_known(name, probe_of):
    for mark in FURTHER[name]:
        for image in (None, picture()):
            with pytest.raises(MessageError, match=mark):
                probe_of(name).generate(f"What is {mark}?", image, **CALL)


@pytest.mark.parametrize("name", FEW)
def test_written_differently_it_is_text(name, own, probe_of):
    """As the message advises: the numbers are those of the model's own forward of that text."""
    question = f"What does {named(name)[0]} {named(name)[1:]} mean?"
    result = probe_of(name).generate(question, **CALL)
    rows = forward(own(name), encode(own(name), chat(question)))
    assert "image" not in result.prompt.kinds
    expected = columns(rows[:-1], result.input_ids[1:])
    assert np.abs(result.prompt.logprobs[1:] - expected["logprobs"]).max() < 1e-4


def test_one_of_a_batch_is_refused_too(probe_of):
    requests = [{"question": QUESTION, "image": picture()}, {"question": "What is <image_soft_token>?"}]
    found = list(probe_of("gemma3").generate_many(requests, on_error="keep", batch_size=2, progress=False, **CALL))
    assert "image" in found[0].prompt.kinds
    assert isinstance(found[1].error, MessageError)


@pytest.mark.parametrize("name", FEW)
def test_an_answer_holds_no_image(name, probe_of):
    """Its placeholder would take a feature of the prompt's image, or fail within the model."""
    probe, image, mark = probe_of(name), picture(), named(name)
    held = max(probe.engine.adapter.image_ids)
    result = probe.generate(QUESTION, image, **CALL)
    says = f"The answer contains .*{held}"
    with pytest.raises(MessageError, match=says):
        probe.score(QUESTION, ["a tiger", f"a {mark} tiger"], image)
    with pytest.raises(MessageError, match=says):
        probe.score(QUESTION, {"tiger": ["tiger"], "other": [mark]}, image)
    for token in (held, [5, held]):
        with pytest.raises(MessageError, match=says):
            probe.branch(result, 1, token, **CALL)
    with pytest.raises(MessageError, match=says):
        probe.branch(result, 0, f"a {mark}", **CALL)
    for answer in ([held], [5, held, 6], f"a {mark}"):
        for call in (contrast, lens, answer_states):
            with pytest.raises(MessageError, match=says):
                call(probe, QUESTION, image=image, answer=answer)


# Templates


def templated(checkpoint, template: str):
    """A probe of a tiny checkpoint with another chat template."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import vlmprobe

    folder = checkpoint("llava")
    processor = AutoProcessor.from_pretrained(folder)
    processor.chat_template = template
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
    return vlmprobe.wrap(model, processor)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses this conversation: roles must alternate"),
        ("{% if messages|length == 1 %}{{ raise_exception('no system') }}{% endif %}", "refuses.*: no system"),
        ("{% for message in messages %}{{ message", "refuses this conversation: unexpected end of template"),
        ("{{ messages[7].content.text }}", "refuses this conversation: .*has no element 7"),
        ("{{ 'USER: ' + messages[0].content }}", "cannot render this conversation .TypeError"),
        ("{{ messages[0].content.strip().split(5) }}", "refuses this conversation: .*no attribute 'strip'"),
    ],
)
@pytest.mark.parametrize("image", [None, picture()], ids=["without an image", "with an image"])
def test_an_error_of_the_chat_template_is_told_as_such(template, says, image, checkpoint):
    """It used to be put down to a conversation without an image."""
    probe = templated(checkpoint, template)
    for where, call in (
        ("", lambda: probe.generate("Hi", image, **CALL)),
        ("", lambda: probe.score("Hi", ["yes", "no"], image)),
        ("request 0: ", lambda: list(probe.generate_many([("Hi")], progress=False, **CALL))),
    ):
        with pytest.raises(CapabilityError, match=rf"^{where}The chat template of llava {says}") as caught:
            call()
        assert "image" not in str(caught.value).partition("this conversation")[0]
        assert isinstance(caught.value.__cause__, (jinja2.TemplateError, TypeError))


def test_a_template_that_writes_an_image_for_none_is_no_image_row(checkpoint):
    probe = templated(checkpoint, "USER: <image>\n{{ messages[0].content[-1].text }} ASSISTANT:")
    with pytest.raises(CapabilityError, match=r"<image>"):
        probe.generate("Hi", **CALL)
    assert "image" in probe.generate("Hi", picture(), **CALL).prompt.kinds


def test_a_key_of_an_image_part_is_named_with_its_message(probe_of):
    odd = {"type": "image", "image": picture(), "caption": "A tiger"}
    messages = [*asked("Hi"), {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": [odd]}]
    with pytest.raises(CapabilityError, match=r"^Message 2: .* image option caption"):
        probe_of("llava").generate(messages, **CALL)


# Open files through the calls


def png(image) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file


def test_open_files_through_every_call(probe_of, own):
    """Each call reads the file anew, and its numbers are those of the image."""
    probe, image, file = probe_of("llava"), picture(), png(picture())
    rows = forward(own("llava"), encode(own("llava"), chat(QUESTION, image)))
    inputs = encode(own("llava"), chat(QUESTION, image))["input_ids"][0].numpy()
    expected = columns(rows[:-1], inputs[1:])["logprobs"]

    def right(result) -> None:
        text = [row for row, kind in enumerate(result.prompt.kinds) if kind != "image" and row]
        places = result.prompt.positions[text] - 1
        assert np.abs(result.prompt.logprobs[text] - expected[places]).max() < 1e-4

    right(probe.generate(QUESTION, file, **CALL))
    right(probe.generate(asked(QUESTION, image=file), **CALL))
    for result in probe.generate_many([{"question": QUESTION, "image": file}] * 2, progress=False, **CALL):
        right(result)
    with probe.session(file) as session:
        right(session.generate(QUESTION, **CALL))
    with probe.stream(QUESTION, file, **CALL) as tokens:
        list(tokens)
    right(tokens.result)
    assert probe.score(QUESTION, ["yes", "no"], file).best == probe.score(QUESTION, ["yes", "no"], image).best
    same, other = (
        probe.rank("a", [each, {"image": each, "text": "b"}, [each, "c"]], yes="y", no="n", progress=False)
        for each in (file, image)
    )
    np.testing.assert_allclose(same.margins, other.margins, atol=1e-6)
    samples = [probe.sample(QUESTION, each, n=2, max_new_tokens=2) for each in (file, image)]
    assert samples[0].texts == samples[1].texts
    found, wanted = (
        contrast(probe, QUESTION, image=first, answer="a tiger", against=[second, "blank"])
        for first, second in ((file, png(picture(2))), (image, picture(2)))
    )
    for one, two in zip(found.tables, wanted.tables, strict=True):
        np.testing.assert_allclose(one.logprobs, two.logprobs, atol=1e-6)


def test_a_document_keeps_its_text(probe_of):
    with pytest.raises(MessageError, match="Document 0 has int under 'text'"):
        probe_of("llava").rank("a tiger", [{"image": picture(), "text": 5}], progress=False)
