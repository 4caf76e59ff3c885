"""Servers that answer as engines do, with the numbers of a model that is open here.

The forms are derived from the engines' sources, at the versions that ``tests/data/wire/*/README.md`` name; none of
these engines ran. What a request brings (text, pictures, options) is what the model is asked, so that a picture that
was not sent, or a prompt that was written otherwise, gives other numbers than the model itself.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import DATA
from PIL import Image
from reference import columns
from wire_server import Reply, Request, refusal

import vlmprobe
from vlmprobe.engines.serving.base import TEXT

WIRE = DATA / "wire"
LOWEST = -3.4028234663852886e38
VIRTUAL = 100_000_000


def facts(engine: str, name: str = "facts") -> dict[str, Any]:
    """Replies to GET requests, by path."""
    return json.loads((WIRE / engine / f"{name}.json").read_text(encoding="utf-8"))


@dataclass
class Model:
    """A model that answers for an engine."""

    probe: vlmprobe.Probe
    question: str

    def picture(self, content: bytes) -> Image.Image:
        return Image.open(io.BytesIO(content))

    def asked(self, written: str, images: list[Image.Image]) -> tuple[str, str]:
        """The question that a written prompt asks, and what follows the prompt."""
        for question in (self.question, TEXT):
            due = self.text(question, "<image>" if images else "")
            if written.startswith(due):
                return question, written[len(due) :]
        raise AssertionError(f"a prompt that nobody wrote: {written}")

    def answer(self, question: str, images: list[Image.Image], limit: int) -> tuple[str, list[int], np.ndarray, str]:
        """Text, ids, rows of logits [T, V] and finish reason."""
        options = {"keep": "logits", "prompt": False, "max_new_tokens": limit, "do_sample": False}
        result = self.probe.generate(question, images or None, **options)
        return result.text, result.output.ids.tolist(), result.output.logits, result.finish_reason

    def prompt(
        self, question: str, images: list[Image.Image], more: str = ""
    ) -> tuple[list[int], list[np.ndarray | None]]:
        """Ids of the prompt in the model's own sequence, and the row that each was drawn from; None in pictures."""
        result = self.probe.generate(question, images or None, keep="logits", max_new_tokens=1, do_sample=False)
        ids = result.input_ids.tolist()
        rows: list[np.ndarray | None] = [None] * len(ids)
        for place, kind, row in zip(result.prompt.positions, result.prompt.kinds, result.prompt.logits, strict=True):
            if kind != "image" and place:
                rows[place] = row
        if more:
            table = self.probe.score(question, [more], images or None, keep="logits").tables[0]
            ids += table.ids.tolist()
            rows += list(table.logits)
        return ids, rows

    def text(self, question: str, tag: str) -> str:
        """The prompt as the chat template writes it, with an engine's own tag for a picture."""
        parts = [{"type": "image"}] if tag else []
        written = self.probe.engine.adapter.processor.apply_chat_template(
            [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}],
            tokenize=False,
            add_generation_prompt=True,
        )
        return written.replace("<IMG_CONTEXT>", tag)


def logprobs(row: np.ndarray) -> np.ndarray:
    """float64 [V], written out."""
    return row.astype(np.float64) - columns(row[None], np.array([0]))["logsumexp"][0]


def best(row: np.ndarray, k: int) -> list[int]:
    return np.argsort(-row, kind="stable")[:k].tolist()


def decoded(url: str) -> bytes:
    head, _, data = url.partition(",")
    assert head.startswith("data:image/"), head
    return base64.b64decode(data)


# -- SGLang 0.5.23 -----------------------------------------------------------------------------------


def sglang(model: Model, *, chosen: bool = True) -> Callable[[Request], Any]:
    def generate(request: Request) -> Any:
        body = request.json
        images = [model.picture(decoded(each)) for each in body.get("image_data", [])]
        question, more = model.asked(body["text"], images)
        k, limit = body["top_logprobs_num"], body["sampling_params"]["max_new_tokens"]
        heat = body["sampling_params"]["temperature"] or 1.0
        text, ids, rows, reason = model.answer(question, images, limit=max(limit, 1))
        if not limit:
            text, ids, rows = "", [], rows[:0]

        def entry(row: np.ndarray, each: int) -> list[Any]:
            return [float(logprobs(row)[each]), each, None]

        meta: dict[str, Any] = {
            "finish_reason": {"type": reason, **({"length": limit} if reason == "length" else {"matched": ids[-1:]})},
            "output_token_logprobs": [entry(row / heat, each) for row, each in zip(rows, ids, strict=True)],
            "output_top_logprobs": [[entry(row / heat, each) for each in best(row, k)] for row in rows],
        }
        if chosen and "token_ids_logprob" in body:  # ignored by servers that do not know it
            asked = body["token_ids_logprob"]
            meta["output_token_ids_logprobs"] = [[entry(row / heat, each) for each in asked] for row in rows]
        if body.get("logprob_start_len") == 0:
            before, drawn = model.prompt(question, images, more)
            pictures = set(model.probe.engine.adapter.image_ids)
            junk = next(row for row in drawn if row is not None)
            # Ids of pictures are hashes beyond the vocabulary: looked up as its last id, reported as 0.
            meta["input_token_logprobs"] = [
                [None if not place else float(logprobs(junk if row is None else row)[-1 if each in pictures else each]),
                 0 if each in pictures else each, None]
                for place, (each, row) in enumerate(zip(before, drawn, strict=True))
            ]  # fmt: skip
            meta["input_top_logprobs"] = [
                None if not place else [entry(each, one) for one in best(each, k)]
                for place, each in enumerate(junk if row is None else row for row in drawn)
            ]
        return {"text": text, "output_ids": ids, "meta_info": meta}

    return generate


