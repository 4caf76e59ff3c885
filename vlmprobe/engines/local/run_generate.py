"""Runs a model's own ``generate`` once with capture hooks, under the model's lock, and restores all state."""

from __future__ import annotations

import copy
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList, StopStringCriteria
from transformers.generation.utils import GENERATION_MODES_MAPPING

from vlmprobe.adapter import Adapter
from vlmprobe.adapter.encoding import is_along
from vlmprobe.adapter.kv_cache import cache_name, cache_of
from vlmprobe.engines.base import Options
from vlmprobe.engines.local.capture import Head, Kept, Steps, watch_backbone
from vlmprobe.engines.local.grammar import Mask
from vlmprobe.engines.local.model_state import alone, changes_of, device_of
from vlmprobe.engines.local.peft_state import with_virtual_tokens
from vlmprobe.engines.local.phases import Moments
from vlmprobe.engines.local.running import running
from vlmprobe.engines.local.shared_prefix import SharedPrefix
from vlmprobe.engines.token_tables import non_finite
from vlmprobe.errors import CapabilityError, GenerationOptionError, NonFiniteLogitsError

__all__ = ["Run", "drawing", "run"]

_RNG = threading.RLock()  # torch has one global generator per device
# Relative tolerance between the states of one prompt's beams before their first token.
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}
COARSE = 5e-2  # in half precision
COARSE_ROW = 2e-2  # of one logit to the row's largest, likewise
MASKED = 1e30  # logits beyond it say that a token is ruled out


@dataclass(frozen=True)
class Run:
    """Output of one run over a batch of N prompts of padded length S; with B beams the hidden rows are N x B."""

    length: int  # S
    sequences: Tensor  # int64 [N, S + T], as generate returns them
    beam_indices: Tensor | None  # int64 [N, T], the row that each token's logits came from; None without beams
    cache: Any  # the model's key-value cache of everything but the last token
    steps: Steps  # raw numbers of each step; empty with beams
    prefill: Tensor | None  # [N x B, S, H], the states that enter the head; if the prompt side is wanted
    last: Tensor  # [N x B, H], the states at the last position of each prompt
    decoded: list[Tensor]  # [T] of [N x B, H], the states each step's logits came from; if wanted, or with beams
    decoding: Moments  # from the last state of the prompts to the end


