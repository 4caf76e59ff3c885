"""Overhead of the client for serving engines: ``python -m benchmarks.serving``.

Compared with bare ``httpx`` calls with identical bodies and concurrency, against a mock server in a separate process
that responds as vLLM does, after the latency of a model. The bare client parses the JSON and discards it. Both clients
alternate, and the median of the ratios is reported. The images are JPEG files. Memory is that of this process, over a
thousand requests whose results are discarded.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import io
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

import vlmprobe

IN_FLIGHT = 64
TOKENS, TOP = 64, 10
QUESTION = "What is in the picture?"
RESULTS = Path(__file__).with_name("serving.json")
MODELS = {"object": "list", "data": [{"id": "m", "owned_by": "vllm", "max_model_len": 4096}]}
REFUSAL = {"error": {"message": "Requested sample logprobs of 21, which is greater than max allowed: 20"}}


def reply() -> bytes:
    """An answer of 64 tokens with 11 entries each, and the ids of a prompt of 1,000 positions, in vLLM's format."""
    random = np.random.default_rng(0)
    content = []
    for _ in range(TOKENS):
        values = -np.sort(random.exponential(2.0, TOP + 1)) - 0.5
        ids = random.choice(150_000, TOP + 1, replace=False).tolist()
        entries = [
            {"token": f"word{each}", "logprob": float(value), "bytes": [119, 111]}
            for each, value in zip(ids, values, strict=True)
        ]
        content.append({**entries[0], "top_logprobs": entries})
    choice = {"index": 0, "message": {"role": "assistant", "content": "word " * TOKENS}, "finish_reason": "length"}
    choice |= {"logprobs": {"content": content}, "token_ids": list(range(TOKENS))}
    return json.dumps({"choices": [choice], "prompt_token_ids": list(range(1000))}).encode()


def serve(port: Any, wait_s: float) -> None:
    """Answer every POST alike after ``wait_s`` seconds; more than 20 alternatives are refused, as by vLLM."""
    answer, models, refusal = reply(), json.dumps(MODELS).encode(), json.dumps(REFUSAL).encode()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *fields = head.decode("latin-1").split("\r\n")
                length = next((int(each[15:]) for each in fields if each.lower().startswith("content-length:")), 0)
                body = await reader.readexactly(length)
                status, content = "200 OK", models
                if line.startswith("POST"):
                    top = int(body.rpartition(b'"top_logprobs": ')[2].partition(b",")[0].rstrip(b"}") or 0)
                    status, content = ("200 OK", answer) if 0 <= top <= 20 else ("400 Bad Request", refusal)
                    await asyncio.sleep(wait_s)
                elif not line.startswith("GET /v1/models"):
                    status, content = "404 Not Found", b"{}"
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(client, "127.0.0.1", 0, limit=2**24, backlog=256)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


@contextmanager
def server(wait_s: float) -> Iterator[str]:
    """The address of a server that runs while the context is open."""
    context = multiprocessing.get_context("spawn")
    port = context.Queue()
    process = context.Process(target=serve, args=(port, wait_s), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port.get(timeout=120)}"
    finally:
        process.terminate()
        process.join(10)


