"""``Probe.score`` against the sums of a full forward, and what is said where prompt and candidate merge."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
from common import QUESTION, families, picture
from reference import chat, columns, encode, extended, forward

import vlmprobe
from vlmprobe.errors import CapabilityError, ImageError, MessageError

TOLERANCE = 1e-4  # nats, one token, float32
LOOSER = {"minicpmv4_6": 1e-3, "minicpmv4_7": 1e-3}  # linear attention, see test_many
CANDIDATES = ["yes", "no", "?", "a tiger", "a tiger in the grass", "a cat", "老虎", "老虎和猫 🐯", "The picture shows"]


def by_hand(own, prompt, ids, start):
    """Columns of ``ids`` after the first ``start`` positions of an encoded prompt, from one forward."""
    shorter = {
        key: value[:, :start] if getattr(value, "shape", None) == prompt["input_ids"].shape else value
        for key, value in prompt.items()
    }
    if "cross_attention_mask" in shorter:
        shorter["cross_attention_mask"] = shorter["cross_attention_mask"][:, :start]
    rows = forward(own, extended(own, shorter, ids))
    return columns(rows[start - 1 : start - 1 + len(ids)], np.array(ids))


@pytest.mark.parametrize("name", families())
def test_sums_are_those_of_a_full_forward(name, probe_of, own):
    scores = probe_of(name).score(QUESTION, CANDIDATES, image=picture())
    prompt = encode(own(name), chat(QUESTION, picture()))
    length = prompt["input_ids"].shape[1]
    for place, table in enumerate(scores.tables):
        start = int(table.positions[0])
        assert (start == length) == (scores.boundaries[place] is None)
        wanted = by_hand(own(name), prompt, table.ids.tolist(), start)
        for column in ("logprobs", "entropy", "logsumexp"):
            assert np.abs(getattr(table, column) - wanted[column]).max() < LOOSER.get(name, TOLERANCE), column
        assert np.isclose(scores.logprobs[place], table.logprobs.sum(dtype=np.float64))
        assert table.positions.tolist() == list(range(start, start + len(table)))
    assert scores.best == CANDIDATES[int(np.argmax(scores.logprobs))]


@pytest.mark.parametrize("name", [each for each in families() if each != "paligemma"])
def test_candidates_are_tokenised_together_with_the_prompt(name, probe_of, own):
    scores = probe_of(name).score(QUESTION, CANDIDATES, image=picture())
    processor = own(name).processor
    prompt = encode(own(name), chat(QUESTION, picture()))["input_ids"][0].tolist()
    text = processor.apply_chat_template(chat(QUESTION, picture()), tokenize=False, add_generation_prompt=True)
    begin = getattr(processor.tokenizer, "bos_token", None)
    plain = {"add_special_tokens": not (begin and text.startswith(begin))}
    for candidate, table in zip(CANDIDATES, scores.tables, strict=True):
        whole = processor.tokenizer(text + candidate, **plain)["input_ids"]
        assert table.ids.tolist() == whole[len(whole) - len(table) :]
        merged = len(prompt) - int(table.positions[0])  # llava_next's template ends in a space
        assert len(processor.tokenizer(text, **plain)["input_ids"]) == len(whole) - len(table) + merged
        kept = prompt[: table.positions[0]]
        assert processor.tokenizer.decode([*kept, *table.ids]).endswith(candidate)


@pytest.mark.parametrize("name", families())
def test_a_candidate_has_the_numbers_of_an_answer_that_was_generated(name, probe_of):
    """The cache of generate, one token after the other, against the candidates' shared prefix."""
    probe = probe_of(name)
    table = probe.score(QUESTION, ["???"], image=picture()).tables[0]
    assert len(set(table.ids.tolist())) == 1
    size = probe.engine.adapter.model.get_output_embeddings().weight.shape[0]
    others = [each for each in range(size) if each != table.ids[0]]
    answer = probe.generate(
        QUESTION, image=picture(), max_new_tokens=len(table), do_sample=False, suppress_tokens=others, keep="logits"
    ).output
    assert answer.ids.tolist() == table.ids.tolist()
    assert np.abs(answer.logprobs - table.logprobs).max() < LOOSER.get(name, TOLERANCE)


@pytest.mark.parametrize("name", ["internvl", "qwen2_vl", "mllama", "paligemma", "gemma4", "minicpmv4_6"])
def test_neither_order_nor_company_matters(name, probe_of):
    probe = probe_of(name)
    together = probe.score(QUESTION, CANDIDATES, image=picture())
    backwards = probe.score(QUESTION, CANDIDATES[::-1], image=picture())
    assert np.abs(backwards.logprobs[::-1] - together.logprobs).max() < LOOSER.get(name, TOLERANCE)
    for place, candidate in enumerate(CANDIDATES):
        alone = probe.score(QUESTION, [candidate], image=picture())
        assert abs(alone.logprobs[0] - together.logprobs[place]) < LOOSER.get(name, TOLERANCE)
        assert alone.probabilities.tolist() == [1.0]


