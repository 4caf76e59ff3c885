"""Candidates of one token from the tokens that an engine lists: numbers, bounds, and what they leave open.

The reference is a model that is open here, and softmax over its whole row, written out.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import wire_engines as wire
from wire_server import WireServer

import vlmprobe
from vlmprobe import Failure
from vlmprobe.analysis.yes_no import yes_no_many
from vlmprobe.engines.serving import Alternative, Row
from vlmprobe.engines.serving.first_token import Listed, Sought, found_in, may_begin
from vlmprobe.errors import CapabilityError, ResultError
from vlmprobe.results.bounds import WIDEST
from vlmprobe.results.grouped import NO, YES, YesNo, grouped
from vlmprobe.results.result import Scores

PICTURES = sorted((Path(vlmprobe.__file__).parent / "demo" / "pictures").glob("*.png"))
QUESTION = "Is there a two?"
ENGINES = ("llamacpp", "lmdeploy", "ollama", "openai")
MODELS = {"/v1/models": {"data": [{"id": "m"}]}}


@pytest.fixture(scope="module")
def local():
    return vlmprobe.load("demo", dtype="float32", device="cpu")


@pytest.fixture
def model(local):
    return wire.Model(local, QUESTION)


def routes(engine: str, model: wire.Model, **more) -> dict:
    facts = MODELS if engine == "openai" else wire.facts(engine)
    return {**facts, path_of(engine): getattr(wire, engine)(model, **more)}


def path_of(engine: str) -> str:
    return "/api/chat" if engine == "ollama" else "/v1/chat/completions"


def said(tokens: dict[str, float]) -> WireServer:
    """A server of OpenAI's protocol that lists these tokens, the first of which it drew."""
    entries = [{"token": token, "logprob": value} for token, value in tokens.items()]
    choice = {"message": {"content": entries[0]["token"]}, "finish_reason": "length"}

    def chat(request):
        listed = entries[: request.json["top_logprobs"]]
        return {"choices": [{**choice, "logprobs": {"content": [{**entries[0], "top_logprobs": listed}]}}]}

    return WireServer({**MODELS, "/v1/chat/completions": chat})


def asked(tokens: dict[str, float], candidates, **more) -> Scores:
    with said(tokens) as server:
        return vlmprobe.connect(server.url, value_kind="raw").score("?", candidates, **more)


def require_inside(exact, bounds, slack: float = 1e-5):
    bounds = np.asarray(bounds)
    assert (bounds[..., 0] - slack <= exact).all(), (exact, bounds)
    assert (exact <= bounds[..., 1] + slack).all(), (exact, bounds)


# -- over the wire ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tokenizer", [True, False])
def test_yes_no_over_servers_that_list_tokens(local, model, engine, tokenizer):
    here = local.yes_no(QUESTION, PICTURES[0])
    with WireServer(routes(engine, model)) as server:
        probe = vlmprobe.connect(server.url, processor=local if tokenizer else None)
        answer = probe.yes_no(QUESTION, PICTURES[0])
        sent = server.of(path_of(engine))[-1].json
    low, high = answer.bounds
    assert low - 1e-6 <= here.probability <= high + 1e-6
    assert low <= answer.probability <= high
    assert high - low < 1e-3
    assert answer.says_yes == here.says_yes
    assert answer.meta["candidates"] == "listed tokens"
    assert answer.meta["value_kind"] == "raw"
    if engine == "ollama":
        assert (sent["top_logprobs"], sent["options"]["num_predict"]) == (20, 1)
    else:
        wide = {"llamacpp": 1000, "lmdeploy": 1024, "openai": 20}[engine]
        assert (sent["top_logprobs"], sent["max_tokens"]) == (wide, 1)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tokenizer", [True, False])
def test_scores_of_one_token_are_those_of_the_model(local, model, engine, tokenizer):
    texts = ["yes", "no", "a two on the left"]
    here = local.score(QUESTION, texts, PICTURES[0])
    with WireServer(routes(engine, model)) as server:
        scores = vlmprobe.connect(server.url, processor=local if tokenizer else None).score(
            QUESTION, texts, PICTURES[0]
        )
    np.testing.assert_allclose(scores.logprobs[:2], here.logprobs[:2], atol=1e-4)
    assert np.isnan(scores.logprobs[2])  # several tokens: only a bound
    require_inside(here.logprobs, scores.logprob_bounds)
    require_inside(here.probabilities, scores.probability_bounds)
    assert scores.best == here.best
    assert scores.tables[0].ranks[0] == here.tables[0].ranks[0]
    assert len(scores.tables[2]) == (len(here.tables[2]) if tokenizer else 1)


