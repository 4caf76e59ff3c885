"""Rows that a server left out are never taken for a complete answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from openai_stream import entry, events, plain
from wire_server import Reply, WireServer, event_stream

import vlmprobe
from vlmprobe.analysis.uncertainty import frame, min_logprob, normalised_logprob, sequence_logprob, summary
from vlmprobe.probe.sample import Samples
from vlmprobe.results.files import load_result

RECORDED = Path(__file__).parents[2] / "data" / "wire"
MODELS = {"/v1/models": {"data": [{"id": "m"}]}}
GREEDY = {"max_new_tokens": 8, "do_sample": False}


def asked(content: list, text: str, count: int | None, *, reason: str = "stop", stops=None, **message):
    """The result of a reply over OpenAI's protocol."""
    choice = {"message": {"content": text, **message}, "finish_reason": reason, "logprobs": {"content": content}}
    reply = {"choices": [choice]} | ({} if count is None else {"usage": {"completion_tokens": count}})
    with WireServer({**MODELS, "/v1/chat/completions": reply}) as server:
        probe = vlmprobe.connect(server.url, value_kind="raw")
        return probe.generate("?", **GREEDY, **({"stop_strings": stops} if stops else {}))


def token(raw: bytes, value: float = -0.5, own: bytes | None = None) -> dict:
    """An entry with its bytes; ``own`` are those of the token alone."""
    other = {"token": "", "bytes": list(own or raw), "logprob": value}
    shown = raw.decode("utf-8", "replace")
    return {"token": shown, "bytes": list(raw), "logprob": value, "top_logprobs": [other]}


def require_unknown(result) -> None:
    assert np.isnan(result.confidence)
    assert np.isnan(result.mean_confidence)
    assert np.isnan(sequence_logprob(result))
    assert np.isnan(min_logprob(result))
    assert np.isnan(normalised_logprob(result))
    assert np.isnan(summary(result)["perplexity"])
    assert "without a row" in result.meta["absent"]["rows"]
    assert np.isnan(Samples((result, result)).logprobs).all()
    assert np.isnan(Samples((result, result)).semantic_entropy())


def test_fewer_rows_than_tokens(tmp_path):
    result = asked([entry("Ein"), entry(" Haus")], "Ein Haus", 3, reason="length")
    require_unknown(result)
    assert result.output.lost == 1
    assert len(result.output) == 2
    assert result.output[:1].lost == 1
    result.save(tmp_path / "saved")
    require_unknown(load_result(tmp_path / "saved"))


def test_as_many_rows_as_tokens():
    result = asked([entry("Ein"), entry(" Haus")], "Ein Haus", 2, reason="length")
    assert result.confidence == pytest.approx(np.exp(-1))
    assert "absent" not in result.meta or "rows" not in result.meta["absent"]


def test_an_end_token_that_is_counted_and_not_sent_is_no_loss():
    result = asked([entry("Ein"), entry(" Haus")], "Ein Haus", 3)
    assert result.confidence == pytest.approx(np.exp(-1))
    assert "the end token" in result.meta["absent"]["end"]


def test_a_stop_string_that_is_cut_is_no_loss():
    result = asked([entry("Ein")], "Ein", 3, stops=[" Haus"])
    assert result.confidence == pytest.approx(np.exp(-0.5))
    assert "stop string" in result.meta["absent"]["end"]


def test_two_missing_tokens_are_more_than_an_end():
    require_unknown(asked([entry("Ein"), entry(" Haus")], "Ein Haus", 4))


def test_a_character_that_may_hold_lost_pieces_is_no_end():
    """Its own alternative is not among those listed, so its row may be of its last piece only."""
    whole = {**token("猫".encode()), "top_logprobs": []}
    require_unknown(asked([whole], "猫", 2))
    result = asked([token("猫".encode())], "猫", 2)
    assert result.confidence == pytest.approx(np.exp(-0.5))


def test_the_place_of_a_lost_piece_is_shown_by_the_bytes():
    """As llama.cpp writes it: the row that completes a character has all its bytes, and its own beside."""
    pieces = [token(b"a"), token("猫".encode(), own="猫".encode()[-1:]), token(b"b")]
    result = asked(pieces, "a猫b", None, reason="length")
    require_unknown(result)
    assert result.output.tokens == ["a", "", "猫", "b"]
    assert result.output.scored.tolist() == [True, False, True, True]
    assert result.output.logprobs_at_most[1] == 0
    assert result.output.lost == 0
    assert asked(pieces, "a猫b", 5, reason="length").output.lost == 1


def test_pieces_of_a_character_are_whole_in_tokens_and_alternatives():
    """By their bytes, as SGLang sends them: three tokens of one character."""
    raw = "猫".encode()
    other = {"token": "\ufffd", "bytes": [0xE8, 0xBF], "logprob": -2.0}
    first = token(raw[:1])
    first["top_logprobs"].append(other)
    with WireServer(
        {
            **MODELS,
            "/v1/chat/completions": {
                "choices": [
                    {
                        "message": {"content": "猫!"},
                        "finish_reason": "length",
                        "logprobs": {"content": [first, token(raw[1:2]), token(raw[2:]), token(b"!")]},
                    }
                ]
            },
        }
    ) as server:
        table = vlmprobe.connect(server.url, value_kind="raw").generate("?", alternatives=2, **GREEDY).output
    assert table.tokens == ["", "", "猫", "!"]
    assert table.offsets.tolist() == [[0, 0], [0, 0], [0, 1], [1, 2]]
    assert table.top_tokens[0] == ["<0xE7>", "<0xE8><0xBF>"]
    assert table.top_tokens[3][0] == "!"


