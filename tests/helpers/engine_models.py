"""Tiny checkpoints that vLLM's CPU kernels take: as those of ``vlmprobe.testing.tiny``, with text heads of width 32."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmprobe.testing.tiny import family
from vlmprobe.testing.tiny.checkpoint import write

HEAD = 32  # a text head of 16 ends the engine at its first request


def engine_model(name: str, folder: Path, *, spaced: bool = False, untied: bool = False) -> Path:
    """Write the checkpoint ``name``; ``spaced`` ends the prompt of its chat template in a space.

    ``untied`` gives the LM head weights of its own: vLLM reads a reranker's score from its rows in the checkpoint.
    """
    entry = family(name)

    def make() -> Any:
        parts = entry.make()
        text = parts.config.text_config
        text.num_attention_heads, text.num_key_value_heads = text.hidden_size // HEAD, 1
        text.head_dim = HEAD
        rope = dict(text.rope_parameters or {})
        if "mrope_section" in rope:
            rope["mrope_section"] = [4, 6, 6]
            text.rope_parameters = rope
        if untied:
            text.tie_word_embeddings = parts.config.tie_word_embeddings = False
        return parts

    path = write(replace(entry, make=make), folder)
    if spaced:
        template = path / "chat_template.jinja"
        written = template.read_text()
        head = "<|im_start|>assistant\\n"
        if head not in written:
            raise ValueError(f"the template of {name} begins an answer otherwise than with {head!r}")
        template.write_text(written.replace(head, head.replace("\\n", ": ")))
    config = json.loads((path / "config.json").read_text())
    assert config["text_config"]["num_key_value_heads"] == 1
    return path