def test_turbomind_is_asked_at_temperature_one(local, model):
    here = local.score(QUESTION, ["yes", "no"], PICTURES[0])
    with WireServer(routes("lmdeploy", model, turbomind=True)) as server:
        scores = vlmprobe.connect(server.url, processor=local).score(QUESTION, ["yes", "no"], PICTURES[0])
        sent = server.of(path_of("lmdeploy"))[-1].json
    assert (sent["temperature"], sent["top_k"], sent["top_p"]) == (1.0, 0, 1.0)
    np.testing.assert_allclose(scores.logprobs, here.logprobs, atol=1e-4)


def test_many_are_in_flight_and_equal_single_ones(local, model):
    requests = [(QUESTION, picture) for picture in PICTURES[:6]]
    with WireServer(routes("openai", model)) as server:
        probe = vlmprobe.connect(server.url)
        many = list(yes_no_many(probe, requests, progress=False))
        assert server.most_in_flight > 1
        assert len(server.of(path_of("openai"))) == 3 + len(requests)  # three determine what the numbers mean
    for (question, picture), answer in zip(requests, many, strict=True):
        assert isinstance(answer, YesNo)
        exact = local.yes_no(question, picture)
        assert answer.bounds[0] - 1e-6 <= exact.probability <= answer.bounds[1] + 1e-6


def test_rank_over_a_server_that_lists_tokens():
    with said({"no": math.log(0.5), "yes": math.log(0.3), "x": math.log(0.1)}) as server:
        ranking = vlmprobe.connect(server.url, value_kind="raw").rank("a two", ["one", "two"])
    np.testing.assert_allclose(ranking.margins, math.log(0.3 / 0.5), atol=1e-6)
    with said({"no": math.log(0.5), "x": math.log(0.1)}) as server:
        probe = vlmprobe.connect(server.url, value_kind="raw")
        with pytest.raises(CapabilityError, match=r"document 0.*does not list 'yes'"):
            probe.rank("a two", ["one", "two"])


def test_a_reply_of_a_real_server():
    """LiteLLM before llama.cpp: a piece of a character, and " no", are listed."""
    reply = json.loads((wire.WIRE / "openai" / "litellm.json").read_text(encoding="utf-8"))
    reply["choices"][0]["logprobs"]["content"] = reply["choices"][0]["logprobs"]["content"][:1]
    with WireServer({**MODELS, "/v1/chat/completions": reply}) as server:
        scores = vlmprobe.connect(server.url, value_kind="raw").score("?", [" no", "yes", "迤", "no"])
    piece, no = -0.7651609778404236, -2.018777370452881
    np.testing.assert_allclose(scores.logprobs, [no, np.nan, np.nan, np.nan], atol=1e-6)
    # "迤" may begin with the piece; the others are unlisted, and so no likelier than the last one that is listed.
    np.testing.assert_allclose(scores.logprob_bounds[:, 1], [no, no, piece, no], atol=1e-6)
    assert scores.meta["listed"]["unlisted"] == pytest.approx(1 - math.exp(piece) - math.exp(no), abs=2e-4)


def test_a_reply_of_a_real_llama_server_whose_first_token_is_a_piece_of_a_character():
    """As it comes, that token has no row: another one is forced, which changes no number."""
    recorded = json.loads((wire.WIRE / "llamacpp" / "first-token.json").read_text(encoding="utf-8"))
    assert "logprobs" not in recorded["plain"]["choices"][0]
    with WireServer({**wire.facts("llamacpp"), "/v1/chat/completions": recorded["forced"]}) as server:
        scores = vlmprobe.connect(server.url).score("Is it red?", [" no", "on", "日", "yes"], alternatives=8)
        assert server.of("/v1/chat/completions")[-1].json["logit_bias"] == [["a", 1000.0]]
    no, on = -3.595762252807617, -3.318453788757324
    np.testing.assert_allclose(scores.logprobs, [no, on, np.nan, np.nan], atol=1e-6)
    np.testing.assert_allclose(
        scores.logprob_bounds[2:, 1], [-1.1051522493362427, no], atol=1e-6
    )  # of a piece; of " no"
    # transformers, for the same weights and the same prompt
    np.testing.assert_allclose(scores.logprobs[:2], [-3.595697, -3.318427], atol=2e-4)


