"""Relevance of documents, against yes and no read off plain forwards of the model."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from common import picture
from PIL import Image
from reference import encode, forward
from reranker_template import RERANKER

import vlmprobe
from vlmprobe.errors import CapabilityError, ImageError, MessageError, VlmprobeWarning
from vlmprobe.inputs.chat_templates import pair_template
from vlmprobe.inputs.messages import ImagePart
from vlmprobe.probe.rank import INSTRUCTION, PROMPT, parts_of

# A template of one's own in the manner of Qwen3-VL-Reranker's: both roles, contents as lists of parts.
FLAT = """{%- set query = messages | selectattr("role", "eq", "query") | map(attribute="content") | first -%}
{%- set document = messages | selectattr("role", "eq", "document") | map(attribute="content") | first -%}
<|im_start|>user
{{ query }} {{ document }}<|im_end|>
<|im_start|>assistant
"""


def words(probe, conversation) -> tuple[str, str]:
    """Two words that are one token each after a prompt; the vocabularies of tiny checkpoints are small."""
    single = [
        text for text in ("yes", "no", "?", ".", "a", "b") if len(probe.engine.answer_ids(conversation, text)) == 1
    ]
    return single[0], single[1]


def conversation_of(messages):
    from vlmprobe.inputs.messages import Conversation

    return Conversation.build(messages)


def plain_messages(query, document, instruction=INSTRUCTION):
    """The default prompt, written out by hand: text up to the document, the picture, the rest."""
    before, after = PROMPT.split("{document}")
    before = before.replace("{instruction}", instruction).replace("{query}", query)
    if isinstance(document, str):
        return [{"role": "user", "content": [{"type": "text", "text": before + document + after}]}]
    parts = [{"type": "text", "text": before}, {"type": "image", "image": document}, {"type": "text", "text": after}]
    return [{"role": "user", "content": parts}]


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "internvl", "mllama", "idefics3"])
def test_scores_are_those_of_the_models_own_yes_and_no(probe_of, own, name):
    probe, model = probe_of(name), own(name)
    documents = ["A tiger in the grass.", picture(1), picture(2, 56, 40)]
    asked = [plain_messages("a tiger", each) for each in documents]
    yes, no = words(probe, conversation_of(asked[0]))
    ranking = probe.rank("a tiger", documents, yes=yes, no=no)
    for place, messages in enumerate(asked):
        row = forward(model, encode(model, messages))[-1].astype(np.float64)
        ids = [probe.engine.answer_ids(conversation_of(messages), text)[0] for text in (yes, no)]
        assert ranking.margins[place] == pytest.approx(row[ids[0]] - row[ids[1]], abs=1e-4)
        score = np.exp(row[ids[0]]) / (np.exp(row[ids[0]]) + np.exp(row[ids[1]]))  # softmax over the two
        assert ranking.scores[place] == pytest.approx(score, abs=1e-5)
    assert ranking.order.tolist() == np.argsort(-ranking.margins).tolist()
    assert [each.index for each in ranking] == ranking.order.tolist()
    assert ranking.meta["asked_through"] == "prompt"


@pytest.fixture(scope="module")
def reranker(tmp_path_factory, checkpoint):
    """Name of a template -> folder of a tiny Qwen3-VL whose processor has it beside its own, as the hub's has."""
    import shutil

    from transformers import AutoProcessor

    def build(name, template):
        folder = tmp_path_factory.mktemp("reranker") / name
        shutil.copytree(checkpoint("qwen3_vl"), folder)
        processor = AutoProcessor.from_pretrained(folder)
        processor.chat_template = {"default": processor.chat_template, name: template}
        processor.save_pretrained(folder)
        return folder

    return build