# -- LightLLM ----------------------------------------------------------------------------------------


def lightllm(model: Model, *, new: bool = True, prompts: bool = True) -> Callable[[Request], Any]:
    def generate(request: Request) -> Any:
        body = request.json
        parameters = body["parameters"]
        images = [
            model.picture(base64.b64decode(each["data"]))
            for each in body.get("multimodal_params", {}).get("images", [])
        ]
        question, more = model.asked(body["inputs"], images)
        assert parameters["disable_prompt_cache"] is True
        text, ids, rows, reason = model.answer(question, images, limit=parameters["max_new_tokens"])
        values = [float(logprobs(row)[each]) for row, each in zip(rows, ids, strict=True)]
        decode = model.probe.engine.detokenizer.decode
        reply: dict[str, Any] = {
            "generated_text": [text],
            "count_output_tokens": len(ids),
            "finish_reason": reason,
            "prompt_tokens": 1,
            "tokens": [
                {"id": each, "logprob": value, "cumlogprob": value, "special": False, "text": decode([each])}
                for each, value in zip(ids, values, strict=True)
            ],
        }
        if new:
            reply["logprobs"] = [
                {str(each): {"logprob": value, "rank": None, "decoded_token": decode([each])}}
                for each, value in zip(ids, values, strict=True)
            ]
        asked = parameters.get("prompt_logprobs", -1)
        if asked >= 0 and not prompts:
            return refusal(400, "prompt_logprobs requires --enable_prompt_logprobs")
        if (new and asked >= 0) or (not new and prompts):
            before, drawn = model.prompt(question, images, more)
            pictures = set(model.probe.engine.adapter.image_ids)
            reply["prompt_token_ids"] = [
                VIRTUAL + 7 + place if each in pictures else each for place, each in enumerate(before)
            ]
            reply["prompt_logprobs"] = _new(before, drawn, asked) if new else _old(before, drawn)
        return reply

    return generate


def _new(ids: list[int], rows: list[np.ndarray | None], k: int) -> list[Any]:
    def told(row: np.ndarray, each: int, rank: int | None) -> dict[str, Any]:
        return {"logprob": float(logprobs(row)[each]), "rank": rank, "decoded_token": "?"}

    found: list[Any] = [None]
    for each, row in list(zip(ids, rows, strict=True))[1:]:
        if row is None:
            found.append({str(0): {"logprob": -1.0, "rank": 1, "decoded_token": "?"}})
        elif k:
            found.append({str(one): told(row, one, place + 1) for place, one in enumerate(best(row, k))})
        else:
            found.append({str(each): told(row, each, 1)})
    return found


def _old(ids: list[int], rows: list[np.ndarray | None]) -> list[Any]:
    return [
        [one, {str(other): float(logprobs(row)[other]) if row is not None else 0.0}]
        for one, other, row in zip(ids, ids[1:], rows[1:], strict=False)
    ]


# -- OpenAI-like routes: LMDeploy 0.16.0, llama.cpp ----------------------------------------------------


def asked_openai(model: Model, body: dict[str, Any]) -> tuple[str, list[Image.Image]]:
    parts = body["messages"][-1]["content"]
    parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
    question = next(part["text"] for part in parts if part["type"] == "text")
    assert question in (model.question, TEXT, "Hi")
    return question, [model.picture(decoded(part["image_url"]["url"])) for part in parts if part["type"] == "image_url"]


