"""Common alternatives for the same numbers, as users write them: transformers alone, and minicons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from PIL.Image import open as open_image
from torch import Tensor

__all__ = [
    "Inputs",
    "bare_batches",
    "bare_generate",
    "each_candidate",
    "forward_rows",
    "generated_rows",
    "inputs_of",
    "minicons",
    "scorer",
]

Inputs = Mapping[str, Any]


def chat(processor: Any, question: str, image: Image | None) -> str:
    """The prompt as text, by the checkpoint's own chat template."""
    content = ([{"type": "image"}] if image else []) + [{"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def inputs_of(model: Any, processor: Any, text: str, image: Image | None) -> Inputs:
    """Model inputs of a text, on the model's device and in its dtype."""
    made = processor(text=[text], images=[image] if image else None, return_tensors="pt")
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None) for name, value in made.items()
    }


@torch.no_grad()
def bare_generate(model: Any, inputs: Inputs, new: int) -> Tensor:
    """Tokens only, without any statistics: the cost of the model itself."""
    return model.generate(**inputs, max_new_tokens=new, do_sample=False)


@torch.no_grad()
def bare_batches(
    model: Any, processor: Any, question: str, images: Sequence[Any], new: int, size: int = 16
) -> list[str]:
    """Texts of answers about images, or files of them, in batches of ``size``, without any statistics."""
    found: list[str] = []
    for start in range(0, len(images), size):
        opened = [open_image(each).convert("RGB") if isinstance(each, str) else each for each in images[start:][:size]]
        texts = [chat(processor, question, each) for each in opened]
        made = processor(
            text=texts, images=[[each] for each in opened], padding=True, padding_side="left", return_tensors="pt"
        )
        output = model.generate(**made.to(model.device), max_new_tokens=new, do_sample=False)
        found += processor.batch_decode(output[:, made["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


@torch.no_grad()
def generated_rows(model: Any, inputs: Inputs, new: int) -> Tensor:
    """``generate(output_logits=True)`` and log-softmax of all rows [T, V]: log-probabilities [T] of the answer."""
    out = model.generate(
        **inputs, max_new_tokens=new, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    rows = torch.log_softmax(torch.cat(out.logits).float(), dim=-1)
    ids = out.sequences[0, -len(rows) :]
    return rows.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def forward_rows(model: Any, inputs: Inputs) -> Tensor:
    """Full forward and log-softmax of all rows [S, V]: log-probabilities [S - 1] of a prompt."""
    rows = torch.log_softmax(model(**inputs).logits[0, :-1].float(), dim=-1)
    return rows.gather(-1, inputs["input_ids"][0, 1:].unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def each_candidate(
    model: Any, processor: Any, question: str, image: Image | None, candidates: Sequence[str]
) -> list[float]:
    """A full forward for each candidate, as evaluation harnesses do: its summed log-probability, nats."""
    prompt = chat(processor, question, image)
    length = inputs_of(model, processor, prompt, image)["input_ids"].shape[1]
    found = []
    for candidate in candidates:
        inputs = inputs_of(model, processor, prompt + candidate, image)
        found.append(float(forward_rows(model, inputs)[length - 1 :].sum()))
    return found


def scorer(model: Any, processor: Any) -> Any:
    """minicons' scorer for a loaded model, created once: its constructor iterates over the whole vocabulary."""
    from minicons.scorer import VLMScorer

    side = processor.tokenizer.padding_side
    processor.vocab_size = 0  # minicons reads this; the token table built from it is not used in scoring
    made = VLMScorer(model, device=str(model.device), tokenizer=processor)
    processor.tokenizer.padding_side = side  # minicons set it to right, on the shared processor
    return made


def minicons(scorer: Any, processor: Any, question: str, image: Image | None, candidates: Sequence[str]) -> list[float]:
    """``VLMScorer.conditional_score`` over all candidates as one batch: summed log-probabilities, nats."""
    side, processor.tokenizer.padding_side = processor.tokenizer.padding_side, "right"
    try:
        return scorer.conditional_score(
            [chat(processor, question, image)] * len(candidates),
            list(candidates),
            image=[image] * len(candidates) if image else None,
            separator="",
            reduction=lambda row: row.float().sum().item(),
        )
    finally:
        processor.tokenizer.padding_side = side