def test_a_checkpoint_with_roles_query_and_document(reranker):
    """The reference is the processor's own rendering of the named template, and the model's own forward."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = reranker("reranker", RERANKER)
    assert (folder / "additional_chat_templates" / "reranker.jinja").is_file()
    probe = vlmprobe.load(folder, device="cpu", dtype="float32")
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
    image = picture(3, 64, 64)  # a size that needs no resizing
    documents = ["a red tiger", image, {"text": "a cat", "image": image}]
    contents = [
        [{"type": "text", "text": "a red tiger"}],
        [{"type": "image", "image": image}],
        [{"type": "image", "image": image}, {"type": "text", "text": "a cat"}],
    ]
    for instruction in (None, "Find tigers."):
        ranking = probe.rank("a tiger", documents, instruction=instruction, yes="?", no=".")
        assert ranking.meta["asked_through"] == "chat template"
        for place, content in enumerate(contents):
            system = [{"role": "system", "content": [{"type": "text", "text": instruction}]}] if instruction else []
            messages = [
                *system,
                {"role": "query", "content": [{"type": "text", "text": "a tiger"}]},
                {"role": "document", "content": content},
            ]
            text = processor.apply_chat_template(messages, chat_template="reranker", tokenize=False)
            assert ("Find tigers." in text) == bool(instruction)
            images = [part["image"] for part in content if part["type"] == "image"]
            inputs = processor(text=[text], return_tensors="pt", **({"images": images} if images else {}))
            row = model(**inputs).logits[0, -1].detach().double().numpy()
            ids = [processor.tokenizer.encode(word)[0] for word in "?."]
            assert ranking.margins[place] == pytest.approx(row[ids[0]] - row[ids[1]], abs=1e-4)
    chat = probe.generate("What is this?", picture(), max_new_tokens=2)  # questions go through the other template
    assert "Judge by the instruct" not in "".join(chat.prompt.tokens)
    through_prompt = probe.rank("a tiger", documents, template=PROMPT, yes="?", no=".")
    assert through_prompt.meta["asked_through"] == "prompt"


def test_a_servers_flat_template_is_refused(reranker):
    probe = vlmprobe.load(reranker("score", FLAT), device="cpu", dtype="float32")
    with pytest.raises(CapabilityError, match=r"for a server.*template="):
        probe.rank("a tiger", ["a cat"], yes="?", no=".")
    assert len(probe.rank("a tiger", ["a cat"], template=PROMPT, yes="?", no=".")) == 1


def test_templates_are_told_by_both_roles():
    assert pair_template({"default": "{{ message.role }}", "x": RERANKER}) == RERANKER
    assert pair_template({"default": "{{ message['role'] == 'query' }}"}) is None


def test_in_a_batch_as_alone_and_in_any_order(probe_of):
    probe = probe_of("llava")
    documents = [picture(seed, 40 + 8 * seed, 40) for seed in range(5)] + ["short", "a much longer text about a tiger"]
    together = probe.rank("a tiger", documents, yes="?", no=".", batch_size=4)
    alone = [probe.rank("a tiger", [each], yes="?", no=".").margins[0] for each in documents]
    np.testing.assert_allclose(together.margins, alone, atol=1e-4)
    turned = probe.rank("a tiger", documents[::-1], yes="?", no=".")
    np.testing.assert_allclose(turned.margins[::-1], together.margins, atol=1e-4)


def test_a_picture_as_the_query(probe_of):
    probe = probe_of("qwen2_vl")
    ranking = probe.rank(picture(1), [picture(2), "a tiger"], yes="?", no=".")
    other = probe.rank(picture(4), [picture(2), "a tiger"], yes="?", no=".")
    assert not np.allclose(ranking.margins, other.margins, atol=1e-6)
    assert ranking.query == ""


def test_a_session_puts_its_picture_to_no_document(probe_of):
    probe = probe_of("llava")
    query = {"image": picture(7), "text": "a tiger"}
    plain = probe.rank(query, ["a tiger", picture(2)], yes="?", no=".")
    with probe.session(picture(7)) as session:
        np.testing.assert_allclose(
            session.rank("a tiger", ["a tiger", picture(2)], yes="?", no=".").margins, plain.margins, atol=1e-5
        )


def test_the_demo_model_finds_the_digit():
    from vlmprobe.demo.handwriting import DIGITS
    from vlmprobe.demo.scenes import held_out

    scenes = list(held_out(24))
    probe = vlmprobe.load("demo", device="cpu")
    found = []
    for digit in (1, 6, 7):
        pictures = [scene.picture for scene in scenes]
        ranking = probe.rank(DIGITS[digit], pictures, template="{document}Is there a {query}?")
        holds = np.array([digit in scene.digits for scene in scenes])
        found.append(holds[ranking.order[: holds.sum()]].mean())  # R-precision
    assert np.mean(found) > 0.7


def test_an_engine_that_ranks_is_asked(probe_of):
    probe = probe_of("llava")
    seen = []

    class Reranker:
        def rank(self, query, documents, *, activation):
            seen.append((query, documents, activation))
            return [0.5, -2.0]

        def check(self, conversations, options):
            raise AssertionError("a reranker generates nothing")

    served = replace(probe, engine=Reranker())
    ranking = served.rank("a tiger", ["no tiger", {"image": picture(), "text": "grass"}])
    assert ranking.margins.tolist() == [0.5, -2.0]
    assert ranking.scores[0] == pytest.approx(1 / (1 + np.exp(-0.5)))
    assert ranking.meta["asked_through"] == "the engine's reranker"
    query, documents, activation = seen[0]
    assert activation is False
    assert query.messages[-1].text == "a tiger"
    assert [each.messages[-1].text for each in documents] == ["no tiger", "grass"]
    assert len(documents[1].images) == 1
    with pytest.raises(CapabilityError, match="instruction="):
        served.rank("a tiger", ["x"], instruction="Find tigers.")


def test_an_engine_that_only_scores_gives_the_same(probe_of):
    """Log-probabilities of yes and no at one position differ as their logits do."""
    probe = probe_of("llava")
    expected = probe.rank("a tiger", ["a tiger", picture(2)], yes="?", no=".", template=PROMPT)

    class Scores:
        def check(self, conversations, options):
            probe.engine.check(conversations, options)

        def score(self, conversation, candidates, options):
            return probe.engine.score(conversation, candidates, options)

        def rank(self, query, documents, *, activation):
            raise CapabilityError("This server generates.")

    served = replace(probe, engine=Scores())
    for prompt in (PROMPT, None):  # the second time its reranker is asked first
        found = served.rank("a tiger", ["a tiger", picture(2)], yes="?", no=".", template=prompt)
        np.testing.assert_allclose(found.margins, expected.margins, atol=1e-4)
    with pytest.raises(MessageError, match="tokens after this prompt"):
        served.rank("a tiger", ["a tiger"], yes="a very long answer", template=PROMPT)


def test_the_ranking_as_a_table_and_as_a_picture(probe_of):
    from matplotlib import pyplot

    ranking = probe_of("llava").rank("a tiger", ["grass", picture(2, 600, 300), "[x] $y$"], yes="?", no=".")
    frame = ranking.to_pandas()
    assert frame["index"].tolist() == ranking.order.tolist()
    assert frame.score.is_monotonic_decreasing
    assert len(ranking) == 3
    assert max(next(each for each in ranking if each.image is not None).image.size) <= 256
    ax = ranking.plot()
    ax.figure.canvas.draw()
    widths = [patch.get_width() for patch in ax.patches]
    np.testing.assert_allclose(widths, np.sort(ranking.scores)[::-1])
    pyplot.close(ax.figure)
    assert "Ranking('a tiger'" in repr(ranking)


def test_large_margins_do_not_overflow():
    from vlmprobe.probe.rank import Ranking

    with np.errstate(all="raise", under="ignore"):
        ranking = Ranking("", np.array([800.0, -800.0, 0.0]), [""] * 3, [None] * 3)
        assert ranking.scores.tolist() == [1.0, 0.0, 0.5]


def test_no_documents(probe_of):
    ranking = probe_of("llava").rank("a tiger", [])
    assert len(ranking) == 0
    assert list(ranking) == []
    assert len(ranking.to_pandas()) == 0


def test_documents_in_every_form(tmp_path):
    path = tmp_path / "a.png"
    picture().save(path)
    same = [
        path,
        picture(),
        path.read_bytes(),
        np.asarray(picture()),
        {"image": str(path)},
        {"type": "image", "path": str(path)},
        [picture()],
    ]
    for each in same:
        (part,) = parts_of(each, "It")
        assert isinstance(part, ImagePart)
        assert part.image.tobytes() == picture().tobytes()
    parts = parts_of([picture(), "a cat", {"image": [picture(2)], "text": "two"}], "It")
    assert [isinstance(part, ImagePart) for part in parts] == [True, False, True, False]


def test_a_text_that_names_an_image_is_a_warning(probe_of, tmp_path):
    picture().save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    for documents in ([path], [[path, picture()]], [{"text": path}]):
        with pytest.warns(VlmprobeWarning, match=r"^Document 0 is the text .*a\.png'.*pathlib\.Path") as told:
            probe_of("llava").rank("a tiger", documents, yes="?", no=".")
        assert told[0].filename == __file__
    with pytest.warns(VlmprobeWarning, match="^The query is the text"):
        probe_of("llava").rank(path, [picture()], yes="?", no=".")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts_of("none.png", "It")
        parts_of({"image": path, "text": "a.png"}, "It")


@pytest.mark.parametrize(
    ("documents", "says"),
    [
        ("a text", "list"),
        ({"text": "x"}, "list"),
        ([""], "Document 0 is empty"),
        (["x", None], "Document 1 is None"),
        ([{}], "mapping"),
        ([{"txt": "x"}], "mapping"),
        ([[]], "Document 0 is empty"),
    ],
)
def test_bad_documents(probe_of, documents, says):
    with pytest.raises(MessageError, match=says):
        probe_of("llava").rank("a tiger", documents)


def test_other_errors(probe_of, tmp_path):
    probe = probe_of("llava")
    with pytest.raises(MessageError, match="The query is empty"):
        probe.rank(" ", ["x"])
    for prompt in ("{query}", "{document}", "{query}{query}{document}", ""):
        with pytest.raises(MessageError, match="once"):
            probe.rank("a tiger", ["x"], template=prompt)
    with pytest.raises(MessageError, match="tokens after this prompt"):
        probe.rank("a tiger", ["x"], yes="a very long answer")
    with pytest.raises(MessageError, match="same token"):
        probe.rank("a tiger", ["x"], yes="?", no="?")
    with pytest.raises(ImageError):
        probe.rank("a tiger", [tmp_path / "missing.png"])
    with pytest.raises(ImageError):
        probe.rank("a tiger", [Image.new("RGB", (0, 0))])


def test_the_former_name_of_the_template(probe_of):
    probe = probe_of("qwen2_vl")
    now = probe.rank("a tiger", ["a cat", "a tiger"], template=PROMPT, yes="?", no=".")
    with pytest.warns(DeprecationWarning, match=r"rank\(prompt=\) is now rank\(template=\)"):
        before = probe.rank("a tiger", ["a cat", "a tiger"], prompt=PROMPT, yes="?", no=".")
    np.testing.assert_array_equal(before.margins, now.margins)
