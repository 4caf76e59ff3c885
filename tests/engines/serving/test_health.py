"""``vlmprobe doctor``: what it says of a server, and its exit codes."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner
from wire_server import WireServer, json_reply, refusal

from vlmprobe.cli import app
from vlmprobe.engines.providers.vllm.server import VLLM

MODELS = {"data": [{"id": "tiny", "owned_by": "vllm", "max_model_len": 4096, "root": "org/tiny"}]}
LOGITS = {f"t{place}": 3.0 - 0.25 * place for place in range(30)}


def chat(request, *, mode="raw_logprobs", most=20, images=True, prompts=True):
    """A vLLM that knows thirty tokens, in the mode and with the limits that it was started with."""
    import math

    asked = request.json
    top = asked.get("top_logprobs", 0)
    limit = len(LOGITS) if most == -1 else most
    if top > limit or (top == -1 and most != -1):
        return refusal(400, f"Requested sample logprobs of {top}, which is greater than max allowed: {limit}")
    if not prompts and "prompt_logprobs" in asked:
        return refusal(400, "prompt_logprobs is not supported here")
    shown = "image_url" in json.dumps(asked["messages"])
    values = dict(LOGITS)
    if mode.startswith("processed"):
        values = {token: value / (asked["temperature"] or 1) for token, value in values.items()}
        if asked["top_p"] < 0.5:
            values = {token: value if token == "t0" else -9999.0 for token, value in values.items()}
    if mode.endswith("logprobs"):
        total = math.log(sum(math.exp(value) for value in values.values()))
        values = {token: max(value - total, -9999.0) for token, value in values.items()}
    entries = [{"token": token, "logprob": value} for token, value in values.items()]
    entries = entries if top == -1 else entries[:top]
    ids = [7, 8, *([9] * 5 if shown and images else []), 10]
    content = [{"token": "t0", "logprob": values["t0"], "top_logprobs": entries}]
    reply = {
        "choices": [
            {"message": {"content": "a"}, "finish_reason": "length", "logprobs": {"content": content}, "token_ids": [0]}
        ],
        "prompt_token_ids": ids,
    }
    if "prompt_logprobs" in asked:
        reply["prompt_logprobs"] = [None, *({str(each): {"logprob": -1.0, "rank": 1}} for each in ids[1:])]
    return json_reply(reply)


def server(scale_out=True, **how):
    ids = json_reply({}) if scale_out else refusal(403, "start with --enable-scale-out")
    return WireServer(
        {
            "/v1/models": MODELS,
            "/version": {"version": "0.32.0"},
            "/v1/chat/completions": lambda request: chat(request, **how),
            "/inference/v1/generate": ids,
        }
    )


def doctor(url, *more):
    found = CliRunner().invoke(app, ["doctor", url, "--json", *more])
    return found.exit_code, json.loads(found.stdout) if found.stdout else None


def states(health):
    return {each["name"]: each["state"] for each in health["findings"]}


def test_a_server_that_gives_all_it_can():
    with server() as there:
        code, health = doctor(there.url)
    assert code == 0
    known = {name: health[name] for name in ("engine", "version", "model", "context", "mode", "value_kind")}
    assert known == {
        "engine": "vllm",
        "version": "0.32.0",
        "model": "tiny",
        "context": 4096,
        "mode": "raw_logprobs",
        "value_kind": "raw",
    }
    assert health["max_logprobs"] == 20
    found = states(health)
    assert found['full rows (keep="logits")'] == "no"
    assert all(state == "yes" for name, state in found.items() if not name.startswith("full rows"))


def test_what_to_start_differently():
    with server(scale_out=False, mode="processed_logprobs") as there:
        code, health = doctor(there.url)
        shown = CliRunner().invoke(app, ["doctor", there.url])
    assert code == 3
    assert health["mode"] == "processed_logprobs"
    assert health["value_kind"] == "filtered"
    assert "--enable-scale-out --logprobs-mode raw_logprobs" in " ".join(shown.stdout.split())
    assert shown.exit_code == 3


@pytest.mark.parametrize(
    ("mode", "most", "limit"),
    [("raw_logits", -1, None), ("raw_logits", 20, 20), ("processed_logits", 20, 20), ("raw_logprobs", 5, 5)],
)
def test_modes_and_limits_are_found_out(mode, most, limit):
    with server(mode=mode, most=most) as there:
        _, health = doctor(there.url)
    assert health["mode"] == mode
    assert health["max_logprobs"] == limit
    whole = states(health)['full rows (keep="logits")']
    assert whole == ("yes" if (mode, most) == ("raw_logits", -1) else "no")


def test_a_picture_that_is_ignored():
    with server(images=False) as there:
        _, health = doctor(there.url)
    assert states(health)["images"] == "no"
    assert "ignores it" in next(each["detail"] for each in health["findings"] if each["name"] == "images")


def test_prompts_that_are_refused():
    with server(prompts=False) as there:
        code, health = doctor(there.url)
    assert code == 0
    assert states(health)["prompt log-probabilities"] == "no"
    assert any("not supported here" in each["detail"] for each in health["findings"])


def test_a_reranker_is_of_use_for_ranking():
    routes = {
        "/v1/models": MODELS,
        "/v1/chat/completions": refusal(404, "The model does not support Chat Completions API"),
        "/score": {"data": [{"index": 0, "score": 0.5}, {"index": 1, "score": 0.1}]},
    }
    with WireServer(routes) as there:
        code, health = doctor(there.url)
    assert code == 0
    assert states(health) == {"ranking": "yes"}


def test_a_server_that_is_none():
    with WireServer({}) as there:
        found = CliRunner().invoke(app, ["doctor", there.url])
        address = there.url
    assert found.exit_code == 1
    assert "not recognised" in found.stderr
    found = CliRunner().invoke(app, ["doctor", address])
    assert found.exit_code == 1
    assert "cannot be reached" in found.stderr


def test_the_limit_is_read_from_every_wording():
    from vlmprobe.engines.providers.vllm.server import TOO_MANY

    for text in ("is greater than max allowed: 20", "must be at most 20", "larger than the vocab_size of 20"):
        assert TOO_MANY.search(text)[1] == "20"
    assert VLLM.abilities.alternatives == 20