def test_a_piece_of_a_character_that_a_server_cuts_to_nothing():
    """Behind OpenAI's protocol, "" with bytes may begin a character; "" without is the end."""
    entries = [
        {"token": "", "logprob": math.log(0.5), "bytes": [230]},
        {"token": "", "logprob": math.log(0.3), "bytes": []},
        {"token": "x", "logprob": math.log(0.1), "bytes": [120]},
    ]
    choice = {"message": {"content": ""}, "logprobs": {"content": [{**entries[0], "top_logprobs": entries}]}}
    with WireServer({**MODELS, "/v1/chat/completions": {"choices": [choice]}}) as server:
        scores = vlmprobe.connect(server.url, value_kind="raw").score("?", ["日", "yes", "x"])
    np.testing.assert_allclose(scores.logprob_bounds[:, 1], np.log([0.5, 0.1, 0.1]), atol=1e-6)


# -- bounds contain what is exact --------------------------------------------------------------------------


def listing(tokens: list[str], logprobs: np.ndarray, k: int) -> tuple[Row, Listed]:
    order = np.argsort(-logprobs, kind="stable")[:k].tolist()
    top = tuple(Alternative(float(logprobs[each]), text=tokens[each]) for each in order)
    row = Row(top[0].value, text=top[0].text, top=top)
    return row, Listed.of(row)


def served(candidates: list[str], row: Row, listed: Listed) -> Scores:
    """Scores as an engine without ids makes them."""
    from vlmprobe.engines.serving.answer import Scored
    from vlmprobe.engines.serving.results import scores_of
    from vlmprobe.engines.serving.tokens import Tokens
    from vlmprobe.engines.serving.value_kind import Meaning
    from vlmprobe.inputs.messages import Conversation

    found = [found_in(listed, Sought(text), row.top) for text in candidates]
    return scores_of(
        [Scored(each.rows, -1) for each in found],
        Conversation.build("?"),
        candidates,
        vlmprobe.probe.request.options_of("stats", None, None, None, {}),
        title="Server",
        meaning=Meaning("raw"),
        tokens=Tokens(),
        meta={"listed": listed.record(candidates, found)},
    )


@pytest.mark.parametrize("picture", range(3))
def test_the_exact_probability_of_yes_is_inside_the_bounds_for_every_k(local, picture):
    exact = local.yes_no(QUESTION, PICTURES[picture])
    row = local.generate(QUESTION, PICTURES[picture], keep="logits", max_new_tokens=1).output.logits[0]
    tokens = [local.engine.detokenizer.alone(each) for each in range(len(row))]
    told = 0
    for k in range(1, 21):
        drawn, listed = listing(tokens, wire.logprobs(row), k)
        scores = served([*YES, *NO], drawn, listed)
        require_inside(local.score(QUESTION, [*YES, *NO], PICTURES[picture]).logprobs, scores.logprob_bounds)
        if np.isnan(scores.logprobs).all():
            continue  # no answer is listed: refused before
        try:
            answer = grouped({"yes": YES, "no": NO}, scores, kind=YesNo)
        except CapabilityError:
            continue
        told += 1
        low, high = answer.bounds
        assert low - 1e-6 <= exact.probability <= high + 1e-6
        assert not low <= 0.5 <= high or high - low <= WIDEST
        require_inside(np.log(np.exp(exact.logprobs)), answer.logprob_bounds)
    assert told >= 15


def test_bounds_hold_for_any_distribution_and_any_tokens_of_the_candidates():
    random = np.random.default_rng(17)
    pieces = [
        "y",
        "ye",
        "yes",
        "yes!",
        "Y",
        "n",
        "no",
        "nope",
        " ",
        " y",
        " yes",
        "No",
        "n\N{REPLACEMENT CHARACTER}",
        "",
    ]
    tokens = pieces + [f"t{place}" for place in range(40)]
    candidates = ["yes", " yes", "Yes", "no", "nope", "None", "né"]
    for _ in range(200):
        logits = random.normal(0, random.choice([1.0, 3.0, 8.0]), len(tokens))
        logprobs = logits - np.logaddexp.reduce(logits)
        row, listed = listing(tokens, logprobs, int(random.integers(1, 21)))
        assert listed.unlisted >= 1 - sum(math.exp(each.value) for each in row.top)
        scores = served(candidates, row, listed)
        exact = np.array([_exact(text, tokens, logprobs, random) for text in candidates])
        require_inside(exact, scores.logprob_bounds)
        shares = np.exp(exact - np.logaddexp.reduce(exact))
        require_inside(shares, scores.probability_bounds)
        groups = {"yes": candidates[:3], "no": candidates[3:]}
        if np.isnan(scores.logprobs).all():
            continue
        try:
            found = grouped(groups, scores)
        except CapabilityError:
            continue
        sums = np.array([np.logaddexp.reduce(exact[:3]), np.logaddexp.reduce(exact[3:])])
        require_inside(sums, found.logprob_bounds)
        require_inside(np.exp(sums - np.logaddexp.reduce(sums)), found.probability_bounds)


