"""Runs a model's own ``generate`` once with capture hooks, under the model's lock, and restores all state."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList, StopStringCriteria
from transformers.generation.utils import GENERATION_MODES_MAPPING

from vlmprobe.adapter import Adapter
from vlmprobe.adapter.kv_cache import cache_of
from vlmprobe.engines.base import Options
from vlmprobe.engines.local.capture import Kept, Steps, watch_backbone
from vlmprobe.engines.token_tables import non_finite
from vlmprobe.errors import CapabilityError, GenerationOptionError, NonFiniteLogitsError

__all__ = ["Run", "alone", "drawing", "run", "to_model"]

# Hooks, and state that models keep (rope deltas), belong to one call at a time, whichever probe holds the model.
_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_RNG = threading.RLock()  # torch has one global generator per device
# Relative tolerance between the states of one prompt's beams before their first token.
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}
COARSE = 5e-2  # in half precision


@dataclass(frozen=True)
class Run:
    """Output of one run over a batch of N prompts of padded length S; with B beams the hidden rows are N x B."""

    length: int  # S
    sequences: Tensor  # int64 [N, S + T], as generate returns them
    beam_indices: Tensor | None  # int64 [N, T], the row that each token's logits came from; None without beams
    cache: Any  # the model's key-value cache of everything but the last token
    steps: Steps  # raw numbers of each step; empty with beams
    prefill: Tensor | None  # [N x B, S, H], the states that enter the head; if the prompt side is wanted
    decoded: list[Tensor]  # [T] of [N x B, H], the states each step's logits came from; if wanted, or with beams


def run(
    adapter: Adapter,
    inputs: Mapping[str, Any],
    config: GenerationConfig,
    options: Options,
    listen: Callable[[Steps, Tensor], bool] | None = None,
    rows: Kept | None = None,
) -> Run:
    """Generate from model inputs that are already on the model's device (:func:`to_model`).

    Args:
        adapter: of the model.
        inputs: of a batch of N prompts.
        config: from :func:`~vlmprobe.engines.local.generation_config.generation_config`.
        options: what to keep, and the caller's processors.
        listen: called after every step without beams with the ids [N, S + T] so far. The numbers of the tokens just
            drawn are ``steps.last``. Generation stops if it returns True.
        rows: receives the full rows [N, V] of every step without beams; if None and they are kept, a list is used.

    Raises:
        CapabilityError: if transformers gives the beams of one prompt different images.
        GenerationOptionError: if transformers rejects the options before anything runs.
        NonFiniteLogitsError: if sampling failed because of NaN or infinite logits.
    """
    beams = (config.num_beams or 1) > 1
    length = inputs["input_ids"].shape[1]
    if rows is None and "logits" in options.keep:
        rows = []
    steps = Steps(options.alternatives, keep=None if beams else rows)
    prefill: list[Tensor] = []
    decoded: list[Tensor] = []
    covered = 0
    began = False

    def look(hidden: Tensor) -> None:
        nonlocal covered
        if steps.processing:  # a processor runs the model itself
            return
        covered += hidden.shape[1]
        if covered <= length and options.prompt:
            prefill.append(hidden)
        if covered >= length and (beams or "hidden" in options.keep):
            decoded.append(hidden[:, -1].clone())

    def decode(model: Any, input_ids: Tensor, logits_processor: LogitsProcessorList, **rest: Any) -> Any:
        nonlocal began
        began = True
        # Beam search passes log-softmax to its processors, and reorders its rows.
        logits_processor = steps.watching(logits_processor) if beams else steps.around(logits_processor)
        loop = getattr(type(model), GENERATION_MODES_MAPPING[rest["generation_config"].get_generation_mode()])
        return loop(model, input_ids, logits_processor=logits_processor, **rest)

    def told(ids: Tensor, _: Any, **__: Any) -> Tensor:
        steps.finish(ids[:, -1])
        assert listen is not None
        return torch.full((len(ids),), listen(steps, ids), device=ids.device)

    # generate fills what is None from the model's own config, which would restore what this call leaves out.
    model = copy.copy(adapter.model)
    model.generation_config = GenerationConfig()
    stops = StoppingCriteriaList([told] if listen else [])
    stop_strings, config.stop_strings = config.stop_strings, None
    if stop_strings:  # generate passes its tokenizer to no custom decoding function
        stops.append(StopStringCriteria(adapter.tokenizer, stop_strings))
    try:
        with watch_backbone(adapter.backbone, look):
            output = model.generate(
                **inputs,
                generation_config=config,
                custom_generate=decode,
                stopping_criteria=stops,
                logits_processor=LogitsProcessorList(options.processors),
            )
    except RuntimeError as error:
        if (step := steps.first_bad()) is not None:
            raise NonFiniteLogitsError(non_finite(f"generated token {step}")) from error
        raise
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # The options are at fault if they fail before the model runs, or in one of transformers' own processors.
        if began and (options.processors or not steps.processing):
            raise
        raise GenerationOptionError(f"transformers rejects these generation options: {error}") from error
    finally:
        config.stop_strings = stop_strings
    made = output.sequences.shape[1] - length
    if not beams and steps.count < made:
        steps.finish(output.sequences[:, length + steps.count])
    if beams:
        _require_one_prompt(decoded[0], len(output.sequences))
    return Run(
        length=length,
        sequences=output.sequences,
        beam_indices=output.beam_indices if beams else None,
        cache=cache_of(output),
        steps=steps,
        prefill=torch.cat(prefill, dim=1) if prefill else None,
        decoded=decoded,
    )


def _require_one_prompt(states: Tensor, prompts: int) -> None:
    """Beams of a prompt [N x B, H] start out equal. Older transformers repeat tiles, not images, and mix them."""
    beams = states.reshape(prompts, -1, states.shape[-1]).float()
    apart = (beams - beams[:, :1]).norm(dim=-1) / beams[:, :1].norm(dim=-1)
    if (apart > ROUNDING.get(states.dtype, COARSE)).any():
        from transformers import __version__

        raise CapabilityError(
            f"transformers {__version__} gives the beams of one prompt different tiles of its image, so beam search "
            "would answer another question. Update transformers, or use num_beams=1."
        )


def to_model(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs on the model's device, floating-point tensors in its dtype."""
    return {
        key: value.to(model.device, model.dtype if value.is_floating_point() else None)
        if isinstance(value, Tensor)
        else value
        for key, value in inputs.items()
    }


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """One call on the model at a time, dropout and gradients off; every module's mode is restored."""
    with _LOCKS.setdefault(model, threading.RLock()):
        training = [module for module in model.modules() if module.training]
        for module in training:
            module.training = False
        try:
            with torch.no_grad():
                yield
        finally:
            for module in training:
                module.training = True


@contextmanager
def drawing(model: Any, config: GenerationConfig, seed: int | None) -> Iterator[None]:
    """Sample with a seed and restore the global generators; without a seed they advance as usual.

    Sampling holds one lock for all models: a seed is reproducible only if no other call draws in between.
    """
    if not config.do_sample:
        yield
        return
    if seed is None:
        with _RNG:
            yield
        return
    devices = [model.device] if model.device.type == "cuda" else []
    with _RNG, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
