"""Fields of JSON answers: read from any text, and measured as a computation by hand and plain forwards measure them."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from json_answers import answer
from PIL import Image

from vlmprobe.analysis import fields
from vlmprobe.analysis.json_reader import DEEPEST, read_json
from vlmprobe.errors import ResultError, VlmprobeWarning

NAN = float("nan")


def product(result, *rows):
    return float(np.exp(sum(float(result.output.logprobs[row]) for row in rows)))


def row(found, path):
    return next(place for place, each in enumerate(found.paths) if each == path)


# -- probabilities ---------------------------------------------------------------------------------------


def test_the_value_is_measured_by_its_own_tokens_and_the_key_by_its():
    result = answer('{"', "to", "tal", '":', " ", "12", ".", "5", ', "', "shop", '": "', "Blue", " Moon", '"', "}")
    found = fields(result)
    assert found.paths == ["total", "shop"]
    assert found.values == [12.5, "Blue Moon"]
    assert found.kinds == ["number", "string"]
    assert not found.straddles.any()
    np.testing.assert_allclose(found.probability, [product(result, 5, 6, 7), product(result, 11, 12)], rtol=1e-6)
    np.testing.assert_allclose(found.at_least, found.probability)
    np.testing.assert_allclose(found.at_most, found.probability)
    np.testing.assert_allclose(found.key_probability, [product(result, 1, 2), product(result, 9)], rtol=1e-6)
    output = result.output
    np.testing.assert_allclose(found.entropy, [output.entropy[5:8].mean(), output.entropy[11:13].mean()], rtol=1e-6)
    least = 5 + int(np.argmin(output.logprobs[5:8]))
    assert found.least_sure[0] == output.tokens[least]
    assert found.least_sure_probability[0] == pytest.approx(np.exp(output.logprobs[least]))
    assert [found.text[start:stop] for start, stop in found.spans] == ["12.5", "Blue Moon"]


@pytest.mark.parametrize(
    ("tokens", "inner", "outer"),
    [
        (['{"a": "', "Done", '."', "}"], [1], [2]),  # the end of a string with its quote
        (['{"a":', ' "$', "12", '"}'], [2], [1]),  # a quote with the begin of a string
        (['{"a": ', "12.5", "0}"], [1], [2]),  # the end of a number with a bracket
        (['{"a', '":1', "2", "}"], [2], [1]),  # a number that begins in a token
        (['{"a": ', "[]}"], [], [1]),  # an empty array with what follows it
        (['{"a": "', '",', '"b": 1}'], [], [1]),  # an empty string has its closing quote
        (['{"a": "', "x", '"}'], [1], []),
        (['{"a": "$12."}'], [], [0]),  # all in one
    ],
)
def test_a_token_that_holds_structure_too_is_told_and_bounds(tokens, inner, outer):
    result = answer(*tokens)
    found = fields(result)
    assert found.paths[0] == "a"
    assert found.straddles[0] == bool(outer)
    assert found.at_least[0] == pytest.approx(product(result, *inner, *outer))
    assert found.at_most[0] == pytest.approx(product(result, *inner))
    assert np.isnan(found.probability[0]) == bool(outer)


def test_white_space_belongs_to_a_constant_but_not_to_a_string():
    result = answer('{"a":', " true", ',\n"b":', " 7\n", ', "c": "', " x", '"}')
    found = fields(result)
    assert found.straddles.tolist() == [False, False, False]
    np.testing.assert_allclose(found.probability, [product(result, 1), product(result, 3), product(result, 5)])
    assert found.values == [True, 7, " x"]
    assert fields(answer('{"a":', ' "x', '"}')).straddles[0]


def test_pieces_of_a_character_all_count():
    result = answer('{"a": "', "caf", "", "é", '"}')
    assert fields(result).probability[0] == pytest.approx(product(result, 1, 2, 3))
    quoted = answer('{"a": "caf', "", 'é"', "}")  # both pieces hold the quote, as far as offsets tell
    found = fields(quoted)
    assert found.at_least[0] == pytest.approx(product(quoted, 0, 1, 2))
    assert found.at_most[0] == 1


def test_a_special_token_within_a_value_counts():
    result = answer('{"a": "', "x", "y", '"}')
    kinds = ["text", "special", "text", "text", "special"]
    changed = replace(result, output=replace(result.output, kinds=kinds), text='{"a": "y"}')
    assert fields(changed).probability[0] == pytest.approx(product(result, 2))  # before it, with the quote
    inside = replace(
        result.output, kinds=["text", "text", "special", "text", "special"], tokens=['{"a": "', "x", "<s>", 'z"}', ""]
    )
    found = fields(replace(result, output=inside, text='{"a": "xz"}'))
    assert found.at_least[0] == pytest.approx(product(result, 1, 2, 3))


def test_the_probability_is_that_of_plain_forwards():
    """P(tokens of the value | all before it), by the model's own forward of prompt and answer, a token at a time."""
    import torch

    import vlmprobe
    from vlmprobe.demo import sample_images

    probe, image = vlmprobe.load("demo", device="cpu", dtype="float32"), Image.open(sample_images()[0])
    table = probe.score("Describe the picture.", ['{"left": "red nine", "sure": 10, "ok":["no"]}'], image).tables[0]
    found = fields(table)
    assert found.paths == ["left", "sure", "ok[0]"]
    asked = [
        {
            "role": "user",
            "content": [{"type": "image", "image": image}, {"type": "text", "text": "Describe the picture."}],
        }
    ]
    prompt = probe.processor.apply_chat_template(
        asked, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    ids, begins = table.ids.tolist(), np.cumsum([0, *map(len, table.tokens)])

    def probability(start, stop):
        rows = [row for row in range(len(ids)) if begins[row] < stop and begins[row + 1] > start]
        logprob = 0.0
        for at in rows:
            whole = torch.cat([prompt["input_ids"], torch.tensor([ids[:at]], dtype=torch.long)], dim=1)
            with torch.no_grad():
                logits = probe.model(
                    input_ids=whole, attention_mask=torch.ones_like(whole), pixel_values=prompt["pixel_values"]
                ).logits
            logprob += float(logits[0, -1].double().log_softmax(-1)[ids[at]])
        return np.exp(logprob)

    values = [probability(*span) for span in found.spans.tolist()]
    np.testing.assert_allclose(found.probability, values, rtol=1e-4)
    assert min(values) > 0
    key = found.text.index("left")
    np.testing.assert_allclose(found.key_probability[0], probability(key, key + 4), rtol=1e-4)
    assert np.isnan(found.key_probability[2])


# -- engines that give less ------------------------------------------------------------------------------


def test_what_the_engine_does_not_give_is_not_made_up():
    result = answer('{"a": "', "x", "y", '", "b": "', "z", '"}')
    logprobs = result.output.logprobs.copy()
    logprobs[2] = NAN
    bounds = np.full(len(logprobs), np.nan, np.float32)
    bare = replace(result, output=replace(result.output, logprobs=logprobs))
    found = fields(bare)
    assert np.isnan([found.probability[0], found.at_least[0], found.at_most[0]]).all()
    assert found.probability[1] == pytest.approx(product(result, 4))
    bounds[2] = np.log(0.1)
    found = fields(replace(bare, output=replace(bare.output, logprobs_at_most=bounds)))
    assert np.isnan([found.probability[0], found.at_least[0]]).all()
    assert found.at_most[0] == pytest.approx(0.1 * product(result, 1))
    assert found.lowest_first().paths == ["a", "b"]


def test_an_answer_that_was_stripped_is_found_in_its_tokens():
    result = answer("\n\n", '{"a": "', "x", '"}', "\n", text='{"a": "x"}')
    found = fields(result)
    assert found.probability[0] == pytest.approx(product(result, 2))
    assert found.text[slice(*found.spans[0])] == "x"
    with pytest.warns(VlmprobeWarning, match="not among what its tokens say"):
        found = fields(replace(result, text='{"a": "other"}'))
    assert found.values == ["other"]
    assert np.isnan(found.at_least).all()


# -- reading ---------------------------------------------------------------------------------------------


def read(text):
    return [(leaf.path, leaf.value) for leaf in read_json(text).leaves]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"a": [1, [2.50, {"b": null}]], "c": {}}',
         [(("a", 0), 1), (("a", 1, 0), 2.5), (("a", 1, 1, "b"), None), (("c",), {})]),
        (r'{"a": "x\"y\\", "b": "\u00e9\ud83d\ude00"}', [(("a",), 'x"y\\'), (("b",), "é😀")]),
        (r'{"a": "{\"b\": [1]}"}', [(("a",), '{"b": [1]}')]),
        ('Sure! See [1] and [image].\n{"a": 1} I hope {this} helps.', [(("a",), 1)]),
        ('{"draft": 0} or\n```json\n{"a": 1}\n```\nDone', [(("a",), 1)]),
        ("```\n[1, 2]\n```", [((0,), 1), ((1,), 2)]),
        ("The list: [3, 4].", [((0,), 3), ((1,), 4)]),
        ('[{"a": 1}, {"a": 2}]', [((0, "a"), 1), ((1, "a"), 2)]),
        ("{}", [((), {})]),
        ('{"": 1, "a.b": {"c d": 2}}', [(("",), 1), (("a.b", "c d"), 2)]),
        ("{name} and {'a': 'b'}", [(("a",), "b")]),
        ('{"n": -0.5e-3, "big": ' + "9" * 5000 + "}", [(("n",), -0.0005), (("big",), float("inf"))]),
    ],
)  # fmt: skip
def test_json_is_found_and_read(text, wanted):
    assert read(text) == wanted


