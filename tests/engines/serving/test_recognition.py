"""Which engine a server is taken for: what it says of itself, and what the caller says where it says nothing."""

from __future__ import annotations

import pytest
from openai_stream import answer, events
from wire_server import WireServer, event_stream, refusal

import vlmprobe
from vlmprobe.errors import CapabilityError, EngineError, UnknownModelError, VlmprobeWarning

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_gateway_whose_models_cannot_be_listed(status):
    with WireServer({"/v1/models": refusal(status, "no key of this gateway"), CHAT: answer()}) as server:
        with pytest.raises(EngineError, match="no key of this gateway"):
            vlmprobe.connect(server.url)
        with pytest.warns(VlmprobeWarning, match=rf"does not say .* HTTP {status}.*no key of this gateway"):
            probe = vlmprobe.connect(server.url, engine="openai", model="m")
        assert probe.generate("Was?").text == "Ein rotes Haus。"
        assert server.of(CHAT)[-1].json["model"] == "m"


def test_without_models_one_must_be_named():
    with WireServer({CHAT: answer()}) as server, pytest.warns(VlmprobeWarning, match="HTTP 404"):  # noqa: SIM117
        with pytest.raises(UnknownModelError, match="pass model="):
            vlmprobe.connect(server.url, engine="openai")


@pytest.mark.parametrize("engine", ["vllm", "llamacpp", "sglang", "lmdeploy"])
def test_an_engine_behind_a_proxy_that_owns_its_models(engine):
    models = {"data": [{"id": "m", "owned_by": "openai"}]}
    with WireServer({"/v1/models": models, CHAT: answer()}) as server:
        assert vlmprobe.connect(server.url).meta["engine"] == "openai"
        with pytest.warns(VlmprobeWarning, match="owned by 'openai'"):
            probe = vlmprobe.connect(server.url, engine=engine)
        assert probe.meta["engine"] == engine
        assert probe.meta["model"] == "m"


def test_llamacpp_behind_a_proxy_is_read_with_ids_and_bytes():
    entry = {"id": 3, "token": "a", "bytes": [97], "logprob": -0.5}
    choice = {"finish_reason": "stop", "message": {"content": "a"}}
    choice["logprobs"] = {"content": [{**entry, "top_logprobs": [entry]}]}
    models = {"data": [{"id": "m", "owned_by": "openai"}]}
    with WireServer({"/v1/models": models, CHAT: {"choices": [choice]}}) as server:
        with pytest.warns(VlmprobeWarning, match="does not say"):
            probe = vlmprobe.connect(server.url, engine="llamacpp")
        found = probe.generate("?", alternatives=1, repetition_penalty=1.5)
        assert len(server.of("/apply-template")) == 1
        probe.generate("?")
        assert len(server.of("/apply-template")) == 1  # not asked for again
        assert server.of(CHAT)[0].json["repeat_last_n"] > 64
    assert found.output.ids.tolist() == [3]


def test_a_wrong_engine_is_told_what_the_server_is():
    models = {"data": [{"id": "m", "owned_by": "llamacpp"}]}
    said = r"not recognised as vLLM: it is llama\.cpp \(/v1/models lists 1 model"
    with WireServer({"/v1/models": models}) as server, pytest.raises(EngineError, match=said):
        vlmprobe.connect(server.url, engine="vllm")


def test_a_model_that_is_not_listed_is_asked_for_by_name():
    with WireServer({"/v1/models": {"data": [{"id": "m"}]}, CHAT: answer()}) as server:
        with pytest.raises(UnknownModelError, match=r"has no model 'other'.*engine= and model="):
            vlmprobe.connect(server.url, model="other")
        with pytest.warns(VlmprobeWarning, match="has no model 'other'"):
            probe = vlmprobe.connect(server.url, engine="openai", model="other")
        probe.generate("Was?")
        assert server.of(CHAT)[-1].json["model"] == "other"


SERVE = {"paths": {"/v1/chat/completions": {}, "/load_model": {}, "/reset": {}, "/v1/models": {}, "/health": {}}}


@pytest.mark.parametrize("engine", ["auto", "openai", "vllm"])
def test_transformers_serve_is_named_and_what_to_do(engine):
    """Its routes, as transformers 5.24 describes them; it ignores ``logprobs``."""
    models = {"object": "list", "data": [{"id": "models/tiny", "owned_by": "local", "object": "model", "created": 0}]}
    said = r"transformers serve.*folder here, vlmprobe\.load\('models/tiny'\), which"
    with WireServer({"/v1/models": models, "/openapi.json": SERVE}) as server:
        with pytest.raises(CapabilityError, match=said):
            vlmprobe.connect(server.url, engine=engine)
        assert not server.of(CHAT)


@pytest.mark.parametrize(
    ("loaded", "said"), [("b", r"folder here, vlmprobe\.load\('b'\), which"), (None, "folder here with vlmprobe")]
)
def test_transformers_serve_lists_the_hub_cache_too(loaded, said):
    """As transformers 5.24 lists models unless it is started with one; 5.19 fails where there is no cache."""
    models = [{"id": each, "status": {"value": "loaded" if each == loaded else "unloaded"}} for each in "ab"]
    listed = {"data": models} if loaded else refusal(500, "Internal Server Error")
    with (
        WireServer({"/v1/models": listed, "/openapi.json": SERVE}) as server,
        pytest.raises(CapabilityError, match=said),
    ):
        vlmprobe.connect(server.url)


def test_transformers_serve_has_the_routes_by_which_it_is_recognised():
    serve = pytest.importorskip("transformers.cli.serving.server")
    import inspect

    written = inspect.getsource(serve)
    assert '"/load_model"' in written
    assert '"/v1/chat/completions"' in written


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_takes_another_name_of_the_limit(stream):
    """OpenAI's later models refuse ``max_tokens``, and their error names the other one."""
    said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."

    def chat(request):
        if "max_tokens" in request.json:
            return refusal(400, said)
        assert request.json["max_completion_tokens"] == 7
        return event_stream(events()) if request.json["stream"] else answer()

    with WireServer({"/v1/models": {"data": [{"id": "m"}]}, CHAT: chat}) as server:
        probe = vlmprobe.connect(server.url, value_kind="raw")
        for _ in range(2):
            found = (
                probe.stream("Was?", max_new_tokens=7).result if stream else probe.generate("Was?", max_new_tokens=7)
            )
            assert found.text == "Ein rotes Haus。"
        assert len(server.of(CHAT)) == 3


def test_several_at_once_are_refused_for_the_name_of_the_limit():
    def chat(request):
        return refusal(400, "Use 'max_completion_tokens'.") if "max_tokens" in request.json else answer()

    with WireServer({"/v1/models": {"data": [{"id": "m"}]}, CHAT: chat}) as server:
        found = list(vlmprobe.connect(server.url).generate_many([vlmprobe.Request("Was?")] * 8))
    assert [each.text for each in found] == ["Ein rotes Haus。"] * 8