def lmdeploy(model: Model, *, turbomind: bool = False, mode: str | None = "raw_logprobs") -> Callable[[Request], Any]:
    def chat(request: Request) -> Any:
        body = request.json
        if mode is None:
            return refusal(400, "logprobs is not enabled: start the engine with logprobs_mode")
        question, images = asked_openai(model, body)
        text, ids, rows, reason = model.answer(question, images, limit=body["max_tokens"])
        convert = model.probe.engine.adapter.tokenizer.convert_ids_to_tokens
        content = []
        for each, row in zip(ids, rows, strict=True):
            values = row.astype(np.float64)
            if mode != "raw_logits":
                values = logprobs(row)
            if turbomind:
                values = logprobs(row / body["temperature"])
                left = best(values, body["top_k"] or len(values))
                values = np.full_like(values, -np.inf)
                values[left] = logprobs(row[left] / body["temperature"])
            top = [one for one in best(values, body["top_logprobs"]) if np.isfinite(values[one])]
            others = [_lmdeploy_entry(convert(one), values[one]) for one in top if one != each]
            content.append({**_lmdeploy_entry(convert(each), values[each]), "top_logprobs": others})
        if reason == "stop":  # the end token is left out
            ids, content = ids[:-1], content[:-1]
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        choice |= {"logprobs": {"content": content}, "output_ids": ids}
        return {"id": "chatcmpl-1", "object": "chat.completion", "model": body["model"], "choices": [choice]}

    return chat


def _lmdeploy_entry(piece: str, value: float) -> dict[str, Any]:
    return {"token": piece, "bytes": list(piece.encode()), "logprob": float(value)}


def _llamacpp_content(model: Model, ids: list[int], rows: np.ndarray, k: int) -> list[dict[str, Any]]:
    decode = model.probe.engine.detokenizer.decode

    def entry(row: np.ndarray, each: int) -> dict[str, Any]:
        piece = decode([each])
        told = {"id": each, "token": piece, "bytes": list(piece.encode()), "logprob": float(logprobs(row)[each])}
        return told if np.isfinite(told["logprob"]) else {**told, "logprob": LOWEST}

    return [
        {**entry(row, each), "top_logprobs": [entry(row, one) for one in best(row, k)]}
        for each, row in zip(ids, rows, strict=True)
    ]


def llamacpp(model: Model) -> Callable[[Request], Any]:
    """Behind a proxy that has OpenAI's route alone."""

    def chat(request: Request) -> Any:
        body = request.json
        question, images = asked_openai(model, body)
        text, ids, rows, reason = model.answer(question, images, limit=body["max_tokens"])
        for forced, _ in body.get("logit_bias", []):  # draws a token; the numbers stay those of the raw row
            text, ids = forced, model.probe.engine.adapter.tokenizer(forced, add_special_tokens=False)["input_ids"][:1]
        content = _llamacpp_content(model, ids, rows, body["top_logprobs"])
        choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}}
        return {"choices": [{**choice, "logprobs": {"content": content}}], "object": "chat.completion"}

    return chat


def llamacpp_template(request: Request) -> Any:
    """The answer of ``/apply-template``."""
    parts = request.json["messages"][-1]["content"]
    written = [part["text"] if part["type"] == "text" else "<__media__>" for part in parts]
    return {"prompt": "".join(written)}


def llamacpp_native(model: Model) -> Callable[[Request], Any]:
    """The answer of ``/completion`` to a prompt of :func:`llamacpp_template`."""

    def completion(request: Request) -> Any:
        body = request.json
        prompt = body["prompt"]
        written, files = (prompt, []) if isinstance(prompt, str) else prompt.values()
        images = [model.picture(base64.b64decode(each)) for each in files]
        question = written.removeprefix("<__media__>" * len(images))
        assert question in (model.question, TEXT)
        text, ids, rows, reason = model.answer(question, images, limit=body["n_predict"])
        return {
            "content": text,
            "tokens": ids,
            "stop": True,
            "stop_type": "eos" if reason == "stop" else "limit",
            "stopping_word": "",
            "tokens_predicted": len(ids),
            "tokens_evaluated": len(model.prompt(question, images)[0]),
            "completion_probabilities": _llamacpp_content(model, ids, rows, body["n_probs"]),
        }

    return completion


# -- Ollama ------------------------------------------------------------------------------------------


def ollama(model: Model) -> Callable[[Request], Any]:
    def chat(request: Request) -> Any:
        body = request.json
        message = body["messages"][-1]
        images = [model.picture(base64.b64decode(each)) for each in message.get("images", [])]
        assert message["content"] in (model.question, TEXT)
        text, ids, rows, reason = model.answer(message["content"], images, limit=body["options"]["num_predict"])
        decode = model.probe.engine.detokenizer.decode

        def entry(row: np.ndarray, each: int) -> dict[str, Any]:
            piece = decode([each])
            return {"token": piece, "logprob": float(logprobs(row)[each]), "bytes": list(piece.encode())}

        told = [
            {**entry(row, each), "top_logprobs": [entry(row, one) for one in best(row, body["top_logprobs"])]}
            for each, row in zip(ids, rows, strict=True)
        ]
        return {
            "model": body["model"],
            "message": {"role": "assistant", "content": text},
            "done": True,
            "done_reason": reason,
            "logprobs": told,
        }

    return chat