@pytest.mark.parametrize(
    ("text", "values", "told"),
    [
        ("{'a': 'b'}", ["b"], "single quotes"),
        ('{"a": [1, 2,],}', [1, 2], "trailing comma (2 times, first at character 11)"),
        ('{"a": 1 "b": 2}', [1, 2], "missing comma (at character 8)"),
        ('{a: 1, "b": 2}', [1, 2], "key without quotes (at character 1)"),
        ('{"a": 1, "a": 2}', [1, 2], "duplicate key (at character 10)"),
        ('{"a": 1, "b": [2, "x', [1, 2, "x"], "cut off (at character 20)"),
        ('{"a": 1, "b": [2}', [1, 2], "no JSON from here on (at character 16)"),
        ('{"a": 1,234.50}', [1], "no JSON from here on"),
    ],
)
def test_what_is_no_json_is_told_as_what_it_is(text, values, told):
    document = read_json(text)
    assert [leaf.value for leaf in document.leaves] == values
    assert any(each.startswith(told) for each in document.problems), document.problems


def test_notes_of_fields():
    found = fields(answer('{"a": NaN, "b": -Infinity, "c": None, "d": 12,50, "e": 1}'))
    assert found.notes[:3] == ["NaN is not in JSON", "Infinity is not in JSON", "a constant of Python"]
    assert found.notes[3] == "no JSON after it"  # lest the 12 seems to be all
    assert np.isnan(found.values[0])
    doubled = fields(answer('{"a": {"x": 1}, "b": 2, "a": 3}'))
    assert doubled.paths == ["a.x", "b", "a"]
    assert doubled.notes == ["duplicate key", "", "duplicate key"]
    alone = fields(answer(r'{"a": "\ud83d", "b": "\q"}'))
    assert alone.values == ["\ufffd", "q"]
    assert alone.notes == ["half a surrogate pair", r"unknown escape \q"]


