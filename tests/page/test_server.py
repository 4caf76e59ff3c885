"""The page's server: who may ask, what is answered, in which order, and that nothing is kept for ever."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import wire_engines as wire
from openai_stream import MODELS, WORDS, plain
from openai_stream import events as events_of_openai
from page_client import QUESTION, TOKEN, UNSURE, Held, Page
from PIL import Image
from wire_server import WireServer, event_stream

import vlmprobe
from vlmprobe.errors import CheckpointError
from vlmprobe.page import app, memory, model_queue
from vlmprobe.page.calls import abilities, remembering
from vlmprobe.page.memory import Recent

ELSEWHERE = "http://127.0.0.1:8765"


# -- answers ------------------------------------------------------------------------------------------


def test_tokens_and_the_result_are_those_of_the_probe(page, demo):
    events = page.events(page.ask(images=[page.image()]))
    expected = demo.generate(QUESTION, UNSURE)
    assert [name for name, _ in events] == ["token"] * len(expected.output) + ["result"]
    rows = [data for name, data in events if name == "token"]
    assert [row["id"] for row in rows] == expected.output.ids.tolist()
    np.testing.assert_allclose([row["logprob"] for row in rows], expected.output.logprobs, atol=1e-4)
    document = events[-1][1]["document"]
    assert document["text"] == expected.text
    assert document["confidence"] == pytest.approx(expected.confidence, abs=1e-4)
    assert [row["token"] for row in document["prompt"]] == expected.prompt.tokens
    assert page.queue.length == 0


def test_a_branch_goes_on_from_the_tokens_that_it_is_given(page, demo):
    whole = demo.generate(QUESTION, UNSURE)
    begin = [*whole.output.ids[:2].tolist(), int(whole.output.top_ids[2, 1])]
    document = page.result(images=[page.image()], begin=begin)["document"]
    expected = demo.branch(whole, 2, begin[-1])
    assert document["text"] == expected.text != whole.text
    assert [row["id"] for row in document["output"]] == expected.output.ids.tolist()
    logprobs = [row["logprob"] for row in document["output"]]
    np.testing.assert_allclose(logprobs, expected.output.logprobs, atol=1e-4)


def test_a_chat_of_several_turns(page, demo):
    turns = [
        {"role": "user", "text": QUESTION, "images": [page.image()]},
        {"role": "assistant", "text": "a red nine on the left"},
        {"role": "user", "text": "Which digit is on the right?"},
    ]
    document = page.result(messages=turns, options={"max_new_tokens": 4})["document"]
    content = [{"type": "image", "path": str(UNSURE)}, {"type": "text", "text": QUESTION}]
    chat = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": turns[1]["text"]}]},
        {"role": "user", "content": [{"type": "text", "text": turns[2]["text"]}]},
    ]
    expected = demo.generate(chat, max_new_tokens=4)
    assert document["text"] == expected.text
    assert [row["token"] for row in document["prompt"]] == expected.prompt.tokens


@pytest.mark.parametrize(
    ("kind", "texts", "question"),
    [
        ("yes_no", [], "Is there a nine?"),
        ("options", ["nine", "seven"], "Which digit is on the left?"),
        ("levels", ["1", "2", "3"], "Which digit is on the left?"),
        ("candidates", [" nine", "seven"], "Which digit is on the left?"),
    ],
)
def test_typed_questions(page, demo, kind, texts, question):
    document = page.result(question, [page.image()], kind=kind, texts=texts)["document"]
    if kind == "candidates":
        expected = demo.score(question, texts, UNSURE)
    elif kind == "levels":
        expected = demo.ask(question, UNSURE, levels=[1, 2, 3])
        assert document["expected"] == pytest.approx(expected.expected, abs=1e-3)
    else:
        expected = demo.ask(question, UNSURE, **({kind: texts} if texts else {}))
    shares = {each["text"]: each["probability"] for each in document["candidates"]}
    if kind == "candidates":
        assert list(shares) == texts
    assert document["mass"] == pytest.approx(expected.mass, rel=1e-3)


def test_panels(page, demo):
    key, whole = page.image(), demo.generate(QUESTION, UNSURE)
    ids = whole.output.ids.tolist()
    found = page.result(images=[key], panel="regions", answer=ids, settings={"grid": 3})
    expected = vlmprobe.analysis.contrast(demo, QUESTION, UNSURE, answer=ids, regions=3)
    np.testing.assert_allclose(np.array(found["regions"], dtype=float), expected.regions, atol=1e-3)
    np.testing.assert_allclose(np.array(found["worth"], dtype=float), expected.pmi, atol=1e-3)
    found = page.result(images=[key], panel="layers", answer=ids)
    lens = vlmprobe.analysis.lens(demo, QUESTION, UNSURE, answer=ids)
    np.testing.assert_allclose(found["probabilities"], np.exp(lens.logprobs), atol=1e-4)
    assert found["leads"] == lens.leads.tolist()
    events = page.events(page.ask(images=[key], panel="samples", settings={"n": 3}))
    assert [name for name, _ in events] == ["progress"] * 3 + ["panel"]
    samples = demo.sample(QUESTION, UNSURE, n=3)
    assert sum(each["count"] for each in events[-1][1]["answers"]) == 3
    assert events[-1][1]["agreement"] == samples.agreement()
    assert {each["text"] for each in events[-1][1]["answers"]} == set(samples.texts)


def test_an_answer_that_is_stopped_ends_at_the_next_token(page):
    reply = page.ask(images=[page.image()])
    job = page.queue.job(reply.json()["job"])
    tell = job.tell

    def stop_at_the_third(name, data):
        tell(name, data)
        if len(job.events) == 3:
            assert page.client.post(f"api/jobs/{job.id}/stop").status_code == 204

    job.tell = stop_at_the_third
    events = page.events(reply)
    if len(job.events) > 4:
        pytest.skip("the answer was ready before it could be stopped")
    assert [name for name, _ in events] == ["token"] * 3 + ["result"]
    assert events[-1][1]["document"]["finish_reason"] == "closed"


# -- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ([], "MessageError"),
        ({}, "MessageError"),
        ({"messages": [{"role": "user", "text": 5}]}, "MessageError"),
        ({"messages": [{"role": "root", "text": "?"}]}, "MessageError"),
        ({"messages": [{"role": "assistant", "text": "?"}]}, "MessageError"),
        ({"messages": [{"role": "user", "text": "?", "images": "abc"}]}, "MessageError"),
        ({"messages": [{"role": "user", "text": "?"}], "kind": "essay"}, "MessageError"),
        ({"messages": [{"role": "user", "text": "?"}], "panel": "none"}, "MessageError"),
        ({"messages": [{"role": "user", "text": "?"}], "panel": {}}, "MessageError"),
        ({"messages": [{"role": "user", "text": "?"}], "begin": [-1]}, "MessageError"),
        ({"messages": [{"role": "user", "text": "?"}], "begin": [True]}, "MessageError"),
        ({"messages": [{"role": "user", "text": "?"}], "texts": [1]}, "MessageError"),
        ({"messages": [{"role": "user", "text": "?"}], "model": 1}, "MessageError"),
        ({"messages": [{"role": "user", "text": "?"}], "model": True}, "MessageError"),
        ({"messages": [{"role": "user", "text": "?"}], "options": {"max_time": 1}}, "GenerationOptionError"),
        ({"messages": [{"role": "user", "text": "?"}], "options": {"seed": "1"}}, "GenerationOptionError"),
    ],
)
def test_what_cannot_be_asked_is_a_typed_error(page, asked, kind):
    reply = page.client.post("api/jobs", json=asked)
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == kind


def test_errors_of_the_model_are_told_as_events(page):
    key = page.image()
    for more, kind in (
        ({"begin": [10**6]}, "MessageError"),
        ({"options": {"max_new_tokens": 0}}, "GenerationOptionError"),
        ({"kind": "candidates", "texts": ["yes", "yes"]}, "MessageError"),
        ({"panel": "regions", "answer": [1], "settings": {"grid": 1000}}, "GenerationOptionError"),
        ({"panel": "regions"}, "MessageError"),
    ):
        error = page.result(images=[key], **more)
        assert error["type"] == kind, more
    assert page.result(images=[key])["document"]["text"]  # the queue goes on


def test_an_error_nobody_expected_is_named_and_the_queue_goes_on(page, monkeypatch):
    monkeypatch.setattr("vlmprobe.page.calls.token_rows", lambda row: 1 / 0)
    assert page.result(images=[page.image()]) == {
        "type": "ZeroDivisionError",
        "message": "ZeroDivisionError: division by zero (unexpected)",
    }
    monkeypatch.undo()
    assert page.result(images=[page.image()])["document"]["text"]


def test_images_are_taken_up_to_the_limits(page, monkeypatch):
    for data in (b"", b"GIF89a nonsense", b"<svg onload='x'/>"):
        reply = page.client.post("api/images", content=data)
        assert reply.status_code == 400
        assert reply.json()["error"]["type"] == "ImageError"
    big = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(big, "PNG")  # a few kilobytes, 400 million pixels
    assert "pixels" in page.client.post("api/images", content=big.getvalue()).json()["error"]["message"]
    from vlmprobe.inputs import images
    from vlmprobe.inputs.limits import Limits

    monkeypatch.setattr(images, "DEFAULT_LIMITS", Limits(max_bytes=1000))
    read = 0

    def endless():
        nonlocal read
        for _ in range(1000):
            read += 1
            yield b"x" * 100

    assert page.client.post("api/images", content=endless()).json()["error"]["type"] == "ImageError"


def test_a_request_of_many_megabytes_is_refused(page, monkeypatch):
    monkeypatch.setattr(app, "JSON_BYTES", 1000)
    reply = page.ask("x" * 2000)
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "MessageError")


def test_an_image_or_an_answer_that_is_no_longer_held(page):
    reply = page.ask(images=["0" * 32])
    assert (reply.status_code, reply.json()["error"]["type"]) == (410, "GoneError")
    assert page.client.post("api/share", json={"keys": ["gone"]}).status_code == 410
    assert page.client.get("api/jobs/gone").status_code == 410


# -- who may ask --------------------------------------------------------------------------------------


def test_only_the_whole_address_opens_the_page(page):
    assert "<title>vlmprobe" in page.client.get("./").text
    for path in ("/", "/api/about", "/wrong/api/about", f"/{TOKEN}x/", "/static/index.html"):
        reply = page.client.get(ELSEWHERE + path)
        assert reply.status_code == 404, path
        assert "token" in reply.json()["error"]["message"]
    reply = page.client.get(f"{ELSEWHERE}/{TOKEN}", follow_redirects=False)
    assert (reply.status_code, reply.headers["location"]) == (307, f"{TOKEN}/")


def test_below_the_prefix_of_a_proxy(page):
    for prefix in ("/user/ann/proxy/8765", "/proxy/absolute/8765"):
        assert page.client.get(f"{ELSEWHERE}{prefix}/{TOKEN}/api/about").json()["models"] == ["demo"]
        reply = page.client.get(f"{ELSEWHERE}{prefix}/{TOKEN}", follow_redirects=False)
        assert reply.headers["location"] == f"{TOKEN}/"  # relative to what the browser asked for
        assert page.client.get(f"{ELSEWHERE}{prefix}/{TOKEN}/static/app.css").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8765", 200),
        ("localhost:9000", 200),  # an SSH tunnel
        ("[::1]:8765", 200),
        ("LOCALHOST", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:8765", 403),
        ("10.0.0.1", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_hosts(page, host, status):
    assert page.client.get("api/about", headers={"host": host}).status_code == status


def test_hosts_of_a_proxy_and_of_a_page_that_is_open_to_others(demo):
    with Page(demo, hosts=["hub.example.org"]) as page:
        asked = {"host": "hub.example.org", "origin": "https://hub.example.org"}
        assert page.client.get("api/about", headers=asked).status_code == 200
        assert page.client.post("api/python", json={}, headers=asked).status_code == 400  # it was read
        asked["host"] = "127.0.0.1:8765"
        assert page.client.post("api/python", json={}, headers=asked).status_code == 400
        assert page.client.get("api/about", headers={"host": "10.0.0.1"}).status_code == 403
    with Page(demo, hosts=["0.0.0.0"], loopback=False) as page:
        assert page.client.get("api/about", headers={"host": "10.0.0.1:8765"}).status_code == 200
        assert page.client.get("api/about", headers={"host": "evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 400),
        ({"origin": "http://127.0.0.1:8765"}, 400),
        ({"origin": "http://127.0.0.1:3000"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://[::1"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 400),
    ],
)
def test_other_sites_cannot_ask(page, headers, status):
    headers = {"host": "127.0.0.1:8765", **headers}
    assert page.client.post("api/python", json={}, headers=headers).status_code == status


def test_every_reply_forbids_scripts_of_others(page):
    for path in ("./", "api/about", "static/app.js", "nothing"):
        headers = page.client.get(path).headers
        assert "default-src 'none'; script-src 'self'" in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-content-type-options"] == "nosniff"


def test_everything_that_the_page_loads_is_in_the_package(page):
    static = Path(app.__file__).parent / "static"
    found = [path for path in static.rglob("*") if path.is_file()]
    assert found
    for path in found:
        assert page.client.get(f"static/{path.relative_to(static)}").status_code == 200
        text = path.read_text(encoding="utf-8")
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text
        assert "innerHTML" not in text
        assert len(text.splitlines()) <= 400, path.name
    for name in ("../app.py", "..%2fapp.py", "panels/../../app.py"):
        assert page.client.get(f"static/{name}").status_code == 404


# -- the queue ----------------------------------------------------------------------------------------


def test_one_call_at_a_time_and_how_many_are_before_it():
    held = Held()
    with Page(held) as page:
        asked = [page.ask(kind="candidates", texts=["a"]) for _ in range(3)]
        assert held.begun.acquire(timeout=60)
        jobs = [reply.json()["job"] for reply in asked]
        told = [page.client.get(f"api/jobs/{job}").json() for job in jobs]
        assert [each["state"] for each in told] == ["running", "waiting", "waiting"]
        assert [each["ahead"] for each in told] == [0, 1, 2]
        assert page.client.get("api/about").json()["queue"] == 3
        assert not held.begun.acquire(blocking=False)
        page.client.post(f"api/jobs/{jobs[1]}/stop?leave")  # its tab was closed
        assert page.client.get(f"api/jobs/{jobs[2]}").json()["ahead"] == 1
        held.go.set()
        for place in (0, 2):
            assert page.events(asked[place])[-1] == ("error", {"type": "CapabilityError", "message": "held"})
        assert page.queue.length == 0


def test_questions_wait_while_the_model_opens_and_its_error_is_theirs():
    go = threading.Event()

    def opening():
        go.wait(60)
        raise CheckpointError("damaged")

    with Page(opening) as page:
        reply = page.ask()
        assert page.client.get("api/about").json()["state"] == "loading"
        assert page.client.get(f"api/jobs/{reply.json()['job']}").json()["loading"]
        go.set()
        assert page.events(reply)[-1] == ("error", {"type": "CheckpointError", "message": "damaged"})
        about = page.client.get("api/about").json()
        assert (about["state"], about["error"]["message"]) == ("failed", "damaged")


def test_no_more_than_some_wait(monkeypatch):
    monkeypatch.setattr(model_queue, "MOST", 2)
    held = Held()
    with Page(held) as page:
        page.ask(kind="candidates", texts=["a"])
        assert held.begun.acquire(timeout=60)
        assert [page.ask(kind="candidates", texts=["a"]).status_code for _ in range(3)] == [202, 202, 503]
        held.go.set()


def test_a_reader_that_leaves_stops_the_answer_at_the_next_token(demo):
    """As when a browser is killed: the server closes what ``follow`` returns."""
    told = []

    class Endless:
        def __init__(self, *_):
            self.closed = False

        def __enter__(self):
            return iter(lambda: time.sleep(0.01) or demo.generate("?", max_new_tokens=1).output, None)

        def __exit__(self, *_):
            told.append("closed")

    async def leave():
        queue = model_queue.ModelQueue([lambda: demo])
        queue.start()

        def work(probe, job):
            with Endless() as tokens:
                for _ in tokens:
                    job.tell("token", {})
                    if job.stopped:
                        return

        job = queue.submit(work)
        events = job.follow()
        await anext(events)
        await events.aclose()
        for _ in range(200):
            if queue.length == 0:
                break
            await asyncio.sleep(0.01)
        assert queue.length == 0
        queue.close()

    asyncio.run(leave())
    assert told == ["closed"]


def test_a_job_that_nobody_reads_is_forgotten(monkeypatch):
    held = Held()
    with Page(held) as page:
        page.ask(kind="candidates", texts=["a"])
        assert held.begun.acquire(timeout=60)
        left = page.ask(kind="candidates", texts=["a"]).json()["job"]
        monkeypatch.setattr(model_queue, "FORGOTTEN", 0.0)
        time.sleep(0.01)
        other = page.ask(kind="candidates", texts=["a"])
        monkeypatch.undo()
        assert page.client.get(f"api/jobs/{left}").status_code == 410
        held.go.set()
        assert page.events(other)[-1][0] == "error"


def test_nothing_is_kept_for_ever(page, monkeypatch):
    monkeypatch.setattr(page_results(page), "most", 3)
    key = page.image()
    for _ in range(5):
        page.result(images=[key], options={"max_new_tokens": 1})
    assert len(page_results(page)) == 3
    assert not page.queue._jobs
    held = Recent(10, "it")
    for place in range(6):
        held.keep(str(place), place, 4)
    assert len(held) == 2
    assert held["5"] == 5
    with pytest.raises(memory.GoneError):
        held["0"]
    held.keep("large", 0, 1000)  # one may be larger than all together
    assert held["large"] == 0


def page_results(page):
    return page.app.app.state.page.results


# -- sharing ------------------------------------------------------------------------------------------


def test_one_file_of_what_is_shown(page):
    key = page.image()
    keys = [page.result(images=[key])["key"], page.result("Is there a nine?", [key], kind="yes_no")["key"]]
    reply = page.client.post("api/share", json={"keys": keys})
    assert reply.headers["content-type"].startswith("text/html")
    assert reply.text.count("<article>") == 2
    assert 'src="http' not in reply.text
    assert page.client.post("api/share", json={"keys": []}).status_code == 400


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"begin": [73, 326, 299]},
        {"options": {"max_new_tokens": 3, "temperature": 0}},
        {"kind": "yes_no"},
        {"kind": "options", "texts": ["nine", 'it\'s "seven"\n']},
        {"kind": "levels", "texts": ["1", "2"]},
        {"kind": "candidates", "texts": ["nine"]},
        {"panel": "regions", "answer": [73, 326], "settings": {"grid": 2}},
        {"panel": "layers", "answer": [73, 326]},
        {"panel": "samples", "settings": {"n": 2}},
    ],
)
def test_the_python_of_the_page_runs_and_says_the_same(page, demo, more, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    name = 'it\'s "a" picture.png'
    (tmp_path / name).write_bytes(UNSURE.read_bytes())
    key = page.image()
    shown = page.result(images=[key], **more)
    messages = [{"role": "user", "text": QUESTION, "images": [key]}]
    code = page.client.post("api/python", json={"messages": messages, "names": {key: name}, **more}).json()["code"]
    monkeypatch.setattr(vlmprobe, "load", lambda name: demo)
    ran: dict = {}
    exec(code, ran)
    if "result" in ran:
        assert ran["result"].text == shown["document"]["text"]
        assert ran["result"].output.ids.tolist() == [row["id"] for row in shown["document"]["output"]]
    elif "found" in ran and more["panel"] == "regions":
        np.testing.assert_allclose(np.array(shown["regions"], dtype=float), ran["found"].regions, atol=1e-3)
    elif "answer" in ran:
        assert ran["answer"].said == shown["document"]["answer"]


def test_python_of_a_chat(page):
    turns = [
        {"role": "user", "text": "'''\n\"", "images": ["k"]},
        {"role": "assistant", "text": "x"},
        {"role": "user", "text": "y"},
    ]
    code = page.client.post("api/python", json={"messages": turns}).json()["code"]
    ran: dict = {}
    exec("\n".join(code.split("\n")[3:-4]), ran)
    assert ran["question"][0]["content"] == [
        {"type": "image", "path": "image-1.png"},
        {"type": "text", "text": "'''\n\""},
    ]
    assert ran["question"][2]["content"][0]["text"] == "y"


def test_two_models(demo, probe_of):
    other = probe_of("llava")
    with Page({"demo": demo, "llava": other}) as page:
        key, asked = page.image(), {"options": {"max_new_tokens": 3, "temperature": 0}}
        for place, probe in enumerate((demo, other)):
            document = page.result(images=[key], model=place, **asked)["document"]
            assert document["text"] == probe.generate(QUESTION, UNSURE, max_new_tokens=3, do_sample=False).text
            code = page.client.post("api/python", json={"messages": [{"role": "user", "text": "?"}], "model": place})
            assert f"vlmprobe.load({['demo', 'llava'][place]!r})" in code.json()["code"]
        assert len(page.client.get("api/about").json()["lacks"]) == 2


# -- what engines lack --------------------------------------------------------------------------------


def test_what_an_engine_lacks_is_told_with_the_reason(page, demo):
    page.result(images=[page.image()], options={"max_new_tokens": 1})
    about = page.client.get("api/about").json()
    assert about["state"] == "ready"
    (lacks,) = about["lacks"]
    assert set(lacks) == {"stream", "branch", "prompt", "score", "regions", "layers", "samples"}
    assert not any(lacks.values())
    assert not isinstance(Held().engine, type(demo.engine))
    lacks = abilities(Held())
    assert "token-by-token streaming" in lacks["stream"]
    assert "vlmprobe.load" in lacks["layers"]
    assert lacks["samples"] == ""


def test_questions_about_an_image_share_what_was_computed_of_it(demo):
    greedy = {"max_new_tokens": 8, "temperature": 0}
    with Page(lambda: remembering(demo)) as page:
        key = page.image()
        page.result(images=[key], options=greedy)
        document = page.result("Is there a seven?", images=[key], options=greedy)["document"]
    expected = demo.generate("Is there a seven?", UNSURE, max_new_tokens=8, do_sample=False)
    assert document["meta"]["image_features"].startswith("reused")
    assert document["text"] == expected.text
    logprobs = [row["logprob"] for row in document["output"]]
    np.testing.assert_allclose(logprobs, expected.output.logprobs, atol=1e-4)


def test_a_served_model_is_asked_in_the_same_way(demo):
    greedy = {"max_new_tokens": 32, "do_sample": False}
    expected = demo.generate(QUESTION, UNSURE, **greedy)
    replies = {**MODELS, "/v1/responses": wire.openai_responses(wire.Model(demo, QUESTION))}
    with (
        WireServer(replies) as server,
        Page(lambda: vlmprobe.connect(server.url, engine="openai-responses", value_kind="raw")) as page,
    ):
        key = page.image()
        document = page.result(images=[key], options={"max_new_tokens": 32, "temperature": 0})["document"]
        assert document["text"] == expected.text
        logprobs = [row["logprob"] for row in document["output"]]
        np.testing.assert_allclose(logprobs, expected.output.logprobs, atol=1e-3)
        assert page.result(images=[key], begin=[73])["type"] == "CapabilityError"
        (lacks,) = page.client.get("api/about").json()["lacks"]
        assert all(lacks[name] for name in ("stream", "branch", "prompt", "regions", "layers"))
        assert not lacks["samples"]


def test_tokens_of_a_served_model_as_they_come():
    with (
        plain(event_stream(events_of_openai())) as server,
        Page(lambda: vlmprobe.connect(server.url, value_kind="raw")) as page,
    ):
        events = page.events(page.ask())
        assert [data["token"] for name, data in events if name == "token"] == WORDS
        assert events[-1][1]["document"]["text"] == "".join(WORDS)
        assert [row["id"] for row in events[-1][1]["document"]["output"]] == [None] * len(WORDS)


@pytest.mark.long
def test_memory_is_flat_over_500_questions(page):
    psutil = pytest.importorskip("psutil")
    key, options = page.image(), {"max_new_tokens": 2}

    def rounds(count):
        for _ in range(count):
            page.result(images=[key], options=options)
        return psutil.Process().memory_info().rss / 2**20

    before = rounds(100)  # the most recent answers are held, and allocators have taken what they take
    after = rounds(500)
    assert after - before < 20, (before, after)  # MB