def _exact(text: str, tokens: list[str], logprobs: np.ndarray, random: np.random.Generator) -> float:
    """A candidate that is a token is that token; any other begins with some token, and each step costs something."""
    if text in tokens:
        return float(logprobs[tokens.index(text)])
    first = [each for each in tokens if each and text.startswith(each.partition("\N{REPLACEMENT CHARACTER}")[0])]
    first = [each for each in first if each != "n\N{REPLACEMENT CHARACTER}" or text == "né"]
    chosen = tokens.index(str(random.choice(first))) if first else None
    return -30.0 if chosen is None else float(logprobs[chosen]) - float(random.exponential(1.0))


def test_two_answers_are_bounded_by_hand():
    """Yes 0.5, no 0.3 and 0.1 elsewhere; ten spellings are not listed, and together hold at most the other 0.1."""
    scores = asked({"yes": math.log(0.5), "no": math.log(0.3), "x": math.log(0.1)}, {"yes": YES, "no": NO})
    rest = 0.1 + 1e-4  # with the margin for rounded numbers
    np.testing.assert_allclose(scores.logprobs, np.log([0.5, 0.3]), atol=1e-6)
    np.testing.assert_allclose(scores.probabilities, [0.625, 0.375], atol=1e-6)
    np.testing.assert_allclose(
        scores.probability_bounds,
        [[0.5 / (0.8 + rest), (0.5 + rest) / (0.8 + rest)], [0.3 / (0.8 + rest), (0.3 + rest) / (0.8 + rest)]],
        atol=1e-5,
    )
    assert scores.mass == pytest.approx(0.8, abs=1e-6)
    assert not scores.left_out
    assert set(scores.meta["listed"]["absent"]) == {*YES, *NO} - {"yes", "no"}
    assert "not among the 3 tokens" in scores.meta["listed"]["absent"]["Yes"]


def test_local_scores_have_no_open_bounds(local):
    scores = local.score(QUESTION, {"yes": ["yes", " yes"], "no": ["no"]}, PICTURES[0])
    assert not scores.bounded
    assert scores.decided
    np.testing.assert_array_equal(scores.logprob_bounds, np.stack([scores.logprobs] * 2, axis=-1))
    np.testing.assert_array_equal(scores.probability_bounds, np.stack([scores.probabilities] * 2, axis=-1))
    answer = local.yes_no(QUESTION, PICTURES[0])
    assert answer.bounds == (answer.probability, answer.probability)


# -- one answer, none, too little --------------------------------------------------------------------------


@pytest.mark.parametrize(("token", "says"), [("Yes", True), ("No", False)])
def test_one_answer_is_listed(token, says):
    with said({token: math.log(0.95), "x": math.log(0.03)}) as server:
        answer = vlmprobe.connect(server.url, value_kind="raw").yes_no("?")
    assert answer.says_yes is says
    assert answer.probability == float(says)
    rest = 0.02 + 1e-4
    edge = 0.95 / (0.95 + rest)
    assert answer.bounds == pytest.approx((edge, 1.0) if says else (0.0, 1 - edge), abs=1e-5)
    assert np.isnan(answer.margin)


def test_no_answer_is_listed():
    with pytest.raises(CapabilityError, match=r"lists 2 tokens.*'The' 0\.900, 'A' 0\.050.*at most 0\.05") as raised:
        asked({"The": math.log(0.9), "A": math.log(0.05)}, ["yes", "no"])
    assert "vLLM with --max-logprobs" not in str(raised.value)  # two of the twenty requested: the server has no more
    full = {f"t{place}": math.log(0.04) for place in range(25)}
    with pytest.raises(CapabilityError, match="at most 20: the protocol allows no more; vLLM with --max-logprobs does"):
        asked(full, ["yes", "no"])
    with pytest.raises(CapabilityError, match="alternatives=20 lists more"):
        asked(full, ["yes", "no"], alternatives=3)


