"""A session's images are asked about in every method and analysis, against forwards of the model's own."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from common import QUESTION, picture
from reference import chat, columns, encode, extended, forward
from transformers import SuppressTokensLogitsProcessor

from vlmprobe.analysis.compare import compare
from vlmprobe.analysis.decoding import ImageContrast
from vlmprobe.analysis.heads import answer_states
from vlmprobe.analysis.image_contrast import contrast
from vlmprobe.analysis.image_variants import blank, diffused
from vlmprobe.analysis.logit_lens import lens
from vlmprobe.analysis.yes_no import yes_no_many
from vlmprobe.errors import CapabilityError, MessageError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.probe import Session
from vlmprobe.probe.rank import INSTRUCTION, PROMPT

FEW = ("llava", "qwen2_5_vl", "mllama")
OPTIONS = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
SCENE = picture(5)


def own_columns(own, ids, *images) -> dict[str, np.ndarray]:
    """The columns of an answer to the question about these images, by one forward of the model's own."""
    inputs = encode(own, chat(QUESTION, *images))
    start = inputs["input_ids"].shape[1]
    return columns(forward(own, extended(own, inputs, list(ids)))[start - 1 : start - 1 + len(ids)], np.array(ids))


def branched(session):
    first = session.generate(QUESTION, **OPTIONS)
    return session.branch(first, 1, int(first.output.top_ids[1, 2]), **OPTIONS).output


def streamed(session):
    with session.stream(QUESTION, **OPTIONS) as tokens:
        for _ in tokens:
            pass
    return tokens.result.output


def scored(session):
    return session.score(QUESTION, ["a cat", "no"]).tables[0]


WAYS = {
    "generate": lambda session: session.generate(QUESTION, **OPTIONS).output,
    "stream": streamed,
    "generate_many": lambda session: next(session.generate_many([QUESTION], progress=False, **OPTIONS)).output,
    "sample": lambda session: session.sample(QUESTION, n=2, max_new_tokens=4).results[1].output,
    "branch": branched,
    "score": scored,
    "yes_no": lambda session: session.yes_no(QUESTION, yes=["a cat"], no=["no"]).spellings.tables[0],
    "yes_no_many": lambda session: next(
        yes_no_many(session, [QUESTION], yes=["a cat"], no=["no"], progress=False)
    ).spellings.tables[0],
    "contrast": lambda session: contrast(session, QUESTION, **OPTIONS).answer,
    "contrast of a text": lambda session: contrast(session, QUESTION, answer="a cat").answer,
    "lens": lambda session: lens(session, QUESTION, **OPTIONS).table,
    "lens of a text": lambda session: lens(session, QUESTION, answer="a cat").table,
}


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_asking_is_about_the_sessions_image(probe_of, own, name, way):
    with probe_of(name).session(SCENE) as session:
        table = WAYS[way](session)
    ids = table.ids.tolist()
    expected, without = own_columns(own(name), ids, SCENE), own_columns(own(name), ids)
    np.testing.assert_allclose(table.logprobs, expected["logprobs"], atol=1e-4)
    np.testing.assert_allclose(table.entropy, expected["entropy"], atol=1e-4)
    assert np.abs(expected["logprobs"] - without["logprobs"]).max() > 1e-3, "the image changes nothing"


@pytest.mark.parametrize("name", FEW)
def test_lens_asks_a_session_about_its_image(probe_of, own, name):
    with probe_of(name).session(SCENE) as session:
        answered = lens(session, QUESTION, **OPTIONS)
        prompt = lens(session, QUESTION, of="prompt")
    ids = answered.table.ids.tolist()
    np.testing.assert_allclose(answered.logprobs[-1], own_columns(own(name), ids, SCENE)["logprobs"], atol=1e-4)
    assert answered.result.meta["image_sizes"] == answered.meta["image_sizes"] == [list(SCENE.size)]
    inputs = encode(own(name), chat(QUESTION, SCENE))
    read = inputs["input_ids"][0].numpy()
    at = prompt.table.positions[prompt.rows]
    np.testing.assert_allclose(
        prompt.logprobs[-1], columns(forward(own(name), inputs)[at - 1], read[at])["logprobs"], atol=1e-4
    )


def test_heads_ask_a_session_about_its_image(probe_of, own):
    model = own("llava")
    with probe_of("llava").session(SCENE) as session:
        result = session.generate(QUESTION, **OPTIONS)
        found = answer_states(session, QUESTION, answer=result)
    inputs = extended(model, encode(model, chat(QUESTION, SCENE)), result.output.ids.tolist())
    with torch.no_grad():
        states = model.model.model(**inputs).last_hidden_state[0, len(result.input_ids) - 1 :]
    np.testing.assert_allclose(found, states.numpy(), atol=1e-4)


def test_contrast_replaces_the_sessions_image(probe_of, own):
    with probe_of("llava").session(SCENE) as session:
        found = contrast(session, QUESTION, **OPTIONS)
    ids = found.answer.ids.tolist()
    real, other = (own_columns(own("llava"), ids, image)["logprobs"] for image in (SCENE, blank(SCENE)))
    np.testing.assert_allclose(found.gain[0], real - other, atol=1e-4)


