"""A fingerprint of a model's weights, by content: two runs with the same one ask the same model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from vlmprobe.engines.base import HasAdapter

if TYPE_CHECKING:
    import torch

__all__ = ["fingerprint"]

BLOCKS, BLOCK = 16, 4096  # 64 KB of each tensor, in pieces spread over it
CALLS = ("truncation", "padding")  # of a tokenizer, as its last call set them
# Entries of a config that say where a model comes from or how it is run, not what it is.
INCIDENTAL = ("name_or_path", "transformers_version", "dtype", "torch_dtype")  # and all that begin with _


def fingerprint(probe: Any) -> dict[str, str]:
    """Hashes of what decides a local model's answers: ``weights``, ``config``, ``tokenizer`` and ``template``.

    They are taken from the model in memory, as it is asked: a merged adapter, a quantised or an edited weight shows,
    wherever the model was loaded from. Of every tensor 64 KB are read, spread over it, and so a change of single
    elements of a large one may not be found. Of a model on a server nothing is known: the mapping is then empty.
    """
    if not isinstance(probe.engine, HasAdapter):
        return {}
    from vlmprobe.engines.local.peft_state import active_adapters

    adapter = probe.engine.adapter
    model = adapter.peft or adapter.model
    return {
        "weights": _hash(_weights(model)),
        "config": _hash([_json(_config(adapter.model)), *_adapter_configs(model), _json(active_adapters(adapter))]),
        "tokenizer": _hash([_tokenizer(adapter.processor)]),
        "template": _hash([_json(_processing(adapter.processor))]),
    }


def _weights(model: Any) -> Iterator[bytes]:
    found: dict[str, bytes] = {}
    for name, module in model.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        with _in_memory(module, any(tensor.device.type == "meta" for _, tensor in own)):
            for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                told = f"{name}.{key} {tuple(tensor.shape)} {tensor.dtype}".encode()
                found[f"{name}.{key}"] = _hash([told, _blocks(tensor)]).encode()
    return (found[name] for name in sorted(found))


def _in_memory(module: Any, offloaded: bool) -> Any:
    """While the weights of a module are read: those that accelerate has put elsewhere are there."""
    if not offloaded:
        return nullcontext()
    from accelerate.utils import align_module_device

    return align_module_device(module, "cpu")


def _blocks(tensor: torch.Tensor) -> bytes:
    import torch

    if tensor.device.type == "meta":
        return b"not in memory"
    flat = tensor.detach().reshape(-1)
    per = max(1, BLOCK // flat.element_size())  # elements of a block
    if len(flat) > BLOCKS * per:
        starts = [(len(flat) - per) * place // (BLOCKS - 1) for place in range(BLOCKS)]
        flat = torch.cat([flat[start : start + per] for start in starts])
    return bytes(flat.contiguous().view(torch.uint8).cpu().numpy().tobytes())


def _config(model: Any) -> dict[str, Any]:
    return _without_incidental(model.config.to_dict())


def _adapter_configs(model: Any) -> list[bytes]:
    """The configs of the PEFT adapters."""
    configs = getattr(model, "peft_config", None) or {}
    return [_json(_without_incidental(configs[name].to_dict())) for name in sorted(configs)]


def _tokenizer(processor: Any) -> bytes:
    tokenizer = getattr(processor, "tokenizer", processor)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "to_str"):
        held = json.loads(backend.to_str())
        return _json({name: held[name] for name in held if name not in CALLS})
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    return _json({"vocabulary": vocabulary, "special": getattr(tokenizer, "special_tokens_map", {})})


def _processing(processor: Any) -> dict[str, Any]:
    """The chat template, and how images are made into pixels."""
    found: dict[str, Any] = {"template": getattr(processor, "chat_template", None)}
    found["tokenizer's"] = getattr(getattr(processor, "tokenizer", None), "chat_template", None)
    for name in ("image_processor", "video_processor"):
        part = getattr(processor, name, None)
        if part is not None and hasattr(part, "to_dict"):
            found[name] = _without_incidental(part.to_dict())
    return found


def _without_incidental(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {str(key): each for key, each in value.items() if key not in INCIDENTAL}
        return {key: _without_incidental(each) for key, each in kept.items() if not key.startswith("_")}
    return [_without_incidental(each) for each in value] if isinstance(value, (list, tuple)) else value


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")


def _hash(parts: Any) -> str:
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        made.update(len(part).to_bytes(8, "big") + part)
    return made.hexdigest()