def test_too_little_to_tell_yes_from_no():
    tokens = {"yes": 0.3, "The": 0.29, "no": 0.2, "A": 0.15, "It": 0.05}
    with said({token: math.log(share) for token, share in tokens.items()}) as server:
        probe = vlmprobe.connect(server.url, value_kind="raw")
        with pytest.raises(CapabilityError, match=r"'yes' is between 0\.422 and 1\.000") as raised:
            probe.yes_no("?", alternatives=2)  # the others hold 0.41, which may all be no
        assert "'yes' 0.300, 'The' 0.290" in str(raised.value)
        assert "alternatives=20 lists more" in str(raised.value)
        answer = probe.yes_no("?")
    assert answer.probability == pytest.approx(0.6)
    assert answer.bounds == pytest.approx((0.3 / 0.5101, 0.3101 / 0.5101), abs=1e-5)


def test_too_little_is_a_failure_of_its_request():
    with said({"yes": math.log(0.3), "The": math.log(0.29)}) as server:
        probe = vlmprobe.connect(server.url, value_kind="raw")
        found = list(probe.score_many(["?", "??"], {"yes": YES, "no": NO}, on_error="keep", progress=False))
        assert all(isinstance(each, Failure) for each in found)
        with pytest.raises(CapabilityError, match="request 0: The engine lists too little"):
            list(probe.score_many(["?"], {"yes": YES, "no": NO}, progress=False))


def test_the_best_is_not_told_where_an_unlisted_one_may_be():
    """A candidate that may begin with a likelier token may be likelier."""
    scores = asked({"not": math.log(0.6), "yes": math.log(0.3)}, ["yes", "not sure"])
    assert not scores.decided
    with pytest.raises(ResultError, match="may be the likeliest"):
        _ = scores.best
    assert scores.to_dict()["best"] is None
    assert scores.probability_bounds[0].tolist() == pytest.approx([0.3 / 0.9, 1.0])
    plain = asked({"yes": math.log(0.6), "no": math.log(0.3)}, ["yes", "no", "maybe"])
    assert plain.best == "yes"


# -- what is no number -------------------------------------------------------------------------------------


def test_sentinels_are_no_numbers():
    scores = asked({"yes": math.log(0.9), "no": -9999.0, "x": math.log(0.04)}, ["yes", "no"])
    assert np.isnan(scores.logprobs[1])
    assert scores.logprob_bounds[1, 1] == pytest.approx(math.log(0.04), abs=1e-6)
    assert scores.meta["listed"]["tokens"] == 2


def test_numbers_after_filters_are_refused():
    with pytest.raises(CapabilityError, match="after its filters"):
        asked({"yes": 0.0}, ["yes", "no"])
    sure = asked({"yes": -1e-9, "no": -20.0}, ["yes", "no"])  # a model that is certain still lists others
    assert sure.logprobs[1] == pytest.approx(-20.0)


def test_logits_of_a_few_tokens_are_refused():
    with said({"yes": 30.0, "no": 20.0}) as server, pytest.raises(CapabilityError, match="raw_logprobs"):
        vlmprobe.connect(server.url).score("?", ["yes", "no"])


def test_two_tokens_that_read_alike_are_a_bound():
    listed = Listed.of(Row(-1.0, 1, "yes", top=(Alternative(-1.0, 1, "yes"), Alternative(-2.0, 2, "yes"))))
    alike = found_in(listed, Sought("yes"), ())
    assert (alike.rows[0].value, alike.rows[0].at_most, alike.begun) == (None, -1.0, True)
    assert "2 of the tokens" in alike.why
    told = found_in(listed, Sought("yes", (2,), "yes"), ())  # ids tell them apart
    assert (told.rows[0].value, told.why) == (-2.0, "")