def test_contrastive_decoding_of_a_sessions_image(probe_of, own):
    model, ids = own("qwen2_5_vl"), []
    with probe_of("qwen2_5_vl").session(SCENE) as session:
        strategy = ImageContrast(session, QUESTION, alpha=1.5, beta=0.2)
        result = session.generate(QUESTION, logits_processor=[strategy], **OPTIONS)
    for token in result.output.ids.tolist():
        rows = []
        for image in (SCENE, diffused(SCENE)):
            inputs = encode(model, chat(QUESTION, image))
            rows.append(forward(model, extended(model, inputs, ids) if ids else inputs)[-1].astype(np.float64))
        mixed = 2.5 * rows[0] - 1.5 * rows[1]
        assert np.where(rows[0] >= rows[0].max() + np.log(0.2), mixed, -np.inf).argmax() == token
        ids.append(token)


@pytest.mark.parametrize("ask", ["lens", "contrast", "states"])
def test_images_of_a_call_and_of_a_message_win(probe_of, own, ask):
    other = picture(8)
    session = probe_of("llava").session(SCENE)
    for question, given in ((QUESTION, other), (chat(QUESTION, other), None)):
        if ask == "states":
            states = [answer_states(asked, question, given, answer="a cat") for asked in (session, probe_of("llava"))]
            np.testing.assert_allclose(*states, atol=1e-5)
            continue
        table = lens(session, question, given, **OPTIONS).table if ask == "lens" else None
        table = contrast(session, question, given, **OPTIONS).answer if table is None else table
        np.testing.assert_allclose(
            table.logprobs, own_columns(own("llava"), table.ids.tolist(), other)["logprobs"], atol=1e-4
        )


def test_no_image_where_none_is_wanted(probe_of, own):
    session = probe_of("llava").session(SCENE)
    table = lens(session, QUESTION, [], **OPTIONS).table
    np.testing.assert_allclose(table.logprobs, own_columns(own("llava"), table.ids.tolist())["logprobs"], atol=1e-4)
    with pytest.raises(CapabilityError, match="no image"):
        contrast(session, QUESTION, [])
    plain = probe_of("llava").generate(QUESTION, **OPTIONS)
    again = session.branch(plain, 1, int(plain.output.ids[1]), **OPTIONS)  # a result about no image stays about none
    assert again.images == ()
    np.testing.assert_allclose(again.output.logprobs[:4], plain.output.logprobs, atol=1e-4)


def test_a_session_of_a_session_keeps_its_images(probe_of):
    session = probe_of("llava").session(SCENE)
    inner = session.session(images=2)
    assert inner.generate(QUESTION, max_new_tokens=1).meta["image_digests"] == [
        *session.generate(QUESTION, max_new_tokens=1).meta["image_digests"]
    ]
    assert [each.size for each in session.session(picture(2, 50, 40)).images] == [(50, 40)]
    assert session.session([]).images == ()


def test_a_query_is_about_the_sessions_image_and_a_document_is_not(probe_of, own):
    """A query is the question of a ranking; each document is judged as it is."""
    probe, model = probe_of("llava"), own("llava")
    before, between, after = re.split(r"\{query\}|\{document\}", PROMPT.replace("{instruction}", INSTRUCTION))
    asked = [  # query, document, and the parts of the prompt
        ("a tiger", "grass", [before, SCENE, f"a tiger{between}grass{after}"]),
        ("a tiger", picture(2), [before, SCENE, f"a tiger{between}", picture(2), after]),
        (picture(4), "grass", [before, picture(4), f"{between}grass{after}"]),
    ]
    with probe.session(SCENE) as session:
        margins = [session.rank(query, [document], yes="?", no=".").margins[0] for query, document, _ in asked]
    for margin, (_, _, parts) in zip(margins, asked, strict=True):
        content = [{"type": "text", "text": each} if isinstance(each, str) else shown(each) for each in parts]
        messages = [{"role": "user", "content": content}]
        yes, no = (probe.engine.answer_ids(Conversation.build(messages), word)[0] for word in "?.")
        row = forward(model, encode(model, messages))[-1].astype(np.float64)
        assert margin == pytest.approx(row[yes] - row[no], abs=1e-4)


def shown(image) -> dict:
    return {"type": "image", "image": image}


def test_compare_scores_the_answer_of_a_session_about_its_image(probe_of, own):
    """The second probe answers otherwise, so that it scores the answer of the first."""

    class Second(Session):
        def generate_many(self, requests, **options):
            return super().generate_many(
                requests, logits_processor=[SuppressTokensLogitsProcessor(first, "cpu")], **options
            )

    with probe_of("llava").session(SCENE) as session:
        ids = session.generate(QUESTION, **OPTIONS).output.ids.tolist()
        first = ids[:1]
        second = Second(session.engine, session.meta, session.images)
        (found,) = compare(session, second, [QUESTION], progress=False, **OPTIONS).requests
    assert found.how == "forced"
    np.testing.assert_allclose(found.rows.b, own_columns(own("llava"), ids, SCENE)["logprobs"], atol=1e-4)


def test_sessions_about_different_images_are_not_compared(probe_of):
    one, other = (probe_of("llava").session(picture(seed)) for seed in (1, 2))
    for request in (QUESTION, {"question": QUESTION, "candidates": ["yes", "no"]}):
        with pytest.raises(MessageError, match="different images"):
            compare(one, other, [request], progress=False)
    same = compare(one, other, [{"question": QUESTION, "image": SCENE}], progress=False, **OPTIONS)
    assert same.max_abs < 1e-5