# -- reasoning -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_and_answer_are_told_apart(name):
    content = [entry("Hm", -1.0), entry("</think>", -0.2), entry("Yes", -0.1), entry("!", -0.5)]
    result = asked(content, "Yes!", 4, **{name: "Hm"})
    assert result.text == "Yes!"
    assert result.output.tokens == ["Yes", "!"]
    assert result.confidence == pytest.approx(np.exp(-0.6))
    assert result.meta["server_reasoning"] == {"text": "Hm", "tokens": 2, "logprobs": [-1.0, -0.2]}


def test_reasoning_before_an_end_token():
    content = [entry("Hm"), entry("\n\n"), entry("Yes"), entry("<|im_end|>")]
    result = asked(content, "Yes", 4, reasoning_content="Hm")
    assert result.output.tokens == ["Yes", "<|im_end|>"]
    assert result.output.kinds == ["text", "special"]


def test_reasoning_that_is_hidden():
    choice = {"message": {"content": "Yes"}, "finish_reason": "stop", "logprobs": {"content": [entry("Yes")]}}
    usage = {"completion_tokens": 41, "completion_tokens_details": {"reasoning_tokens": 40}}
    with WireServer({**MODELS, "/v1/chat/completions": {"choices": [choice], "usage": usage}}) as server:
        result = vlmprobe.connect(server.url, value_kind="raw").generate("?", **GREEDY)
    assert result.confidence == pytest.approx(np.exp(-0.5))
    assert "40 tokens of reasoning" in result.meta["absent"]["reasoning"]


def test_a_stream_with_reasoning():
    told = events(["Hm", "</think>", "Yes", "!"])
    for place, name in ((1, "reasoning_content"), (2, "reasoning_content")):
        choice = told[place]["choices"][0]
        choice["delta"] = {name: choice["delta"]["content"]}
    with plain(event_stream(told)) as server:
        stream = vlmprobe.connect(server.url, value_kind="raw").stream("?", **GREEDY)
        rows = list(stream)
    assert [row.tokens[0] for row in rows] == stream.result.output.tokens == ["Yes", "!"]
    assert stream.result.text == "Yes!"
    assert stream.result.meta["server_reasoning"]["tokens"] == 2


# -- streams -------------------------------------------------------------------------------------------


def test_a_stream_asks_how_many_tokens_there_were():
    told = [*events()[:-1], {"choices": [], "usage": {"completion_tokens": 6}}]
    with plain(event_stream(told)) as server:
        result = vlmprobe.connect(server.url, value_kind="raw").stream("?", **GREEDY).result
        assert server.requests[-1].json["stream_options"] == {"include_usage": True}
    require_unknown(result)
    assert result.output.lost == 2


def test_what_sglang_really_streams():
    """Two rows of four tokens; the usage, without which it was recorded, is added at the end."""
    body = (RECORDED / "sglang" / "chat-stream.txt").read_text(encoding="utf-8")
    counted = 'data: {"choices": [], "usage": {"completion_tokens": 4}}\n\ndata: [DONE]'
    streamed = Reply(body.replace("data: [DONE]", counted).encode(), headers={"Content-Type": "text/event-stream"})
    with plain(streamed) as server:
        result = vlmprobe.connect(server.url, value_kind="raw").stream("?", **GREEDY).result
    require_unknown(result)
    assert result.output.lost == 2
    assert result.text == "\ufffd迤}"


# -- llama.cpp -----------------------------------------------------------------------------------------

LLAMACPP = {"/v1/models": {"data": [{"id": "m", "owned_by": "llamacpp", "meta": {"n_vocab": 396}}]}}


def recorded(name: str):
    return json.loads((RECORDED / "llamacpp" / name).read_text(encoding="utf-8"))


def test_llamacpp_over_the_chat_route_alone():
    """A proxy that has no /apply-template: the bytes show where a token was lost."""
    with WireServer({**LLAMACPP, "/v1/chat/completions": recorded("lost-row.json")}) as server:
        result = vlmprobe.connect(server.url).generate("?", alternatives=1, **GREEDY)
    require_unknown(result)
    assert result.text == "\ufffd迤}\ufffd cat\ufffd`"
    assert result.output.lost + (~result.output.scored).sum() == 1


def test_llamacpp_names_every_token():
    routes = {"/apply-template": {"prompt": "?"}, "/completion": recorded("completion-return-tokens.json")}
    with WireServer({**LLAMACPP, **routes}) as server:
        result = vlmprobe.connect(server.url).generate("?", alternatives=1, **GREEDY)
        sent = server.of("/completion")[-1].json
    require_unknown(result)
    assert result.output.ids.tolist() == [247, 306, 97, 92, 228, 357, 96, 63]
    assert np.flatnonzero(~result.output.scored).tolist() == [1]
    assert result.text == "\ufffd迤}\ufffd cat\ufffd`"
    assert sent["return_tokens"] is True
    assert sent["prompt"] == "?"
    assert "repeat_last_n" not in sent


def test_what_is_told_of_an_answer_is_no_column_of_its_request():
    result = asked([entry("Hm"), entry("Yes")], "Yes", 2, reasoning_content="Hm")
    pytest.importorskip("pandas")
    assert not {"server_reasoning", "text_of_ids", "prompt_positions"} & set(frame([result]).columns)