@pytest.mark.parametrize(
    ("text", "value", "kind"),
    [
        ('{"a": 12', 12, "number"),
        ('{"a": "x', "x", "string"),
        ('{"a": "x\\u00', "x", "string"),
        ('{"a": "x\\', "x", "string"),
        ('{"a": tru', "tru", "text"),
        ('{"a":', None, "none"),
        ('{"a": [', [], "array"),
        ('{"a": {"b', {}, "object"),
    ],
)
def test_a_value_that_is_cut_off_is_told_as_incomplete(text, value, kind):
    found = fields(answer(text, end=False))
    assert (found.paths, found.values, found.kinds) == (["a"], [value], [kind])
    assert not found.complete[0]
    assert "cut off" in found.notes[0]
    assert found.problems[-1] == f"cut off (at character {len(text)})"


def test_what_stands_before_the_cut_is_complete():
    found = fields(answer('{"a": "x", "b": true', end=False))
    assert found.complete.tolist() == [True, True]
    assert found.problems == ["cut off (at character 20)"]


def test_no_json_is_an_error_that_shows_the_answer():
    with pytest.raises(ResultError, match="empty"):
        fields(answer("", end=False))
    with pytest.raises(ResultError, match="no JSON object or array in the answer 'It is nine'"):
        fields(answer("It is nine"))
    with pytest.raises(TypeError, match="TokenTable or a Result"):
        fields('{"a": 1}')


def test_ten_thousand_fields_take_a_moment():
    tokens = ["{"]
    for number in range(10_000):
        tokens += ['"', f"k{number}", '": ', str(number), ", "]
    result = answer(*tokens[:-1], "}")
    start = time.process_time()
    found = fields(result)
    assert time.process_time() - start < 5
    assert len(found) == 10_000
    assert found.values == list(range(10_000))
    np.testing.assert_allclose(found.probability, np.exp(result.output.logprobs[4::5][:10_000]), rtol=1e-6)
    assert "10,000 fields" in repr(found)
    assert len(found._repr_html_()) < 100_000


@pytest.mark.parametrize(
    "text",
    ["[" * 5_000_000, '{"a":' * 1_000_000, "[x" * 2_500_000, "{x" * 2_500_000, '{"' * 2_500_000, '["a"' * 1_250_000],
)  # fmt: skip
def test_megabytes_of_brackets_are_refused_at_once(text):
    start = time.perf_counter()
    with pytest.raises(ResultError, match=f"more than {DEEPEST} deep|no JSON"):
        read_json(text)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("text", ["{}" * 2_500_000, "[]" * 2_500_000, '["' + "\\" * 1_000_000, "```json {x " * 100_000])
