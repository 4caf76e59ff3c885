"""``Probe.generate`` against transformers itself, on a tiny checkpoint of every architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from common import QUESTION, families, picture
from reference import chat, columns, encode, extended, forward, generate

import vlmprobe
from vlmprobe.errors import NonFiniteLogitsError

PROMPT_TOLERANCE = 1e-5  # logits, float32
GENERATED_TOLERANCE = 1e-4  # with a cache against without one
# Their linear attention, in float32 whatever the dtype, runs in chunks over a prompt and token by token after it.
LOOSER = {"minicpmv4_6": 3e-4, "minicpmv4_7": 3e-4}
NEW = 6


@pytest.fixture(params=families(), scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def answered(name, probe_of):
    return probe_of(name).generate(QUESTION, image=picture(), max_new_tokens=NEW, do_sample=False, keep="logits")


def text_rows(table):
    return [row for row, kind in enumerate(table.kinds) if kind != "image" and table.positions[row] > 0]


# The rows and the columns


def test_prompt_ids_are_those_of_the_processor(name, answered, own):
    assert answered.input_ids.tolist() == encode(own(name), chat(QUESTION, picture()))["input_ids"][0].tolist()


def test_prompt_rows_are_the_models_own_forward(name, answered, own):
    full = forward(own(name), encode(own(name), chat(QUESTION, picture())))
    rows = text_rows(answered.prompt)
    assert len(rows) >= 15, "the question alone is longer"
    for row in rows:
        assert np.abs(answered.prompt.logits[row] - full[answered.prompt.positions[row] - 1]).max() < PROMPT_TOLERANCE


def test_generated_rows_are_those_of_generate_and_of_a_forced_forward(name, answered, own):
    inputs = encode(own(name), chat(QUESTION, picture()))
    plain = generate(own(name), inputs, max_new_tokens=NEW, do_sample=False)
    assert answered.output.ids.tolist() == plain["new"]
    assert np.abs(answered.output.logits - torch.cat(plain.logits).numpy()).max() < PROMPT_TOLERANCE
    length = len(answered.input_ids)
    forced = forward(own(name), extended(own(name), inputs, plain["new"]))[length - 1 : -1]
    assert np.abs(answered.output.logits - forced).max() < LOOSER.get(name, GENERATED_TOLERANCE)
    assert answered.output.positions.tolist() == list(range(length, length + len(plain["new"])))


def test_columns_are_those_of_the_rows_in_float64(answered):
    for table in (answered.prompt[text_rows(answered.prompt)[0] :], answered.output):
        rows = text_rows(table) if "image" in table.kinds else range(len(table))
        rows = [row for row in rows if table.scored[row]]
        wanted = columns(table.logits[rows], table.ids[rows])
        for column in ("logprobs", "entropy", "logsumexp"):
            assert np.abs(getattr(table, column)[rows] - wanted[column]).max() < 1e-5, column
        assert table.ranks[rows].tolist() == wanted["ranks"].tolist()
        assert np.abs(table.top_logprobs[rows] - wanted["sorted"][:, :10]).max() < 1e-5
        named = np.take_along_axis(table.logits[rows], table.top_ids[rows], axis=-1)
        assert np.abs(named - table.logsumexp[rows, None] - table.top_logprobs[rows]).max() < 1e-5


def test_an_image_is_one_row_without_numbers(name, answered, probe_of, own):
    table = answered.prompt
    assert table.kinds.count("image") == 1
    row = table.kinds.index("image")
    for column in ("logprobs", "entropy", "logsumexp"):
        assert np.isnan(getattr(table, column)[[0, row]]).all(), (
            "neither an image nor the first token has a distribution"
        )
    assert table.ranks[[0, row]].tolist() == [-1, -1]
    assert np.isnan(table.top_logprobs[row]).all()
    assert np.isnan(table.logits[row]).all()
    assert not table.scored[row]
    assert not np.isnan(table.logprobs[text_rows(table)]).any()
    assert np.isclose(np.log(table.perplexity), -table.logprobs[text_rows(table)].mean(dtype=np.float64))
    assert table.positions[row] == table.image_spans[0].start
    gap = table.positions[row + 1] - table.positions[row]
    assert gap == table.image_spans[-1].stop - table.image_spans[0].start


def test_spans_take_as_many_positions_as_the_vision_tower_gave_features(name, answered, own):
    inputs = encode(own(name), chat(QUESTION, picture()))
    held = sum(span.stop - span.start for span in answered.prompt.image_spans)
    if name == "mllama":  # images enter by cross-attention: one position stands for a picture of any size
        assert held == 1
        return
    pixels = {
        key: value for key, value in inputs.items() if key not in ("input_ids", "attention_mask", "token_type_ids")
    }
    pixels.pop("mm_token_type_ids", None)
    with torch.no_grad():
        output = own(name).model.get_image_features(**pixels, return_dict=True)
    # Granite puts features of several layers of the tower into as many layers of the decoder.
    features = output.deepstack_features[0][1] if name == "granite4_vision" else output.pooler_output
    listed = [features] if torch.is_tensor(features) else features
    assert held == sum(each.numel() // each.shape[-1] for each in listed)


def test_image_id_beyond_the_head(probe_of):
    result = probe_of("mllama").generate(QUESTION, image=picture(), max_new_tokens=2, do_sample=False, keep="logits")
    row = result.prompt.kinds.index("image")
    assert result.prompt.ids[row] >= result.prompt.logits.shape[1]
    assert np.isfinite(result.prompt.logprobs[row + 1])


@pytest.mark.parametrize("size", [(61, 43), (150, 60)])
@pytest.mark.parametrize(
    "family", ["qwen2_vl", "qwen3_vl", "internvl", "llava_next", "idefics3", "mllama", "minicpmv4_6"]
)
def test_pictures_of_odd_sizes(family, size, probe_of, own):
    image = picture(5, *size)
    result = probe_of(family).generate(QUESTION, image=image, max_new_tokens=1, do_sample=False, keep="logits")
    inputs = encode(own(family), chat(QUESTION, image))
    assert result.input_ids.tolist() == inputs["input_ids"][0].tolist()
    full = forward(own(family), inputs)
    assert np.abs(result.output.logits[0] - full[-1]).max() < PROMPT_TOLERANCE


@pytest.mark.parametrize(
    "family", ["mllama", "internvl", "qwen2_5_vl", "llava_next", "gemma3", "idefics3", "minicpmv4_6"]
)
def test_two_images_are_two_rows(family, probe_of, own):
    pictures = [picture(1), picture(2, 90, 40)]
    result = probe_of(family).generate(QUESTION, image=pictures, max_new_tokens=2, do_sample=False, keep="logits")
    assert result.prompt.kinds.count("image") == 2
    assert [span.image for span in result.prompt.image_spans] == sorted(
        span.image for span in result.prompt.image_spans
    )
    assert {span.image for span in result.prompt.image_spans} == {0, 1}
    full = forward(own(family), encode(own(family), chat(QUESTION, *pictures)))
    for row in text_rows(result.prompt):
        assert np.abs(result.prompt.logits[row] - full[result.prompt.positions[row] - 1]).max() < PROMPT_TOLERANCE


def text(words):
    return {"type": "text", "text": words}


def image(seed, *size):
    return {"type": "image", "image": picture(seed, *size)}


CONVERSATIONS = {
    "system": [
        {"role": "system", "content": [text("Be brief.")]},
        {"role": "user", "content": [image(1), text("What is it?")]},
    ],
    "several turns": [
        {"role": "user", "content": [image(1), text("What is it?")]},
        {"role": "assistant", "content": [text("A cat.")]},
        {"role": "user", "content": [text("And this?"), image(2, 90, 40)]},
    ],
    "text between images": [
        {"role": "user", "content": [text("First "), image(1), text(" then "), image(2, 90, 40), text(" compare.")]}
    ],
    "no text": [{"role": "user", "content": [image(1)]}],
    "a begun answer": [
        {"role": "user", "content": [image(1), text("What is it?")]},
        {"role": "assistant", "content": [text("It is a")]},
    ],
}


@pytest.mark.parametrize("form", CONVERSATIONS)
@pytest.mark.parametrize("family", ["mllama", "internvl", "qwen3_vl", "llava_next", "gemma3", "idefics3", "paligemma"])
def test_conversations_of_every_form(family, form, probe_of, own):
    messages = CONVERSATIONS[form]
    pictures = sum(part["type"] == "image" for message in messages for part in message["content"])
    result = probe_of(family).generate(messages, max_new_tokens=1, do_sample=False, keep="logits")
    inputs = encode(own(family), messages)
    assert result.input_ids.tolist() == inputs["input_ids"][0].tolist()
    assert result.prompt.kinds.count("image") == len({span.image for span in result.prompt.image_spans}) == pictures
    full = forward(own(family), inputs)
    for row in text_rows(result.prompt):
        assert np.abs(result.prompt.logits[row] - full[result.prompt.positions[row] - 1]).max() < PROMPT_TOLERANCE
    assert np.abs(result.output.logits[0] - full[-1]).max() < PROMPT_TOLERANCE


def test_text_only(name, probe_of, own):
    if name == "paligemma":
        pytest.skip("its processor refuses text only")
    result = probe_of(name).generate(QUESTION, max_new_tokens=2, do_sample=False, keep="logits")
    assert "image" not in result.prompt.kinds
    assert not result.prompt.image_spans
    full = forward(own(name), encode(own(name), chat(QUESTION)))
    assert np.abs(result.prompt.logits[1:] - full[:-1]).max() < PROMPT_TOLERANCE
    assert np.abs(result.output.logits[0] - full[-1]).max() < PROMPT_TOLERANCE


def test_another_picture_changes_the_text_after_it(name, answered, probe_of):
    other = probe_of(name).generate(QUESTION, image=picture(7), max_new_tokens=NEW, do_sample=False)
    image = answered.prompt.kinds.index("image")
    assert np.array_equal(other.input_ids, answered.input_ids)
    moved = np.abs(other.prompt.logprobs - answered.prompt.logprobs)
    assert (moved[image + 1 :] > 1e-4).mean() > 0.5
    # Mllama's rows before an image attend evenly to all of it; a PaliGemma prompt attends in both directions.
    if name not in ("mllama", "paligemma"):
        assert np.nanmax(moved[1:image], initial=0) < 1e-5
    assert abs(other.output.logprobs[0] - answered.output.logprobs[0]) > 1e-4


# Sampling, beams, processors


def test_sampled_tokens_are_those_of_generate(name, probe_of, own):
    inputs = encode(own(name), chat(QUESTION, picture()))
    torch.manual_seed(3)
    plain = generate(own(name), inputs, max_new_tokens=8, do_sample=True, temperature=1.3, top_k=40, top_p=0.9)
    result = probe_of(name).generate(
        QUESTION,
        image=picture(),
        max_new_tokens=8,
        do_sample=True,
        temperature=1.3,
        top_k=40,
        top_p=0.9,
        seed=3,
        keep="logits",
    )
    assert result.output.ids.tolist() == plain["new"]
    raw, scores = (torch.cat(rows) for rows in (plain.logits, plain.scores))
    steps = np.arange(len(plain["new"]))
    assert np.abs(result.output.logits - raw.numpy()).max() < PROMPT_TOLERANCE
    assert np.abs(result.output.scores - scores.log_softmax(-1).numpy()[steps, plain["new"]]).max() < PROMPT_TOLERANCE
    assert np.abs(result.output.logprobs - columns(raw.numpy(), result.output.ids)["logprobs"]).max() < 1e-5
    assert (result.output.ranks > 0).any(), "sampling at this temperature takes others than the likeliest"


def test_beam_tokens_are_those_of_generate(name, probe_of, own):
    inputs = encode(own(name), chat(QUESTION, picture()))
    plain = generate(own(name), inputs, max_new_tokens=7, num_beams=3, do_sample=False)
    result = probe_of(name).generate(
        QUESTION, image=picture(), max_new_tokens=7, num_beams=3, do_sample=False, keep="logits"
    )
    assert result.output.ids.tolist() == plain["new"]
    forced = forward(own(name), extended(own(name), inputs, plain["new"]))[len(result.input_ids) - 1 : -1]
    tolerance = LOOSER.get(name, GENERATED_TOLERANCE)
    assert np.abs(result.output.logits - forced).max() < tolerance
    assert np.abs(result.output.logprobs - columns(forced, result.output.ids)["logprobs"]).max() < tolerance
    full = forward(own(name), inputs)
    for row in text_rows(result.prompt):
        assert np.abs(result.prompt.logits[row] - full[result.prompt.positions[row] - 1]).max() < PROMPT_TOLERANCE


@pytest.mark.parametrize("family", ["internvl", "qwen2_vl", "mllama", "cohere_compass"])
def test_beam_sampling(family, probe_of, own):
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": True, "temperature": 1.5}
    inputs = encode(own(family), chat(QUESTION, picture()))
    torch.manual_seed(5)
    plain = generate(own(family), inputs, **options)
    result = probe_of(family).generate(QUESTION, image=picture(), seed=5, **options)
    assert result.output.ids.tolist() == plain["new"]
    forced = forward(own(family), extended(own(family), inputs, plain["new"]))[len(result.input_ids) - 1 : -1]
    assert np.abs(result.output.logprobs - columns(forced, result.output.ids)["logprobs"]).max() < GENERATED_TOLERANCE


def test_beams_that_end_early_report_the_end_token_and_nothing_after_it(probe_of, own):
    probe, model = probe_of("llava"), own("llava").model
    inputs = encode(own("llava"), chat(QUESTION, picture()))
    free = generate(own("llava"), inputs, max_new_tokens=8, num_beams=3, do_sample=False)["new"]
    end = free[3]
    plain = generate(own("llava"), inputs, max_new_tokens=8, num_beams=3, do_sample=False, eos_token_id=end)["new"]
    assert model.generation_config.eos_token_id != end
    result = probe.generate(QUESTION, image=picture(), max_new_tokens=8, num_beams=3, do_sample=False, eos_token_id=end)
    wanted = plain[: plain.index(end) + 1] if end in plain else plain
    assert result.output.ids.tolist() == wanted
    assert result.finish_reason == ("stop" if end in plain else "length")


PROCESSORS = [
    {"temperature": 0.2, "do_sample": True, "seed": 1},
    {"top_k": 1, "do_sample": True, "seed": 1},
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 1},
    {"suppress_tokens": [5, 6, 7, 8]},
    {"min_new_tokens": NEW},
]


@pytest.mark.parametrize("options", PROCESSORS, ids=lambda options: next(iter(options)))
@pytest.mark.parametrize("family", ["internvl", "gemma4", "paligemma", "mllama", "granite4_vision"])
def test_raw_numbers_do_not_move_with_processors(family, options, probe_of, own):
    probe, inputs = probe_of(family), encode(own(family), chat(QUESTION, picture()))
    result = probe.generate(
        QUESTION, image=picture(), max_new_tokens=NEW, keep="logits", **{"do_sample": False, **options}
    )
    forced = forward(own(family), extended(own(family), inputs, result.output.ids.tolist()))
    wanted = columns(forced[len(result.input_ids) - 1 : -1], result.output.ids)
    assert np.abs(result.output.logprobs - wanted["logprobs"]).max() < GENERATED_TOLERANCE
    assert np.abs(result.output.entropy - wanted["entropy"]).max() < GENERATED_TOLERANCE
    assert result.output.ranks.tolist() == wanted["ranks"].tolist()
    plain = probe.generate(QUESTION, image=picture(), max_new_tokens=1, do_sample=False)
    assert np.array_equal(result.prompt.logprobs, plain.prompt.logprobs, equal_nan=True)
    assert np.allclose(result.output.top_logprobs[0], plain.output.top_logprobs[0], atol=1e-6)


@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static"}], ids=["none", "static"])
@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("family", ["internvl", "qwen2_vl", "gemma3"])
def test_other_caches_give_the_same_numbers(family, beams, options, probe_of):
    call = {
        "image": picture(),
        "max_new_tokens": 4,
        "do_sample": False,
        "num_beams": beams,
        "keep": {"logits", "hidden"},
    }
    usual, other = (probe_of(family).generate(QUESTION, **call, **more) for more in ({}, options))
    assert other.output.ids.tolist() == usual.output.ids.tolist()
    for side in ("prompt", "output"):
        for column in ("logits", "hidden"):
            held, wanted = (getattr(getattr(each, side), column) for each in (other, usual))
            assert np.nanmax(np.abs(held - wanted)) < GENERATED_TOLERANCE


def test_scores_are_there_only_where_a_processor_ran(probe_of):
    probe = probe_of("internvl")
    assert probe.generate(QUESTION, max_new_tokens=2, do_sample=False).output.scores is None
    sharp = probe.generate(QUESTION, max_new_tokens=4, do_sample=True, temperature=0.5, seed=0).output
    assert np.abs(sharp.scores - sharp.logprobs).max() > 1e-3
    only = probe.generate(QUESTION, max_new_tokens=4, do_sample=True, top_k=1, seed=0).output
    assert np.allclose(only.scores, 0), "one token is left, so its probability is 1"


# What is kept


@pytest.mark.parametrize("family", ["internvl", "gemma4", "cohere_compass", "qwen3_vl", "mllama"])
def test_hidden_states_are_what_enters_the_head(family, probe_of, own):
    result = probe_of(family).generate(
        QUESTION, image=picture(), max_new_tokens=4, do_sample=False, keep={"hidden", "logits"}
    )
    inputs = encode(own(family), chat(QUESTION, picture()))
    caught = []
    model = own(family).model
    handle = model.get_output_embeddings().register_forward_hook(
        lambda _, given, __: caught.append(given[0][0].clone())
    )
    try:
        forward(own(family), extended(own(family), inputs, result.output.ids.tolist()))
    finally:
        handle.remove()
    length = len(result.input_ids)
    wanted = caught[0].float().numpy()
    if family == "cohere_compass":  # scales what enters the head after the backbone has returned it
        scale = wanted[length - 1] / result.output.hidden[0]
        assert scale.std() < 1e-3 * abs(scale.mean())
        wanted = wanted / scale.mean()
    assert np.abs(result.output.hidden - wanted[length - 1 : -1]).max() < GENERATED_TOLERANCE
    rows = text_rows(result.prompt)
    assert np.abs(result.prompt.hidden[rows] - wanted[result.prompt.positions[rows] - 1]).max() < GENERATED_TOLERANCE
    assert np.isnan(result.prompt.hidden[result.prompt.kinds.index("image")]).all()


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"do_sample": True, "seed": 0}])
def test_stats_alone_are_those_beside_logits(options, probe_of):
    probe = probe_of("internvl")
    call = {"image": picture(), "max_new_tokens": 4, **options}
    lean, full = probe.generate(QUESTION, **call), probe.generate(QUESTION, keep={"logits", "hidden"}, **call)
    for side in ("prompt", "output"):
        one, other = getattr(lean, side), getattr(full, side)
        assert one.logits is None
        assert one.hidden is None
        assert other.logits.shape[0] == other.hidden.shape[0] == len(other)
        for column in ("ids", "logprobs", "entropy", "ranks", "logsumexp", "top_ids", "top_logprobs"):
            assert np.array_equal(getattr(one, column), getattr(other, column), equal_nan=True), column


def test_prompt_side_can_be_left_out(probe_of, answered):
    probe = probe_of("internvl")
    without = probe.generate(QUESTION, image=picture(), max_new_tokens=4, do_sample=False, prompt=False)
    both = probe.generate(QUESTION, image=picture(), max_new_tokens=4, do_sample=False)
    assert without.prompt is None
    assert np.array_equal(without.input_ids, both.input_ids)
    assert np.array_equal(without.output.logprobs, both.output.logprobs)


def test_number_of_alternatives(probe_of):
    probe = probe_of("internvl")
    one = probe.generate(QUESTION, max_new_tokens=2, do_sample=False, alternatives=1).output
    assert one.top_ids.shape == (2, 1)
    assert one.top_ids[:, 0].tolist() == one.ids.tolist()
    every = probe.generate(QUESTION, max_new_tokens=2, do_sample=False, alternatives=10**6, keep="logits").output
    assert every.top_ids.shape == every.logits.shape
    assert np.allclose(np.exp(every.top_logprobs).sum(axis=1), 1, atol=1e-5)


# The end of an answer


def test_the_end_token_is_reported_and_nothing_after_it(probe_of):
    probe = probe_of("internvl")
    free = probe.generate(QUESTION, image=picture(), max_new_tokens=6, do_sample=False)
    assert free.finish_reason == "length"
    end = int(free.output.ids[3])
    ended = probe.generate(QUESTION, image=picture(), max_new_tokens=6, do_sample=False, eos_token_id=end)
    stop = free.output.ids.tolist().index(end) + 1
    assert ended.output.ids.tolist() == free.output.ids[:stop].tolist()
    assert ended.finish_reason == "stop"
    assert np.array_equal(ended.output.logprobs, free.output.logprobs[:stop])


def test_stop_strings(probe_of):
    probe = probe_of("cohere2_vision")
    free = probe.generate(QUESTION, max_new_tokens=8, do_sample=False)
    after = 2
    assert free.output.tokens.index(free.output.tokens[after]) == after
    ended = probe.generate(QUESTION, max_new_tokens=8, do_sample=False, stop_strings=[free.output.tokens[after]])
    assert ended.output.ids.tolist() == free.output.ids[: after + 1].tolist()
    assert ended.finish_reason == "stop"


def test_max_length_counts_the_prompt_and_ends_with_length(probe_of):
    probe = probe_of("internvl")
    length = len(probe.generate(QUESTION, max_new_tokens=1, do_sample=False).input_ids)
    result = probe.generate(QUESTION, max_length=length + 3, do_sample=False)
    assert len(result.output) == 3
    assert result.finish_reason == "length"


# Nothing is left behind


def state_of(probe):
    adapter = probe.engine.adapter
    model = adapter.model
    return {
        "generation config": model.generation_config.to_dict(),
        "padding side": adapter.tokenizer.padding_side,
        "hooks": sum(
            len(getattr(module, held))
            for module in model.modules()
            for held in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        ),
        "own attributes": sorted(key for module in model.modules() for key in vars(module) if "forward" in key),
        "training": [module.training for module in model.modules()],
        "gradients": [parameter.requires_grad for parameter in model.parameters()],
        "attention": model.config._attn_implementation,
        "random": torch.get_rng_state().tolist(),
        "grad mode": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize("family", ["internvl", "qwen2_vl", "mllama", "gemma3"])
def test_nothing_global_changes(family, probe_of):
    probe = probe_of(family)
    before = state_of(probe)
    for options in (
        {"do_sample": False},
        {"do_sample": True, "seed": 1, "top_k": 5},
        {"num_beams": 2, "repetition_penalty": 2.0},
    ):
        first = probe.generate(QUESTION, image=picture(), max_new_tokens=4, keep={"logits", "hidden"}, **options)
        again = probe.generate(QUESTION, image=picture(), max_new_tokens=4, keep={"logits", "hidden"}, **options)
        assert np.array_equal(first.output.logits, again.output.logits)
        assert np.array_equal(first.prompt.logits, again.prompt.logits, equal_nan=True)
        assert state_of(probe) == before


def test_sampling_without_a_seed_draws_from_torchs_own_state(probe_of):
    probe = probe_of("internvl")
    drawn = []
    for seed in (4, 4, 5):
        torch.manual_seed(seed)
        drawn.append(probe.generate(QUESTION, max_new_tokens=10, do_sample=True, temperature=2.0).output.ids.tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_model_in_training_mode_answers_without_dropout_and_stays_in_training(checkpoint, own):
    loaded = vlmprobe.load(checkpoint("llava"), device="cpu", dtype="float32").engine.adapter
    calm = vlmprobe.wrap(loaded.model, loaded.processor).generate(
        QUESTION, image=picture(), max_new_tokens=3, do_sample=False
    )
    loaded.model.train()
    for module in loaded.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    loaded.model.language_model = loaded.model.get_decoder()
    part = loaded.model.get_decoder().layers[0]
    part.eval()
    probe = vlmprobe.wrap(loaded.model, loaded.processor)
    result = probe.generate(QUESTION, image=picture(), max_new_tokens=3, do_sample=False)
    assert np.array_equal(result.output.logprobs, calm.output.logprobs)
    assert loaded.model.training
    assert not part.training
    assert part is loaded.model.get_decoder().layers[0]


class Interrupted:
    """Raises from the decoder the so many-th time that it runs."""

    def __init__(self, probe, error, run):
        self.module = probe.engine.adapter.model.get_decoder()
        self.error, self.left = error, run

    def hook(self, *_):
        self.left -= 1
        if self.left == 0:
            raise self.error

    def __enter__(self):
        self.handle = self.module.register_forward_pre_hook(self.hook)

    def __exit__(self, *_):
        self.handle.remove()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("inside the model"), MemoryError()], ids=repr)
@pytest.mark.parametrize("run", [1, 3], ids=["prefill", "decoding"])
@pytest.mark.parametrize("family", ["internvl", "qwen2_5_vl"])
def test_an_error_inside_the_model_reaches_the_caller_and_leaves_nothing(family, run, error, probe_of):
    probe = probe_of(family)
    call = {"image": picture(), "max_new_tokens": 5, "do_sample": True, "seed": 2, "keep": {"logits", "hidden"}}
    before, calm = state_of(probe), probe.generate(QUESTION, **call)
    with Interrupted(probe, error, run), pytest.raises(type(error)) as raised:
        probe.generate(QUESTION, **call)
    assert raised.value is error
    assert state_of(probe) == before
    again = probe.generate(QUESTION, **call)
    assert np.array_equal(again.output.logits, calm.output.logits)
    assert np.array_equal(again.prompt.logits, calm.prompt.logits, equal_nan=True)


def test_an_interrupted_score_leaves_nothing(probe_of):
    probe = probe_of("qwen2_vl")
    before, calm = state_of(probe), probe.score(QUESTION, ["yes", "no"], image=picture())
    with Interrupted(probe, KeyboardInterrupt(), 1), pytest.raises(KeyboardInterrupt):
        probe.score(QUESTION, ["yes", "no"], image=picture())
    assert state_of(probe) == before
    assert np.array_equal(probe.score(QUESTION, ["yes", "no"], image=picture()).logprobs, calm.logprobs)


# NaN and infinite logits


class Damaged:
    """Puts a value into the states that leave the decoder, at one run of it and one position."""

    def __init__(self, probe, value, *, run=1, position=-1):
        self.module = probe.engine.adapter.model.get_decoder()
        self.value, self.left, self.position = value, run, position

    def hook(self, _, __, output):
        self.left -= 1
        if self.left == 0:
            output.last_hidden_state[:, self.position] = self.value
        return output

    def __enter__(self):
        self.handle = self.module.register_forward_hook(self.hook)

    def __exit__(self, *_):
        self.handle.remove()


WAYS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "seed": 0},
    "beams": {"num_beams": 3, "do_sample": False},
}
WAYS["beam sampling"] = {"num_beams": 3, "do_sample": True, "seed": 0}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("run", [1, 3])
def test_non_finite_logits_are_an_error_that_names_the_token(run, way, value, probe_of):
    probe = probe_of("llava")
    with Damaged(probe, value, run=run), pytest.raises(NonFiniteLogitsError, match=rf"generated token {run - 1}\b"):
        probe.generate(QUESTION, image=picture(), max_new_tokens=5, **WAYS[way])
    assert len(probe.generate(QUESTION, image=picture(), max_new_tokens=2, **WAYS[way]).output) == 2


def test_non_finite_prompt_logits_are_an_error_that_names_the_position(probe_of):
    probe = probe_of("llava")
    length = len(probe.generate(QUESTION, image=picture(), max_new_tokens=1, do_sample=False).input_ids)
    with (
        Damaged(probe, float("nan"), position=length - 4),
        pytest.raises(NonFiniteLogitsError, match=rf"prompt position {length - 3}\b"),
    ):
        probe.generate(QUESTION, image=picture(), max_new_tokens=2, do_sample=False)
    with Damaged(probe, float("nan"), position=length - 4):
        assert probe.generate(
            QUESTION, image=picture(), max_new_tokens=2, do_sample=False, prompt=False
        ).output.scored.all()


def test_non_finite_logits_of_a_candidate(probe_of):
    probe = probe_of("llava")
    with Damaged(probe, float("nan")), pytest.raises(NonFiniteLogitsError, match="token 0 of candidate 0"):
        probe.score(QUESTION, ["yes", "a tiger"], image=picture())
    assert np.isfinite(probe.score(QUESTION, ["yes", "a tiger"], image=picture()).logprobs).all()