def test_texts_that_do_not_tell_which_token_it_is_are_a_bound():
    """With a tokenizer here, and an engine that sends no ids."""
    top = (
        Alternative(-1.0, text="\N{REPLACEMENT CHARACTER}"),
        Alternative(-2.0, text="yes"),
        Alternative(-3.0, text=" no"),
    )
    listed = Listed.of(Row(-1.0, text="\N{REPLACEMENT CHARACTER}", top=top))
    # A piece of a character may be another one.
    piece = found_in(listed, Sought("日", (5, 6, 7), "\N{REPLACEMENT CHARACTER}"), top)
    assert (piece.rows[0].value, piece.rows[0].at_most, piece.begun) == (None, -1.0, True)
    # "▁yes" is written as "yes" by an engine that strips the space of a token alone.
    stripped = found_in(listed, Sought(" yes", (8,), " yes"), top)
    assert (stripped.rows[0].value, stripped.rows[0].at_most, stripped.begun) == (None, -2.0, True)
    told = found_in(listed, Sought(" no", (9,), " no"), top)
    assert (told.rows[0].value, told.rows[0].id) == (-3.0, 9)
    absent = found_in(listed, Sought("so", (10,), "so"), top)
    assert (absent.rows[0].at_most, absent.begun) == (-3.0, False)


def test_a_drawn_token_listed_in_place_of_the_last_one_bounds_nothing():
    top = (Alternative(math.log(0.5), text="a"), Alternative(math.log(0.3), text="b"), Alternative(-9.0, text="z"))
    listed = Listed.of(Row(-9.0, text="z", top=top))
    assert listed.at_most == pytest.approx(math.log(0.2 + 1e-4 - math.exp(-9.0)))  # not -9


def test_pieces_are_read_as_text():
    scores = asked({"Ġyes": math.log(0.5), "▁no": math.log(0.3), "x": math.log(0.1)}, [" yes", " no", "yes"])
    np.testing.assert_allclose(scores.logprobs, [math.log(0.5), math.log(0.3), np.nan], atol=1e-6)


@pytest.mark.parametrize(
    ("token", "text", "may"),
    [
        ("a", "a cat", True),
        ("a", "a", False),  # the whole of it
        ("b", "a", False),
        ("", "a", False),
        ("\N{REPLACEMENT CHARACTER}", "é", True),
        ("\N{REPLACEMENT CHARACTER}", "e", False),
        ("caf\N{REPLACEMENT CHARACTER}", "café", True),
        ("Ġa", " a cat", True),
    ],
)
def test_tokens_that_a_candidate_may_begin_with(token, text, may):
    assert may_begin(token, text) is may


def test_a_merge_with_the_prompt_has_no_number():
    listed = Listed.of(Row(-0.1, 7, "x", top=(Alternative(-0.1, 7, "x"),)))
    found = found_in(listed, Sought("x", (7,), "x", merged=1), ())
    assert (found.rows[0].value, found.rows[0].at_most) == (None, None)
    assert "merges" in found.why


# -- saved and shown ---------------------------------------------------------------------------------------


def test_bounds_are_saved_and_shown(tmp_path):
    tokens = {"yes": math.log(0.7), "x": math.log(0.1), "no": math.log(0.05), "z": math.log(0.04)}
    with said(tokens) as server:
        probe = vlmprobe.connect(server.url, value_kind="raw")
        answer, plain = probe.yes_no("?"), probe.score("?", ["yes", "maybe"])
        only = probe.yes_no("?", no=["nay"])
    for scores in (answer, plain, only):
        again = vlmprobe.load_result(scores.save(tmp_path / f"{id(scores)}"))
        assert type(again) is type(scores)
        np.testing.assert_array_equal(again.logprobs, scores.logprobs)
        np.testing.assert_array_equal(again.logprob_bounds, scores.logprob_bounds)
        np.testing.assert_array_equal(again.probability_bounds, scores.probability_bounds)
    assert vlmprobe.load_result(only.save(tmp_path / "only")).bounds == only.bounds
    assert "'maybe' <= 0.05" in repr(plain)
    assert "≤ −3.219" in plain.to_html()  # log 0.04
    assert "at least 70.0%" in plain.to_html()
    document = json.loads(plain.to_json())
    assert document["candidates"][1]["logprob"] is None
    assert document["candidates"][1]["logprob_at_most"] == pytest.approx(math.log(0.04), abs=1e-6)
    pytest.importorskip("pandas")
    frame = answer.to_pandas().set_index("spelling")
    assert frame.loc["Yes", "answer"] == "yes"
    assert frame.loc["Yes", "logprob_at_most"] == pytest.approx(math.log(0.04), abs=1e-6)
    assert plain.to_pandas()["logprob_at_most"].notna().all()
