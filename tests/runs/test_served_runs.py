"""Runs of models on servers: many requests in flight, samples with seeds of their own, several servers."""

from __future__ import annotations

import json
import threading

import pytest
from run_engine import questions
from typer.testing import CliRunner
from wire_server import Reply, WireServer, json_reply, refusal

import vlmprobe
from vlmprobe.cli import app
from vlmprobe.errors import EngineError, GenerationOptionError, RunError
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


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("vlmprobe.engines.serving.http.client.FIRST_PAUSE_S", 0.01)


class TestSeveralServers:
    def test_all_of_them_are_busy(self, tmp_path):
        rows = questions(16)
        with server(Model(together=8)) as one, server(Model(together=8)) as other:
            probe = vlmprobe.connect([one.url, other.url], value_kind="raw", max_concurrency=8)
            assert vlmprobe.run(probe, rows, out=tmp_path, max_new_tokens=4).failed == 0
            assert (one.most_in_flight, other.most_in_flight) == (8, 8)
            urls = [result.meta["url"] for result in probe.generate_many(rows, max_new_tokens=4, progress=False)]
            assert sorted(urls) == sorted([one.url] * 8 + [other.url] * 8)
            assert vlmprobe.open_run(tmp_path).shards()[0]["url"] == f"{one.url}, {other.url}"
            one_alone = vlmprobe.connect(one.url, value_kind="raw")
            assert vlmprobe.run(one_alone, rows, out=tmp_path, max_new_tokens=4).asked == 0  # it is the same run

    def test_candidates_too(self):
        rows = questions(20, candidates=["yes", "no"])
        with server(Model()) as one, server(Model()) as other:
            probe = vlmprobe.connect([one.url, other.url], value_kind="raw")
            found = list(probe.score_many(rows, progress=False))
            assert min(len(one.of(CHAT)), len(other.of(CHAT))) > 0
        assert all(scores.logprobs == pytest.approx([-1.5, -2.5]) for scores in found)
        assert {scores.meta["url"] for scores in found} == {one.url, other.url}

    def test_rows_of_one_that_goes_away_go_to_the_others(self, tmp_path, quick):
        rows = questions(60)
        left = threading.Event()

        class Leaves(Model):
            def __call__(self, request):
                if len(one.of(CHAT)) > 5:
                    left.set()
                    return Reply(b"{}", cut_after=1)
                return super().__call__(request)

        with server(Leaves()) as one, server(Model()) as other:
            probe = vlmprobe.connect([one.url, other.url], value_kind="raw", max_concurrency=4)
            summary = vlmprobe.run(probe, rows, out=tmp_path, max_new_tokens=4)
            assert left.is_set()
            assert (summary.asked, summary.failed) == (60, 0)
            assert len(drawn(other)) == 55

    def test_where_all_are_away_rows_are_asked_next_time(self, tmp_path, quick):
        with server(Model()) as one, server(Model()) as other:
            probe = vlmprobe.connect([one.url, other.url], value_kind="raw")
            probe.engine.close()
        with pytest.raises(RunError, match="cannot be reached"):
            vlmprobe.run(probe, questions(12), out=tmp_path, max_new_tokens=4)
        assert len(vlmprobe.open_run(tmp_path).table()) == 0

    def test_an_error_of_a_row_is_not_asked_elsewhere(self, tmp_path):
        def refuses(request):
            return refusal(400, "too long")

        with server(refuses) as one, server(Model()) as other:
            probe = vlmprobe.connect([one.url, other.url], value_kind="raw")
            with pytest.raises(EngineError, match="too long"):
                probe.generate("Hi", max_new_tokens=4)
            assert other.of(CHAT) == []

    def test_they_must_serve_one_model(self):
        with server(Model(), "m") as one, server(Model(), "n") as other:
            with pytest.raises(EngineError, match=r"do not serve the same: .* has 'm' .* 'n'"):
                vlmprobe.connect([one.url, other.url])
            assert vlmprobe.connect([one.url, one.url]).meta["url"] == one.url
        with pytest.raises(GenerationOptionError, match="the URL of a server"):
            vlmprobe.connect([])

    def test_on_the_command_line(self, tmp_path):
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in questions(12)), encoding="utf-8")
        with server(Model(together=6)) as one, server(Model(together=6)) as other:
            urls = f"{one.url},{other.url}"
            how = ["--out", str(tmp_path / "out"), "--max-new-tokens", "4"]
            done = CliRunner().invoke(app, ["run", urls, str(data), *how])
            assert done.exit_code == 0, (done.output, done.exception)
            assert (len(drawn(one)), len(drawn(other))) == (6, 6)
        assert len(vlmprobe.open_run(tmp_path / "out").table()) == 12
