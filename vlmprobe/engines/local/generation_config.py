"""Validates generation options and builds a ``GenerationConfig`` of their own, before anything runs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import GenerationConfig

from vlmprobe.engines.base import ONE_STEP
from vlmprobe.engines.option_checks import check_value, with_temperature
from vlmprobe.errors import GenerationOptionError, near

__all__ = ["counts_padding", "end_ids", "generation_config", "plain", "prefill_config"]

DEFAULT_NEW_TOKENS = 128
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
BEAMS = ("early_stopping", "length_penalty")
LENGTHS = (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length"))  # without and with the prompt
MODES = ("greedy_search", "sample", "beam_search", "beam_sample")
SPECULATIVE = "speculative steps draw several tokens at once"
ENCODED = "a probe encodes question and image= itself"
OURS = {  # options of transformers, and arguments of its generate, that a probe replaces or does not support
    "output_logits": 'the full raw rows come with keep="logits"',
    "output_scores": "processed log-probabilities are in the column scores",
    "output_hidden_states": 'the states that enter the head come with keep="hidden"',
    "output_attentions": "a probe does not read attentions",
    "return_dict_in_generate": "a probe always returns a Result",
    "num_return_sequences": "one request has one answer: call again with another seed",
    "guidance_scale": "it runs the model a second time within a step, whose numbers would be mixed in",
    **dict.fromkeys(("negative_prompt_ids", "negative_prompt_attention_mask"), "they are for guidance_scale"),
    **dict.fromkeys(("assistant_model", "assistant_tokenizer", "is_assistant", "use_mtp"), SPECULATIVE),
    **dict.fromkeys(("prompt_lookup_num_tokens", "assistant_early_exit"), SPECULATIVE),
    "penalty_alpha": "contrastive search runs the model several times for each token",
    "dola_layers": "DoLa draws from the differences of two layers, not from the model's own distribution",
    "low_memory": "transformers no longer has it; it never changed an answer",
    **dict.fromkeys(("num_beam_groups", "diversity_penalty"), "transformers no longer has group_beam_search"),
    **dict.fromkeys(("constraints", "force_words_ids"), "transformers no longer has constrained_beam_search"),
    "generation_config": "pass its options themselves, such as max_new_tokens=64",
    "stopping_criteria": "use stop_strings, eos_token_id or max_time, or leave the loop over probe.stream",
    "streamer": "use probe.stream",
    "tokenizer": "the model's own is used",
    "synced_gpus": "a probe runs the model in one process",
    "use_model_defaults": "an option that is None goes without the checkpoint's default",
    **dict.fromkeys(("inputs", "input_ids", "attention_mask", "inputs_embeds", "pixel_values"), ENCODED),
    "past_key_values": "a probe keeps its own cache: use probe.session for questions about one image",
    "prefill_chunk_size": "where a prompt is attended to in both directions, chunked prefill gives other numbers",
    "token_healing": "it rewrites the prompt",
}
# In a checkpoint's own config these change no answer, only what generate returns or needs, so they are ignored.
PUT_ASIDE = (
    *("output_logits", "output_scores", "output_hidden_states", "output_attentions", "num_return_sequences"),
    "low_memory",
)
COUNT_PADDING = {  # options that count padding as text, and their neutral values
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
}
NEUTRAL = {  # values without an effect, besides None and False
    "num_return_sequences": 1,
    "guidance_scale": 1,
    "num_beam_groups": 1,
    "penalty_alpha": 0,
    "diversity_penalty": 0,
}


def generation_config(
    base: GenerationConfig, options: Mapping[str, Any], end_ids: frozenset[int] = frozenset()
) -> GenerationConfig:
    """A copy of the model's generation config with the options of one call applied.

    Args:
        base: the model's own config, which is not changed.
        options: arguments of ``GenerationConfig``; a temperature of 0 is greedy decoding, and a greater one samples.
        end_ids: the ids that end an answer, unless the options set ``eos_token_id``.

    Raises:
        GenerationOptionError: for an option that does not exist, has an invalid value, or that a probe
            cannot honour without mixing up its numbers.
    """
    options = with_temperature(options)
    known = set(GenerationConfig().to_dict()) | {"max_new_tokens", "stop_strings"}
    for name, value in options.items():
        if name in OURS and not _is_neutral(name, value):
            raise GenerationOptionError(f"A probe does not accept {name}: {OURS[name]}.")
        if name not in known and name not in OURS:
            raise GenerationOptionError(f"There is no generation option {name!r}.{near(name, known)}")
        check_value(name, value)
    config = copy.deepcopy(base)
    for name, reason in OURS.items():
        value = getattr(config, name, None)
        if name != "return_dict_in_generate" and not _is_neutral(name, value):
            if name not in options and name not in PUT_ASIDE:
                raise GenerationOptionError(
                    f"The checkpoint's generation config sets {name}={value!r}, which a probe does not support: "
                    f"{reason}. Pass {name}=None to go without it, or set it to None in the model's generation_config "
                    "for calls that take no options."
                )
            setattr(config, name, None)
    given = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in options.items()
        if name not in OURS
    }
    try:
        config.update(**given)  # validates
    except (ValueError, TypeError, AttributeError) as error:  # of a checkpoint's options too
        raise GenerationOptionError(f"invalid generation options: {error}") from error
    # The checkpoint's defaults that have no effect in this call are cleared: transformers would warn of them.
    for unused, names in ((config.do_sample is not True, SAMPLING), ((config.num_beams or 1) == 1, BEAMS)):
        for name in names if unused else ():
            if name not in given and hasattr(config, name):
                setattr(config, name, None)
    for new, whole in LENGTHS:  # of both, transformers uses the first: the call takes precedence over defaults
        if given.get(whole) is not None and given.get(new) is None:
            setattr(config, new, None)
        elif getattr(config, new) is not None and given.get(whole) is None:
            setattr(config, whole, None)
    if config.max_new_tokens is None and given.get("max_length") is None:
        config.max_new_tokens = DEFAULT_NEW_TOKENS
        config.max_length = None
    if end_ids and "eos_token_id" not in options:
        config.eos_token_id = sorted(end_ids)
    if config.pad_token_id is None and config.eos_token_id:
        ends = config.eos_token_id
        config.pad_token_id = ends if isinstance(ends, int) else ends[0]
    if (mode := config.get_generation_mode().value) not in MODES:
        raise GenerationOptionError(f"These options select {mode}; a probe supports {', '.join(MODES)}.")
    config.return_dict_in_generate = True  # beams: which beam each token came from
    return config


def end_ids(config: GenerationConfig) -> list[int]:
    """The ids that end an answer."""
    ends = config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def plain(config: GenerationConfig) -> dict[str, Any]:
    """The JSON-ready part of a generation config that differs from the default."""
    kinds = (str, int, float, bool, list, type(None))
    return {key: value for key, value in config.to_diff_dict().items() if isinstance(value, kinds)}


def prefill_config(base: GenerationConfig) -> GenerationConfig:
    """The config of a run that only reads: one greedy step, and a cache that can be continued.

    How a cache is stored (static, sliding, offloaded) has no say in the numbers of a prefill; what is stored in
    lower precision (a quantised cache) would only be read by later steps, which are not run.
    """
    config = generation_config(base, ONE_STEP)
    config.cache_implementation = config.cache_config = None
    config.use_cache = True
    return config


def _is_neutral(name: str, value: Any) -> bool:
    return value is None or value is False or (name in NEUTRAL and bool(value == NEUTRAL[name]))


def counts_padding(config: GenerationConfig) -> bool:
    """Whether an option counts padding as text, so that a batch of prompts of several lengths changes answers."""
    return config.max_new_tokens is None or any(
        getattr(config, name, neutral) not in (None, neutral) for name, neutral in COUNT_PADDING.items()
    )