def run(
    adapter: Adapter,
    inputs: Mapping[str, Any],
    config: GenerationConfig,
    options: Options,
    listen: Callable[[Steps, Tensor], bool] | None = None,
    rows: Kept | None = None,
    begun: SharedPrefix | None = None,
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
        begun: the prompts without their last token, if these have run already; without beams.

    Raises:
        CapabilityError: if transformers gives the beams of one prompt different images, or something hooked to the
            model cannot be in every row.
        GenerationOptionError: if transformers rejects the options before anything runs, or the model fails with the
            cache that its generation config names.
        NonFiniteLogitsError: if sampling failed because of NaN or infinite logits.
    """
    beams = (config.num_beams or 1) > 1
    length = inputs["input_ids"].shape[1]
    if rows is None and "logits" in options.keep:
        rows = []
    mask = next((each for each in options.processors if isinstance(each, Mask)), None)
    steps = Steps(options.alternatives, keep=None if beams else rows, mask=mask)
    prefill: list[Tensor] = [] if begun is None else [begun.hidden]
    decoded: list[Tensor] = []
    ends: list[Tensor] = []
    decoding = Moments(device_of(adapter.model))
    covered = 0 if begun is None else length - 1
    given = dict(inputs)
    if begun is not None:
        begun.restore()
        given = {name: value for name, value in inputs.items() if not _is_pixels(name, value, inputs)}
        given[cache_name(adapter.model.forward)] = copy.deepcopy(begun.cache)  # generate goes on in it
    began = False
    # Where all rows are those of the decoding loop, whatever is hooked to the model is in each of them.
    altered = (options.prompt or beams) and _is_altered(adapter)

    def look(hidden: Tensor) -> None:
        nonlocal covered
        if steps.processing:  # a processor runs the model itself
            return
        hidden = hidden[:, virtual if not covered else 0 :]
        covered += hidden.shape[1]
        if covered <= length and (options.prompt or altered):
            prefill.append(hidden)
        if covered >= length and not ends:
            ends.append(hidden[:, length - covered - 1].clone())
            decoding.begin()
        if covered >= length and (beams or "hidden" in options.keep):
            decoded.append(hidden[:, -1].clone())

    def decode(model: Any, input_ids: Tensor, logits_processor: LogitsProcessorList, **rest: Any) -> Any:
        nonlocal began
        began = True
        # A generate of the model's own may not hand on what it is given (Janus).
        logits_processor = _with_ours(logits_processor, options.processors)
        criteria = rest["stopping_criteria"]
        rest["stopping_criteria"] = StoppingCriteriaList([*criteria, *(each for each in stops if each not in criteria)])
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
    virtual = with_virtual_tokens(adapter, model)
    if virtual and (altered or config.cache_implementation):
        raise CapabilityError(
            "PEFT's virtual tokens cannot be put before the prompt together with "
            + ("a hook or a patched forward around the LM head." if altered else "cache_implementation=.")
        )
    stops = StoppingCriteriaList([told] if listen else [])
    stop_strings, config.stop_strings = config.stop_strings, None
    if stop_strings:  # generate passes its tokenizer to no custom decoding function
        stops.append(StopStringCriteria(adapter.tokenizer, stop_strings))
    try:
        with watch_backbone(adapter.backbone, look), running(inputs):
            output = model.generate(
                **given,
                generation_config=config,
                custom_generate=decode,
                stopping_criteria=stops,
                logits_processor=LogitsProcessorList(options.processors),
            )
    except RuntimeError as error:
        if (step := steps.first_bad()) is not None:
            raise NonFiniteLogitsError(non_finite(f"generated token {step}")) from error
        if config.cache_implementation and not isinstance(error, torch.OutOfMemoryError):
            raise _failed_with_cache(adapter, config, error) from error
        raise
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # The options are at fault if they fail before the model runs, or in one of transformers' own processors.
        if (began or _ran_a_module(error)) and (options.processors or not steps.processing):
            if config.cache_implementation and _ran_a_cache(error):
                raise _failed_with_cache(adapter, config, error) from error
            raise
        raise GenerationOptionError(f"transformers rejects these generation options: {error}") from error
    finally:
        config.stop_strings = stop_strings
    decoding.end()
    made = output.sequences.shape[1] - length
    if not beams and steps.count < made:
        steps.finish(output.sequences[:, length + steps.count])
    if beams:
        _require_one_prompt(decoded[0], len(output.sequences))
    if prefill and altered:
        _require_rows_alone(adapter, inputs, torch.cat(prefill, dim=1))
    return Run(
        length=length,
        sequences=output.sequences,
        beam_indices=output.beam_indices if beams else None,
        cache=cache_of(output),
        steps=steps,
        prefill=torch.cat(prefill, dim=1) if prefill and options.prompt else None,
        last=ends[0],
        decoded=decoded,
        decoding=decoding,
    )


def _is_pixels(name: str, value: Any, inputs: Mapping[str, Any]) -> bool:
    """Whether an input holds what images are encoded from, not what runs along the sequence or counts."""
    return isinstance(value, Tensor) and value.is_floating_point() and not is_along(inputs, name)


def _ran_a_module(error: Exception) -> bool:
    """Whether an error came out of a module: generate encodes images before it decodes."""
    return any(frame.f_code is nn.Module.__call__.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


def _ran_a_cache(error: Exception) -> bool:
    return any(isinstance(frame.f_locals.get("self"), Cache) for frame, _ in traceback.walk_tb(error.__traceback__))


def _failed_with_cache(adapter: Adapter, config: GenerationConfig, error: Exception) -> GenerationOptionError:
    why = str(error).partition("\n")[0].rstrip(".")
    return GenerationOptionError(
        f"{type(adapter.model).__name__} fails with cache_implementation={config.cache_implementation!r}: {why}. "
        "Pass cache_implementation=None to go without it."
    )


def _with_ours(processors: LogitsProcessorList, ours: Sequence[Any]) -> LogitsProcessorList:
    """The loop's processors with those of ours that are missing, where generate puts them: before sampling filters."""
    missing = [each for each in ours if not any(each is other for other in processors)]
    if not missing:
        return processors
    place = next((n for n, each in enumerate(processors) if type(each).__name__.endswith("Warper")), len(processors))
    return LogitsProcessorList([*processors[:place], *missing, *processors[place:]])


def _is_altered(adapter: Adapter) -> bool:
    """Whether there are hooks or patched forwards around the backbone, which see the rows of prompt and answer apart.

    Hooks that are called before a forward are taken to look only, as those that count do.

    Raises:
        CapabilityError: if they are on a model that runs the outer module inside it, which prompt rows do not pass.
    """
    if adapter.model is not adapter.outer and changes_of(adapter.model):
        raise CapabilityError(
            f"A hook or a patched forward of {type(adapter.model).__name__} would be in answer rows only: put it on "
            f"{type(adapter.outer).__name__}, which runs inside it, or pass logits_processor=."
        )
    inside = set(adapter.backbone.modules())
    return any(changes_of(module, before=False) for module in adapter.outer.modules() if module not in inside)


def _require_rows_alone(adapter: Adapter, inputs: Mapping[str, Any], states: Tensor) -> None:
    """What was hooked around the backbone must give a row the same logits whatever rows stand beside it.

    Costs a forward over the prompts, with all of their logits.
    """
    head = Head(adapter.outer, adapter.backbone)
    with alone(adapter):
        whole = adapter.model(**inputs, use_cache=False, return_dict=True).logits  # [N, S, V]
    beams = len(states) // len(whole)
    for own, hidden, mask in zip(whole, states[::beams], inputs["attention_mask"], strict=True):
        rows = mask.bool().to(hidden.device)
        for part, logits in head.chunks(hidden[rows]):
            wanted = own.to(logits.device)[rows.to(logits.device)][part].float()
            given = logits.float()
            ordinary = (wanted.abs() < MASKED) & (given.abs() < MASKED)  # models mask tokens by the lowest float
            largest = torch.where(ordinary, wanted, 0.0).abs().amax(dim=-1, keepdim=True).clamp(min=1e-6)
            apart = torch.where(ordinary, (given - wanted) / largest, (given != wanted).float()).abs().amax()
            if apart > ROUNDING.get(states.dtype, COARSE_ROW):
                raise CapabilityError(
                    f"A hook or a patched forward of {type(adapter.outer).__name__}, or around its head, changes the "
                    "logits of a row by where it stands, so prompt rows and answer rows would not have the same "
                    "meaning. Pass logits_processor= instead."
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
    device = device_of(model)
    devices = [device] if device.type == "cuda" else []
    with _RNG, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
