"""Runs of models on servers: many requests in flight, samples with seeds of their own, several servers."""

from __future__ import annotations

import threading

import pytest
from run_engine import questions
from wire_server import WireServer, json_reply

import vlmprobe
from vlmprobe.runs.keys import seed_of

CHAT = "/v1/chat/completions"


class Model:
    """Answers with a word that question and seed decide, once ``together`` requests wait for an answer."""

    def __init__(self, together: int = 1) -> None:
        self.gate = threading.Barrier(together)

    def __call__(self, request):
        asked = request.json
        if asked["max_tokens"] > 1:
            self.gate.wait(20)
        word = f"{asked['messages'][0]['content'][0]['text']} {asked.get('seed')}"
        entry = {"token": word, "logprob": -0.5}
        listed = [entry, {"token": "yes", "logprob": -1.5}, {"token": "no", "logprob": -2.5}]
        content = [{**entry, "top_logprobs": listed[: asked.get("top_logprobs", 0)]}]
        return json_reply({"choices": [{"message": {"content": word}, "logprobs": {"content": content}}]})


def server(model, name: str = "m") -> WireServer:
    return WireServer({"/v1/models": {"data": [{"id": name}]}, CHAT: model})


def drawn(one: WireServer) -> list[dict]:
    """The requests for answers, not those for the scores of candidates."""
    return [request.json for request in one.of(CHAT) if request.json["max_tokens"] > 1]


def test_samples_are_asked_concurrently_each_with_its_seed(tmp_path):
    rows = questions(4)
    with server(Model(together=12)) as one:
        probe = vlmprobe.connect(one.url, value_kind="raw")
        assert vlmprobe.run(probe, rows, out=tmp_path, samples=3, max_new_tokens=4).failed == 0
        assert one.most_in_flight == 12
        seeds = {each["seed"] for each in drawn(one)}
        assert vlmprobe.run(probe, rows, out=tmp_path, samples=3, max_new_tokens=4).asked == 0
    table = vlmprobe.open_run(tmp_path).table().to_pylist()
    wanted = {key: seed_of(*key.rsplit("-", 1)) for key in (row["key"] for row in table)}
    assert seeds == set(wanted.values())
    assert len(seeds) == 12
    for row in table:
        assert row["text"] == f"{row['question']} {wanted[row['key']]}"


def test_requests_to_a_server_bring_candidates_of_their_own(tmp_path):
    """A server records in meta how it scored them, under the name that the requests' own candidates have there."""
    rows = questions(2, candidates=["yes", "no"])
    with server(Model()) as one:
        probe = vlmprobe.connect(one.url, value_kind="raw")
        for scores in probe.score_many(rows, progress=False):
            assert scores.logprobs.tolist() == pytest.approx([-1.5, -2.5])
            assert scores.meta["candidates"] == "listed tokens"
            assert scores.meta["answer"] == "two"
        assert vlmprobe.run(probe, rows, out=tmp_path, max_new_tokens=4).failed == 0


def test_candidates_of_a_row_are_scored_once_whatever_the_samples(tmp_path):
    rows = questions(30, candidates=["yes", "no"])  # windows of answers that are scored together split a row
    with server(Model()) as one:
        probe = vlmprobe.connect(one.url, value_kind="raw")
        summary = vlmprobe.run(probe, rows, out=tmp_path, samples=5, max_new_tokens=4)
        assert (summary.asked, summary.failed) == (150, 0), vlmprobe.open_run(tmp_path).failed()["error"][0]
        assert len(drawn(one)) == 150
        assert len(one.of(CHAT)) == 150 + 30
    table = vlmprobe.open_run(tmp_path).table(["best", "candidate_logprobs"]).to_pylist()
    assert [row["best"] for row in table] == ["yes"] * 150
    assert all(row["candidate_logprobs"] == pytest.approx([-1.5, -2.5]) for row in table)
