"""A result given as an answer belongs to its prompt and its images: any other is refused before the model runs."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from common import QUESTION, picture
from counting import counting
from PIL import Image
from reference import chat, columns, encode, extended, forward

import vlmprobe
from vlmprobe.analysis.decoding import ImageContrast
from vlmprobe.analysis.heads import answer_states
from vlmprobe.analysis.image_contrast import contrast
from vlmprobe.analysis.logit_lens import lens
from vlmprobe.errors import CapabilityError, MessageError
from vlmprobe.inputs.images import digest
from vlmprobe.results.result import Result

OPTIONS = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
LARGE = (700, 600)  # of which a result keeps a thumbnail only
WAYS = {
    "contrast": lambda probe, question, image, result: contrast(probe, question, image, answer=result),
    "lens": lambda probe, question, image, result: lens(probe, question, image, answer=result),
    "heads": lambda probe, question, image, result: answer_states(probe, question, image, answer=result),
    "branch": lambda probe, question, image, result: probe.branch(
        result, 1, int(result.output.ids[1]), question=question, image=image, **OPTIONS
    ),
}


def own_logprobs(own, messages, ids) -> np.ndarray:
    inputs = encode(own, messages)
    start = inputs["input_ids"].shape[1]
    rows = forward(own, extended(own, inputs, list(ids)))[start - 1 : start - 1 + len(ids)]
    return columns(rows, np.array(ids))["logprobs"]


def one_pixel_changed(image: Image.Image) -> Image.Image:
    changed = image.copy()
    changed.putpixel((3, 2), tuple((each + 1) % 256 for each in image.getpixel((3, 2))))
    return changed


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl"])
def test_an_answer_about_another_image_of_the_same_size_is_refused(probe_of, name, way, tmp_path):
    probe, image, other = probe_of(name), picture(1), picture(9)
    result = probe.generate(QUESTION, image, **OPTIONS)
    loaded = vlmprobe.load_result(result.save(tmp_path / "answer.safetensors"))
    adapter = probe.engine.adapter
    for each in (result, loaded):
        for wrong in (other, one_pixel_changed(image)):
            with (
                counting(adapter.model, adapter.layers) as count,
                pytest.raises(MessageError, match="image 0 has other pixels"),
            ):
                WAYS[way](probe, QUESTION, wrong, each)
            assert not count.positions, "the model ran before the answer was refused"
        WAYS[way](probe, QUESTION, image, each)


@pytest.mark.parametrize("way", WAYS)
def test_other_images_and_prompts_are_refused(probe_of, way):
    probe, first, second = probe_of("qwen2_5_vl"), picture(1), picture(2)
    ask = WAYS[way]
    result = probe.generate(QUESTION, [first, second], **OPTIONS)
    ask(probe, QUESTION, [first, second], result)
    with pytest.raises(MessageError, match="image 0 has other pixels"):
        ask(probe, QUESTION, [second, first], result)
    with pytest.raises(MessageError, match="image 1 has other pixels"):
        ask(probe, QUESTION, [first, first], result)
    with pytest.raises(MessageError, match=r"\(48, 40\), \(48, 40\)\].*\[\(48, 40\)\]"):
        ask(probe, QUESTION, first, result)
    with pytest.raises(MessageError, match=r"\(40, 48\)"):
        ask(probe, QUESTION, [first, second.transpose(Image.Transpose.ROTATE_90)], result)
    with pytest.raises(MessageError, match="their prompts differ"):
        ask(probe, "What is this?", [first, second], result)
    with pytest.raises(MessageError, match="their prompts differ"):  # the same question after other messages
        ask(probe, [{"role": "system", "content": "Be terse."}, *chat(QUESTION, first, second)], None, result)
    with pytest.raises(MessageError, match="about no image"):
        ask(probe, QUESTION, [first], probe.generate(QUESTION, **OPTIONS))


@pytest.mark.parametrize("way", WAYS)
def test_images_that_a_result_keeps_only_as_thumbnails(probe_of, way):
    probe, image, other = probe_of("llava"), picture(1, *LARGE), picture(9, *LARGE)
    result = probe.generate(QUESTION, image, **OPTIONS)
    with pytest.raises(MessageError, match="image 0 has other pixels"):
        WAYS[way](probe, QUESTION, other, result)
    WAYS[way](probe, QUESTION, image, result)


@pytest.mark.parametrize("way", WAYS)
def test_a_result_saved_before_digests_is_compared_by_what_it_holds(probe_of, way):
    probe = probe_of("llava")
    for size in ((48, 40), LARGE):
        image, other = picture(1, *size), picture(9, *size)
        result = probe.generate(QUESTION, image, **OPTIONS)
        former = {name: value for name, value in result.meta.items() if name != "image_digests"}
        result = replace(result, meta=former)
        WAYS[way](probe, QUESTION, image, result)
        if size == LARGE:
            WAYS[way](probe, QUESTION, other, result)  # only their sizes are known
            continue
        with pytest.raises(MessageError, match="image 0 has other pixels"):
            WAYS[way](probe, QUESTION, other, result)


def test_a_session_about_another_image_refuses_a_result(probe_of):
    result = probe_of("llava").generate(QUESTION, picture(1, *LARGE), **OPTIONS)
    session = probe_of("llava").session(picture(9, *LARGE))
    for ask in WAYS.values():
        with pytest.raises(MessageError, match="image 0 has other pixels"):
            ask(session, None if ask is WAYS["branch"] else QUESTION, None, result)


def test_a_contrast_is_of_the_model_as_it_is_and_not_as_it_answered(checkpoint):
    """The numbers with the image were taken from the result, those without it from the changed model."""
    from types import SimpleNamespace

    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder, image, other = checkpoint("llava"), picture(1), picture(2)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
    own = SimpleNamespace(name="llava", model=model, processor=AutoProcessor.from_pretrained(folder))
    probe = vlmprobe.wrap(model, own.processor)
    result = probe.generate(QUESTION, image, **OPTIONS)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.5)
    found = contrast(probe, QUESTION, image, answer=result, against=[other])
    ids = result.output.ids.tolist()
    real, replaced = (own_logprobs(own, chat(QUESTION, each), ids) for each in (image, other))
    np.testing.assert_allclose(found.answer.logprobs, real, atol=1e-4)
    np.testing.assert_allclose(found.gain[0], real - replaced, atol=1e-4)
    assert np.abs(real - result.output.logprobs).max() > 1e-2


def test_what_is_recorded_of_images(probe_of, tmp_path):
    probe, image = probe_of("llava"), picture(1)
    pixels = np.asarray(image)
    expected = hashlib.blake2b(b"(48, 40)" + pixels.tobytes(), digest_size=16).hexdigest()
    image.save(tmp_path / "a.png")
    with probe.session(image) as session:
        found = [
            *(probe.generate(QUESTION, each, **OPTIONS) for each in (image, pixels, tmp_path / "a.png")),
            *probe.generate_many([{"question": QUESTION, "image": image}] * 2, progress=False, **OPTIONS),
            *probe.sample(QUESTION, image, n=2, max_new_tokens=2),
            probe.stream(QUESTION, image, **OPTIONS).result,
            lens(probe, QUESTION, image, **OPTIONS).result,
            session.generate(QUESTION, **OPTIONS),
            probe.score(QUESTION, ["a", "b"], image),
            probe.yes_no(QUESTION, image, yes=["a"], no=["b"]),
            contrast(probe, QUESTION, image, answer="a"),
        ]
    assert [each.meta["image_digests"] for each in found] == [[expected]] * len(found)
    assert "image_digests" not in probe.generate(QUESTION, **OPTIONS).meta
    twice = probe.generate(QUESTION, [image, picture(2)], **OPTIONS)
    assert twice.meta["image_digests"] == [expected, digest(picture(2))]


def test_a_digest_tells_shapes_with_the_same_bytes_apart():
    pixels = np.arange(36, dtype=np.uint8)
    shapes = [Image.fromarray(pixels.reshape(shape)) for shape in ((3, 4, 3), (4, 3, 3), (2, 6, 3))]
    assert len({digest(each) for each in shapes}) == 3


def test_every_engine_records_the_images(probe_of):
    answer = probe_of("llava").generate(QUESTION, picture(), **OPTIONS)

    class Server:
        def check(self, conversations, options): ...

        def generate(self, conversations, options):
            return [Result("a", None, answer.output, None, {"finish_reason": "stop"})]

    served = replace(probe_of("llava"), engine=Server()).generate(QUESTION, picture(9))
    assert served.meta["image_digests"] == [digest(picture(9))]
    for way in ("contrast", "lens", "heads"):
        with pytest.raises(MessageError, match="no prompt ids"):
            WAYS[way](probe_of("llava"), QUESTION, picture(9), served)


@pytest.mark.parametrize("way", ["contrast", "lens", "heads"])
def test_what_is_no_answer(probe_of, way):
    probe, image = probe_of("llava"), picture()
    for wrong in (5, 1.5, True, [-1], ["a"], object()):
        with pytest.raises(MessageError, match="An answer is a text"):
            WAYS[way](probe, QUESTION, image, wrong)
    scores = probe.score(QUESTION, ["a cat", "a dog"], image)
    for several in (scores, probe.yes_no(QUESTION, image, yes=["a"], no=["b"])):
        with pytest.raises(MessageError, match=r"scores\.best"):
            WAYS[way](probe, QUESTION, image, several)
    WAYS[way](probe, QUESTION, image, scores.best)


def test_a_strategy_made_for_another_image_is_refused(probe_of):
    """The prompt ids that a logits processor gets are those of any image of the same size."""
    probe, image, other = probe_of("qwen2_5_vl"), picture(1), picture(9)
    strategy = [ImageContrast(probe, QUESTION, image)]
    result = probe.generate(QUESTION, image, logits_processor=strategy, **OPTIONS)
    with pytest.raises(CapabilityError, match="other images"):
        probe.generate(QUESTION, other, logits_processor=strategy, **OPTIONS)
    with pytest.raises(CapabilityError, match="other images"):
        probe.stream(QUESTION, other, logits_processor=strategy, **OPTIONS)
    request = {"question": QUESTION, "image": other}
    with pytest.raises(CapabilityError, match="other images"):
        next(probe.generate_many([request], logits_processor=strategy, progress=False, **OPTIONS))
    with pytest.raises(CapabilityError, match="other images"):
        probe.generate(QUESTION, logits_processor=strategy, **OPTIONS)
    choice = int(result.output.ids[1])
    branched = probe.branch(result, 1, choice, logits_processor=strategy, **OPTIONS)
    assert branched.output.ids[:4].tolist() == result.output.ids.tolist()
    with probe.session(other) as session, pytest.raises(CapabilityError, match="other images"):
        session.generate(QUESTION, logits_processor=strategy, **OPTIONS)
