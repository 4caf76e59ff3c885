"""Generates from the cache of a prompt's beginning, where the model's own ``generate`` goes on from one rightly."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

from vlmprobe.adapter import Adapter, Encoding
from vlmprobe.engines.base import Options
from vlmprobe.engines.local.beginnings import beginning_of
from vlmprobe.engines.local.generation_config import prefill_config
from vlmprobe.engines.local.left_padded import close
from vlmprobe.engines.local.model_state import alone, to_model
from vlmprobe.engines.local.prefix_memory import PrefixMemory
from vlmprobe.engines.local.run_generate import run
from vlmprobe.engines.local.shared_prefix import SharedPrefix, Stem

__all__ = ["all_but_last"]

PLAIN = ("greedy_search", "sample")


def all_but_last(
    adapter: Adapter, encoding: Encoding, config: GenerationConfig, options: Options, images: Any, memory: PrefixMemory
) -> tuple[int, SharedPrefix] | None:
    """A prompt without its last token, run on a beginning from memory, and the length of that; None to run it whole.

    Models differ in how ``generate`` goes on from a cache: which inputs it wants again, how it counts positions. So the
    first time, with images and without, the state at the last position must be what the cache itself leads to; where
    it is not, or fails, no beginning is used. The caller holds the model's lock.
    """
    ids = encoding.prompts[0].ids.tolist()
    shown = bool(images)
    if memory.resumes.get(shown) is False or not _is_plain(config, options) or len(ids) < 2:
        return None
    with alone(adapter):  # a prompt that then runs whole finds no state of its beginning on the model
        found = beginning_of(adapter, [encoding], len(ids) - 1, len(ids), images, memory)
        if found is None:
            return None
        length, prefix = found
        begun = prefix.after(ids[length:-1])
        if shown not in memory.resumes:
            memory.resumes[shown] = _resumes(adapter, encoding, begun, ids[-1])
    return (length, begun) if memory.resumes[shown] else None


def _is_plain(config: GenerationConfig, options: Options) -> bool:
    """Whether nothing but the prompt, its cache and the tokens takes part in decoding."""
    return (
        config.get_generation_mode().value in PLAIN
        and not options.begin
        and not options.processors
        and config.cache_implementation is None
        and config.use_cache is not False
        and config.prefill_chunk_size is None
        and (config.num_return_sequences or 1) == 1
        and (config.guidance_scale or 1) == 1
    )


def _resumes(adapter: Adapter, encoding: Encoding, begun: SharedPrefix, last: int) -> bool:
    """Whether ``generate`` goes on from the cache as the cache itself does."""
    due = begun.states([Stem(0, (last,), ())])[0][()]
    once = prefill_config(adapter.model.generation_config)
    try:
        with alone(adapter):
            ran = run(adapter, to_model(adapter.model, encoding.inputs), once, Options(alternatives=1), begun=begun)
    except Exception:  # noqa: BLE001 - of the model: it is run whole
        return False
    assert ran.prefill is not None  # requested by Options.prompt
    return close(ran.prefill[0, -1], due)