def photograph() -> bytes:
    """A JPEG of 448 x 448 pixels with about the detail of a photograph."""
    rough = np.random.default_rng(1).integers(0, 255, (56, 56, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(rough).resize((448, 448), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def connect(url: str) -> vlmprobe.Probe:
    return vlmprobe.connect(url, max_concurrency=IN_FLIGHT, value_kind="raw")


def consume(probe: vlmprobe.Probe, requests: list[vlmprobe.Request]) -> float:
    """Seconds that the probe takes for all requests; results are discarded."""
    started = time.perf_counter()
    options: dict[str, Any] = {"max_new_tokens": TOKENS, "alternatives": TOP, "progress": False, "prompt": False}
    count = sum(1 for _ in probe.generate_many(requests, **options))
    assert count == len(requests)
    return time.perf_counter() - started


def bodies(url: str, requests: list[vlmprobe.Request]) -> list[bytes]:
    """The request bodies that vlmprobe sends, recorded."""
    probe = connect(url)
    client: Any = probe.engine.client  # type: ignore[attr-defined]
    sent: list[bytes] = []
    request = client.request

    async def recorded(method: str, path: str, body: bytes | None) -> Any:
        if body is not None:
            sent.append(body)
        return await request(method, path, body)

    client.request = recorded
    consume(probe, requests)
    return sent[-len(requests) :]


async def bare(url: str, sent: list[bytes]) -> float:
    """Seconds that bare httpx takes for the same bodies at the same concurrency."""
    gate = asyncio.Semaphore(IN_FLIGHT)
    limits = httpx.Limits(max_connections=IN_FLIGHT, max_keepalive_connections=IN_FLIGHT)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def one(body: bytes) -> Any:
            async with gate:
                answer = await client.post("/v1/chat/completions", content=body)
            return answer.json()

        started = time.perf_counter()
        await asyncio.gather(*(one(body) for body in sent))
        return time.perf_counter() - started


def compare(wait_s: float, count: int, rounds: int) -> dict[str, Any]:
    """Alternating timings of both clients on one server."""
    requests = [vlmprobe.Request(QUESTION, photograph()) for _ in range(count)]
    with server(wait_s) as url:
        sent = bodies(url, requests)
        probe = connect(url)
        consume(probe, requests[:IN_FLIGHT])  # opens connections and discovers the server's limits
        found = []
        for _ in range(rounds):
            clock = [time.process_time()]
            plain = asyncio.run(bare(url, sent))
            clock.append(time.process_time())
            ours = consume(probe, requests)
            clock.append(time.process_time())
            own = {"bare_cpu_s": clock[1] - clock[0], "vlmprobe_cpu_s": clock[2] - clock[1]}
            found.append({"bare_s": plain, "vlmprobe_s": ours, **own, "load": os.getloadavg()[0]})
    more = statistics.median((each["vlmprobe_cpu_s"] - each["bare_cpu_s"]) / count for each in found)
    ratio = statistics.median(each["vlmprobe_s"] / each["bare_s"] for each in found)
    return {"wait_s": wait_s, "requests": count, "ratio": ratio, "more_cpu_ms": 1e3 * more, "rounds": found}


def growth(count: int) -> dict[str, Any]:
    """Memory of this process in MB after every tenth of ``count`` requests."""
    picture, process, seen = photograph(), psutil.Process(), []
    with server(0.0) as url:
        probe = connect(url)
        consume(probe, [vlmprobe.Request(QUESTION, picture)] * (2 * IN_FLIGHT))
        for _ in range(10):
            consume(probe, [vlmprobe.Request(QUESTION, picture)] * (count // 10))
            gc.collect()
            seen.append(process.memory_info().rss / 2**20)
    return {"requests": count, "rss_mb": seen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wait", type=float, nargs="*", default=[4.0, 1.0, 0.0], help="seconds that an answer takes")
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    found = [compare(wait, given.requests, given.rounds) for wait in given.wait]
    print("an answer takes  bare httpx  vlmprobe   ratio  more CPU a request")
    for each in found:
        plain, ours = (statistics.median(one[name] for one in each["rounds"]) for name in ("bare_s", "vlmprobe_s"))
        more = each["more_cpu_ms"]
        print(f"{each['wait_s']:>13.1f} s  {plain:>8.2f} s  {ours:>6.2f} s  {each['ratio']:>6.3f}  {more:>15.1f} ms")
    memory = growth(1000)
    listed = ", ".join(f"{each:.0f}" for each in memory["rss_mb"])
    print(f"memory in MB after every 100 of 1,000 requests: {listed}")
    RESULTS.write_text(json.dumps({"compare": found, "growth": memory}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