@pytest.mark.parametrize("name", ["internvl", "qwen2_5_vl", "mllama", "gemma3"])
def test_scoring_changes_nothing_for_the_calls_after_it(name, probe_of):
    probe = probe_of(name)
    call = {"max_new_tokens": 4, "do_sample": False}
    before = probe.generate(QUESTION, image=picture(3, 90, 60), **call)
    first = probe.score(QUESTION, CANDIDATES, image=picture())
    again = probe.score(QUESTION, CANDIDATES, image=picture())
    assert np.array_equal(first.logprobs, again.logprobs)
    after = probe.generate(QUESTION, image=picture(3, 90, 60), **call)
    assert np.array_equal(before.output.logprobs, after.output.logprobs)
    text = probe.score("Is there a cat?", ["yes", "no"])
    probe.score(QUESTION, CANDIDATES, image=picture())
    assert np.array_equal(text.logprobs, probe.score("Is there a cat?", ["yes", "no"]).logprobs)


def test_the_picture_matters(probe_of):
    probe = probe_of("qwen3_vl")
    one, other, none = (probe.score(QUESTION, CANDIDATES, image=image) for image in (picture(1), picture(2), None))
    assert np.abs(one.logprobs - other.logprobs).min() > 1e-4
    assert np.abs(one.logprobs - none.logprobs).min() > 1e-4
    assert [len(each.images) for each in (one, other, none)] == [1, 1, 0]


@pytest.mark.parametrize("name", ["internvl", "llava", "cohere_compass"])
def test_rows_and_states_can_be_kept(name, probe_of, own):
    scores = probe_of(name).score(QUESTION, CANDIDATES, image=picture(), keep={"logits", "hidden"}, alternatives=3)
    prompt = encode(own(name), chat(QUESTION, picture()))
    for table in scores.tables:
        start = int(table.positions[0])
        rows = forward(own(name), extended(own(name), prompt, table.ids.tolist()))[start - 1 : -1]
        assert np.abs(table.logits - rows).max() < TOLERANCE
        assert table.hidden.shape[0] == len(table)
        assert table.top_ids.shape == (len(table), 3)
        assert np.abs(table.top_logprobs - columns(rows, table.ids)["sorted"][:, :3]).max() < TOLERANCE


def test_two_hundred_candidates_encode_the_image_and_prefill_the_prompt_once(probe_of):
    probe = probe_of("internvl")
    model = probe.engine.adapter.model
    runs = {"tower": 0, "positions": 0}

    def tower(*_):
        runs["tower"] += 1

    def decoder(_, __, given, *___):
        ids = given.get("inputs_embeds")
        runs["positions"] += ids.shape[0] * ids.shape[1]

    handles = [
        model.model.vision_tower.register_forward_hook(tower),
        model.get_decoder().register_forward_hook(decoder, with_kwargs=True),
    ]
    candidates = [f"{number} people" for number in range(200)]
    try:
        scores = probe.score(QUESTION, candidates, image=picture())
    finally:
        for handle in handles:
            handle.remove()
    assert len(scores.tables) == 200
    assert np.isclose(scores.probabilities.sum(), 1)
    assert runs["tower"] == 1
    prompt = int(scores.tables[0].positions[0])
    assert runs["positions"] <= prompt + sum(len(table) for table in scores.tables)
    for place in (0, 7, 63, 199):
        alone = probe.score(QUESTION, [candidates[place]], image=picture()).logprobs[0]
        assert abs(alone - scores.logprobs[place]) < TOLERANCE


def test_derived_numbers(probe_of):
    scores = probe_of("internvl").score(QUESTION, CANDIDATES, image=picture())
    sums = np.array([float(table.logprobs.sum(dtype=np.float64)) for table in scores.tables])
    assert np.allclose(scores.logprobs, sums)
    weights = np.exp(sums - sums.max())
    assert np.allclose(scores.probabilities, weights / weights.sum())
    assert np.allclose(scores.means, [table.logprobs.mean(dtype=np.float64) for table in scores.tables])
    sizes = [len(candidate.encode("utf-8")) for candidate in CANDIDATES]
    assert np.allclose(scores.per_byte, sums / sizes)
    assert np.isclose(scores.mass, np.exp(sums).sum())


