"""The other path to every number: transformers alone, and float64 arithmetic written out. Nothing of vlmprobe."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image


def chat(text: str, *images: Image.Image) -> list[dict[str, Any]]:
    """One user turn: the images, then the text."""
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def encode(own: Any, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """A conversation as the checkpoint's processor encodes it."""
    begun = messages[-1]["role"] == "assistant"
    asked = {"add_generation_prompt": not begun, "continue_final_message": begun}
    return own.processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt", **asked)


def extended(own: Any, inputs: dict[str, Any], ids: list[int]) -> dict[str, Any]:
    """The inputs of the prompt followed by text tokens, which PaliGemma's type ids tell from the prompt."""
    more = torch.tensor([ids])
    shape = inputs["input_ids"].shape
    grown = dict(inputs)
    for key, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.shape == shape:
            answer = key.endswith("mask") or (own.name, key) == ("paligemma", "token_type_ids")
            tail = more if key == "input_ids" else torch.full_like(more, int(answer))
            grown[key] = torch.cat([value, tail.to(value)], dim=1)
    if (mask := inputs.get("cross_attention_mask")) is not None:  # of mllama: text sees the images seen before it
        grown["cross_attention_mask"] = torch.cat([mask, mask[:, -1:].expand(-1, len(ids), -1, -1)], dim=1)
    return grown


@torch.no_grad()
def forward(own: Any, inputs: dict[str, Any]) -> np.ndarray:
    """Logits [S, V] of the model's own forward without a cache."""
    return own.model(**inputs, use_cache=False).logits[0].float().numpy()


@torch.no_grad()
def generate(own: Any, inputs: dict[str, Any], **options: Any) -> Any:
    """transformers' own ``generate``; ``new`` are the generated ids of the first row."""
    output = own.model.generate(
        **inputs, output_logits=True, output_scores=True, return_dict_in_generate=True, **options
    )
    output["new"] = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return output


def columns(rows: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of the tokens ``ids`` [T] under the logits ``rows`` [T, V], in float64 and with no library."""
    rows = rows.astype(np.float64)
    top = rows.max(axis=-1, keepdims=True)
    logsumexp = (top + np.log(np.exp(rows - top).sum(axis=-1, keepdims=True)))[:, 0]
    logprobs = rows - logsumexp[:, None]
    chosen = rows[np.arange(len(ids)), ids]
    return {
        "logprobs": chosen - logsumexp,
        "entropy": -(np.exp(logprobs) * logprobs).sum(axis=-1),
        "ranks": (rows > chosen[:, None]).sum(axis=-1),
        "logsumexp": logsumexp,
        "sorted": -np.sort(-logprobs, axis=-1),
    }
