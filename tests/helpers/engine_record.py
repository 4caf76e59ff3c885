"""Record what a real server answers to ``calls``: ``python tests/helpers/engine_record.py MODEL URL FILE``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from wire_recordings import bare

import vlmprobe
from vlmprobe.engines.serving.http.client import Client

QUESTION = "What is in the picture?"
SINGLE = [" the", " picture", "?", "."]  # one token each
CANDIDATES = ["yes", " a cat", "tiger"]
SHORT = ["a", "b"]  # one token each for every tokenizer
FLAGS = {"/server_info": ("version", "incremental_streaming_output", "enable_deterministic_inference")}  # kept of it


def picture() -> Image.Image:
    """A picture whose sides are multiples of Qwen-VL's patches, so that no one resizes it."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 84, 3), dtype=np.uint8))


def calls(model: str, url: str) -> dict[str, Any]:
    """What is recorded; the tests replay the same."""
    probe = vlmprobe.connect(url, processor=model)
    by_text = vlmprobe.connect(url, processor=model)
    by_text.engine.tokens_in = False
    bare_probe = vlmprobe.connect(url)
    shown = {"image": picture(), "max_new_tokens": 4, "alternatives": 3}
    sampled = {"do_sample": True, "temperature": 0.5, "top_k": 5, "seed": 3}
    return {
        "generate": probe.generate(QUESTION, **shown),
        "sampled": probe.generate(QUESTION, **shown, **sampled, prompt=False),
        "by_ids": probe.score(QUESTION, CANDIDATES, image=picture(), alternatives=1),
        "chosen": probe.score(QUESTION, SINGLE, image=picture(), alternatives=1),
        "by_text": by_text.score(QUESTION, CANDIDATES, image=picture(), alternatives=1),
        "bare": bare_probe.generate(QUESTION, **shown),
        "bare_text": bare_probe.generate("Hi", max_new_tokens=3, alternatives=1),
        "bare_scores": bare_probe.score("Is it?", ["yes", "no"], alternatives=1),
    }


def sglang_calls(model: str, url: str) -> dict[str, Any]:
    """What is recorded of SGLang."""
    probe = vlmprobe.connect(url, processor=model)
    shown = {"image": picture(), "max_new_tokens": 8, "alternatives": 3}
    sampled = {"do_sample": True, "temperature": 0.5, "top_k": 5, "seed": 3}
    return {
        "generate": probe.generate(QUESTION, **shown),
        "sampled": probe.generate(QUESTION, **shown, **sampled, prompt=False),
        "scores": probe.score(QUESTION, [*SHORT, *CANDIDATES], image=picture(), alternatives=1),
        "streamed": probe.stream(QUESTION, **shown).result,
    }


def main(model: str, url: str, file: str) -> None:
    """Run the calls and write the exchanges."""
    exchanges: dict[str, dict[str, Any]] = {}
    plain, plain_events = Client._exchange, Client.events

    async def exchange(self: Client, http: Any, method: str, path: str, body: bytes | None) -> Any:
        status, headers, content = await plain(self, http, method, path, body)
        asked = None if body is None else bare(json.loads(body))
        response = json.loads(content)
        if path in FLAGS:  # all that a server was started with
            response = {name: value for name, value in response.items() if name in FLAGS[path]}
        exchanges[json.dumps([method, path, asked])] = {"status": status, "response": response}
        return status, headers, content

    async def events(self: Client, path: str, body: Any) -> Any:
        told: list[Any] = []
        exchanges[json.dumps(["POST", path, bare(body)])] = {"status": 200, "events": told}
        async for each in plain_events(self, path, body):
            told.append(each)
            yield each

    Client._exchange, Client.events = exchange, events  # type: ignore[method-assign]
    found = vlmprobe.connect(url)
    {"vllm": calls, "sglang": sglang_calls}[found.meta["engine"]](model, url)
    head = {"engine": found.meta["engine"], "version": found.meta["engine_version"], "model": Path(model).name}
    lines = [head]
    for key, document in exchanges.items():
        method, path, body = json.loads(key)
        lines.append({"method": method, "path": path, "request": body, **document})
    written = "".join(json.dumps(line) + "\n" for line in lines).replace(str(model), Path(model).name)
    Path(file).write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