def unreachable(_: Request) -> Reply:
    raise AssertionError("nothing was to be sent")


# -- vLLM 0.32.0, and OpenAI's protocol -----------------------------------------------------------------


def vllm(model: Model) -> Callable[[Request], Any]:
    def chat(request: Request) -> Any:
        body = request.json
        k = body["top_logprobs"]
        if not 0 <= k <= 20:
            return refusal(400, f"Requested sample logprobs of {abs(k)}, which is greater than max allowed: 20")
        question, images = asked_openai(model, body)
        text, ids, rows, reason = model.answer(question, images, limit=body["max_tokens"])

        def entry(row: np.ndarray, each: int) -> dict[str, Any]:
            return {"token": f"token_id:{each}", "logprob": float(logprobs(row)[each]), "bytes": [1]}

        content = [
            {**entry(row, each), "top_logprobs": [entry(row, one) for one in dict.fromkeys([each, *best(row, k)])][:k]}
            for each, row in zip(ids, rows, strict=True)
        ]
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        reply: dict[str, Any] = {"choices": [{**choice, "logprobs": {"content": content}, "token_ids": ids}]}
        before, drawn = model.prompt(question, images)
        reply["prompt_token_ids"] = before
        if "prompt_logprobs" in body:
            junk = next(row for row in drawn if row is not None)
            reply["prompt_logprobs"] = [
                _prompt_entry(junk if row is None else row, each, body["prompt_logprobs"]) if place else None
                for place, (each, row) in enumerate(zip(before, drawn, strict=True))
            ]
        return reply

    return chat


def _prompt_entry(row: np.ndarray, own: int, k: int) -> dict[str, Any]:
    values = logprobs(row)
    own = min(own, len(values) - 1)
    return {
        str(each): {
            "logprob": float(values[each]),
            "rank": int((values > values[each]).sum()) + 1,
            "decoded_token": "?",
        }
        for each in dict.fromkeys([own, *best(row, k)])
    }


def _openai_content(model: Model, ids: list[int], rows: np.ndarray, k: int) -> list[dict[str, Any]]:
    decode = model.probe.engine.detokenizer.decode

    def entry(row: np.ndarray, each: int) -> dict[str, Any]:
        piece = decode([each])
        return {"token": piece, "logprob": float(logprobs(row)[each]), "bytes": list(piece.encode())}

    return [
        {**entry(row, each), "top_logprobs": [entry(row, one) for one in best(row, k)]}
        for each, row in zip(ids, rows, strict=True)
    ]


def openai(model: Model) -> Callable[[Request], Any]:
    def chat(request: Request) -> Any:
        body = request.json
        question, images = asked_openai(model, body)
        text, ids, rows, reason = model.answer(question, images, limit=body["max_tokens"])
        content = _openai_content(model, ids, rows, body["top_logprobs"])
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        return {"choices": [{**choice, "logprobs": {"content": content}}]}

    return chat


def openai_responses(model: Model, *further: str) -> Callable[[Request], Any]:
    """As OpenAI documents it; a limit below 16 is refused, and so is a parameter that is none of ``further`` ones."""
    known = {
        "model",
        "input",
        "max_output_tokens",
        "temperature",
        "top_p",
        "include",
        "top_logprobs",
        "store",
        "stream",
        *further,
    }

    def responses(request: Request) -> Any:
        body = request.json
        if unknown := set(body) - known:
            return refusal(400, f"Unknown parameter: {min(unknown)!r}.")
        limit = body["max_output_tokens"]
        if limit < 16:
            return refusal(400, f"Invalid 'max_output_tokens': expected a value >= 16, but got {limit} instead.")
        parts = body["input"][-1]["content"]
        question = next(part["text"] for part in parts if part["type"] == "input_text")
        assert question in (model.question, TEXT)
        images = [model.picture(decoded(part["image_url"])) for part in parts if part["type"] == "input_image"]
        text, ids, rows, reason = model.answer(question, images, limit=limit)
        told = body.get("include") == ["message.output_text.logprobs"]
        content = _openai_content(model, ids, rows, body["top_logprobs"]) if told else []
        part = {"type": "output_text", "annotations": [], "text": text, "logprobs": content}
        ended = reason == "stop"
        return {
            "object": "response",
            "status": "completed" if ended else "incomplete",
            "error": None,
            "incomplete_details": None if ended else {"reason": "max_output_tokens"},
            "output": [{"type": "message", "role": "assistant", "status": "completed", "content": [part]}],
            "usage": {
                "input_tokens": len(model.prompt(question, images)[0]),
                "output_tokens": len(ids),
                "output_tokens_details": {"reasoning_tokens": 0},
            },
        }

    return responses