def test_chinese_candidates_show_whole_characters(probe_of):
    for name in ("internvl", "llava", "gemma3"):
        for table, candidate in zip(
            *(lambda scores: (scores.tables, scores.candidates))(
                probe_of(name).score(QUESTION, ["老虎", "老虎和猫 🐯", "图片里有一只猫"], image=picture())
            ),
            strict=True,
        ):
            assert "".join(table.tokens) == candidate
            assert "�" not in "".join(table.tokens)
            assert "".join(candidate[start:stop] for start, stop in np.unique(table.offsets, axis=0)) == candidate


def test_an_answer_that_has_begun(probe_of, own):
    messages = [*chat("What is this?", picture()), {"role": "assistant", "content": "It is a"}]
    scores = probe_of("internvl").score(messages, [" tiger", " cat"])
    written = [
        *chat("What is this?", picture()),
        {"role": "assistant", "content": [{"type": "text", "text": "It is a"}]},
    ]
    inputs = own("internvl").processor.apply_chat_template(
        written, tokenize=True, return_dict=True, return_tensors="pt", continue_final_message=True
    )
    assert own("internvl").processor.tokenizer.decode(inputs["input_ids"][0]).endswith("It is a")
    for table in scores.tables:
        wanted = by_hand(own("internvl"), inputs, table.ids.tolist(), inputs["input_ids"].shape[1])
        assert np.abs(table.logprobs - wanted["logprobs"]).max() < TOLERANCE


# Where the tokenizer merges prompt and candidate


@pytest.mark.parametrize(
    ("name", "end", "candidate", "merged"),
    [
        ("internvl", "Answer: ", "yes", " "),  # byte-level: the space goes into the next token
        ("llava", "Answer: ", "yes", "▁"),  # SentencePiece: likewise
        ("qwen2_vl", "Look at the imag", "e", " ima"),  # two tokens of the prompt go into one
        ("llava", "Look at the pic", "ture", "▁pic"),
        ("mllama", "Answer: ", "yes", " "),
    ],
)
def test_a_merge_across_the_boundary_is_scored_from_the_last_shared_token(name, end, candidate, merged, probe_of, own):
    adapter = probe_of(name).engine.adapter
    processor = deepcopy(adapter.processor)
    processor.chat_template = adapter.processor.chat_template + end
    probe = vlmprobe.wrap(adapter.model, processor)
    scores = probe.score("Is this a tiger?", [candidate, "\n"], image=picture())
    table = scores.tables[0]
    prompt = probe.generate("Is this a tiger?", image=picture(), max_new_tokens=1, do_sample=False).input_ids.tolist()
    start = int(table.positions[0])
    assert start < len(prompt)
    tokenizer = processor.tokenizer
    assert tokenizer.convert_ids_to_tokens(prompt[start]).replace("Ġ", " ") == merged
    assert tokenizer.decode([*prompt[:start], *table.ids]).endswith(end + candidate)
    assert "merge" in scores.boundaries[0]
    assert str(start) in scores.boundaries[0]
    given = encode(own(name), chat("Is this a tiger?", picture()))
    inputs = extended(own(name), given, prompt[given["input_ids"].shape[1] :])
    assert inputs["input_ids"][0].tolist() == prompt
    wanted = by_hand(own(name), inputs, table.ids.tolist(), start)
    assert np.abs(table.logprobs - wanted["logprobs"]).max() < TOLERANCE
    assert "".join(table.tokens).endswith(candidate)


# Bad candidates


@pytest.mark.parametrize(
    ("candidates", "says"),
    [
        ([], "empty"),
        (["yes", ""], "candidate 1 is empty"),
        (["yes", "no", "yes"], "candidate 2 repeats candidate 0"),
        (["yes", 3], "int"),
        (["yes", None], "NoneType"),
        ("yes", "list"),
        (None, "list"),
        (5, "list"),
    ],
)
def test_bad_candidates(candidates, says, probe_of):
    with pytest.raises(MessageError, match=says):
        probe_of("internvl").score("Is there a cat?", candidates)


def test_other_bad_input(probe_of, tmp_path):
    with pytest.raises(ImageError, match="missing"):
        probe_of("internvl").score("Is there a cat?", ["yes"], image=tmp_path / "missing.png")
    with pytest.raises(MessageError, match="empty"):
        probe_of("internvl").score("", ["yes"])
    with pytest.raises(CapabilityError, match="image"):
        probe_of("paligemma").score("Is there a cat?", ["yes"])


def test_candidates_from_any_iterable(probe_of):
    listed = probe_of("internvl").score("Is there a cat?", ["yes", "no"])
    drawn = probe_of("internvl").score("Is there a cat?", (each for each in ("yes", "no")))
    assert drawn.candidates == ["yes", "no"]
    assert np.array_equal(drawn.logprobs, listed.logprobs)