def test_megabytes_that_begin_as_json_take_no_longer(text):
    start = time.perf_counter()
    assert len(read_json(text).leaves) == 1
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("seed", range(5))
def test_what_json_writes_is_read_as_json_reads_it(seed):
    """Random documents, written by the standard library with every kind of white space."""
    import json

    random = np.random.default_rng(seed)

    def make(depth):
        kind = random.integers(0, 8 if depth < 5 else 6)
        if kind >= 6:
            several = [make(depth + 1) for _ in range(random.integers(0, 4))]
            return several if kind == 6 else {make_text(): each for each in several}
        return [None, True, False, int(random.integers(-1000, 1000)), float(random.normal()), make_text()][kind]

    def make_text():
        return "".join(random.choice(list("ab\"\\/ \n\té😀{}[],:'.\u2028"), random.integers(0, 8)))

    def flat(value, path=()):
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        found = [leaf for part, each in inner for leaf in flat(each, (*path, part))]
        return found or [(path, value)]

    for _ in range(200):
        given = {"root": make(0)}
        indent = [None, 1, "\t"][random.integers(3)]
        text = json.dumps(given, ensure_ascii=bool(random.integers(2)), indent=indent)
        document = read_json(f"Here: {text} Done.")
        assert document.complete
        assert not document.problems
        assert [(leaf.path, leaf.value) for leaf in document.leaves] == flat(given)
        cut = read_json(f"{text[: random.integers(7, len(text))]}")  # never an error, wherever it is cut
        assert not cut.complete


# -- paths -----------------------------------------------------------------------------------------------


def receipts():
    return fields(
        answer('{"items": [{"price": 1, "n": "a"}, {"price": 2, "n": "b"}], "a.b": {"c d": 3, "[0]": 4}, "é": 5}')
    )


def test_paths_quote_what_needs_it():
    wanted = ["items[0].price", "items[0].n", "items[1].price", "items[1].n", '["a.b"]["c d"]', '["a.b"]["[0]"]', "é"]
    assert receipts().paths == wanted
    assert fields(answer('[{"a": [1]}]')).paths == ["[0].a[0]"]
    for path in wanted:
        assert receipts()[path].paths == [path]


def test_paths_select():
    found = receipts()
    assert found["items[].price"].values == [1, 2]
    assert found["items[1]"].values == [2, "b"]
    assert found["items"].values == [1, "a", 2, "b"]
    assert found['["a.b"]'].values == [3, 4]
    result = answer('{"a": [1, 2]}')
    assert fields(result, "a[]").values == [1, 2]
    absent = fields(result, path="b[].c")
    assert (absent.paths, absent.kinds, absent.notes) == (["b[].c"], ["missing"], ["missing"])
    assert np.isnan(absent.at_least).all()


@pytest.mark.parametrize("path", ["a..b", "a.", ".a", "a[x]", "a b", '["a', "a]", "[0]b"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(ResultError, match="no path of a field"):
        fields(answer('{"a": 1}'), path)


# -- tables ----------------------------------------------------------------------------------------------


def test_tables_and_the_order_of_confidence():
    result = answer('{"', "a", '": ', "1", ', "', "b", '": ', "2", ', "', "c", '": "', "x", '."}')
    found = fields(result)
    lowest = found.lowest_first()
    assert lowest.at_least.tolist() == sorted(found.at_least)
    assert sorted(lowest.paths) == ["a", "b", "c"]
    table = found.to_pandas()
    assert list(table["path"]) == ["a", "b", "c"]
    assert list(table["value"]) == [1, 2, "x."]
    assert [type(each) for each in table["value"]] == [int, int, str]
    assert found.to_dict()["fields"][2]["probability"] is None
    assert f"least sure {lowest.paths[0]}" in repr(found)
    html = found._repr_html_()
    assert "at most" in html
    assert not found.probability.flags.writeable


def test_foreign_text_is_escaped():
    html = fields(answer('{"<script>": "<b>\\u001b[31m</b>\x1b"}'))._repr_html_()
    assert "<script>" not in html.split("</style>")[1]
    assert "<b>\\u001b" not in html
    assert "\x1b" not in html


def test_the_plot_has_a_bar_for_each_field():
    found = fields(answer('{"', "a", '": ', "1", ', "c": "', "x", '."}'))
    ax = found.plot()
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], found.at_least)
    assert [each.get_text() for each in ax.get_yticklabels()] == ["a: 1", "c: x."]
    np.testing.assert_allclose(ax.get_lines()[0].get_xdata(), [NAN, found.at_most[1]])
