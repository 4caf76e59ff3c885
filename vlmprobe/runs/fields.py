"""The columns of a record: their names, order and types."""

from __future__ import annotations

from typing import Any

__all__ = ["FIELDS", "PROMPT", "RESERVED", "TOKENS", "schema"]

# Types are those of pyarrow; id and the carried columns, whose types are those of the data, stand after row.
FIELDS = {
    "key": "string",
    "row": "int64",
    "status": "string",  # ok or failed
    "error_type": "string",
    "error": "string",
    "question": "string",
    "images": "images",
    "text": "string",
    "finish_reason": "string",
    "confidence": "float64",
    "logprob": "float64",  # nats, of the whole answer
    "n_tokens": "int32",
    "mean_entropy": "float32",  # nats
    "lowest_logprob": "float32",  # nats
    "prompt_sum": "float64",  # nats, of the text of the prompt
    "n_prompt": "int32",  # positions of the prompt
    "value_kind": "string",
    "best": "string",
    "candidates": "list",
    "candidate_logprobs": "numbers",  # nats
    "mass": "float64",
    "seconds": "float32",  # of the batch, divided by its size
    "batch_size": "int32",
    "at": "time",
}
# Lists side by side: column of a record -> column of a TokenTable, and the type of an element.
TOKENS = {
    "token_id": ("ids", "int32"),
    "token": ("tokens", "string"),
    "token_kind": ("kinds", "string"),
    "token_logprob": ("logprobs", "float32"),
    "token_entropy": ("entropy", "float32"),
    "token_rank": ("ranks", "int32"),
    "token_logsumexp": ("logsumexp", "float32"),
    "top_ids": ("top_ids", "int32"),
    "top_tokens": ("top_tokens", "string"),
    "top_logprobs": ("top_logprobs", "float32"),
}
# Of the prompt: positions too, since an image takes several.
PROMPT = {f"prompt_{name}": of for name, of in TOKENS.items()} | {"prompt_token_position": ("positions", "int32")}
RESERVED = frozenset({*FIELDS, *TOKENS, *PROMPT, "id"})  # which no carried column may be called
IMAGE = {"path": "string", "bytes": "int64", "hash": "string", "width": "int32", "height": "int32"}


def schema(prompt: bool = False) -> Any:
    """The ``pyarrow.Schema`` of records, without id and carried columns; with ``prompt``, with the prompt's tokens."""
    import pyarrow as pa

    plain = {name: getattr(pa, name)() for name in ("string", "int32", "int64", "float32", "float64")}
    types = {
        **plain,
        "images": pa.list_(pa.struct([(name, plain[kind]) for name, kind in IMAGE.items()])),
        "list": pa.list_(pa.string()),
        "numbers": pa.list_(pa.float64()),
        "time": pa.timestamp("us", tz="UTC"),
    }
    fields = [(name, types[kind]) for name, kind in FIELDS.items()]
    for name, (_, kind) in {**TOKENS, **(PROMPT if prompt else {})}.items():
        one = pa.list_(plain[kind])
        fields.append((name, pa.list_(one) if "top_" in name else one))
    return pa.schema(fields)
