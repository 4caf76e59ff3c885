"""Valid values of generation options, for any engine."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from vlmprobe.errors import GenerationOptionError

__all__ = ["check_value", "listed"]

SWITCHES = ("do_sample", "use_cache", "renormalize_logits", "remove_invalid_values")
NUMBERS: dict[str, tuple[type, float, float]] = {  # option: type, minimum, maximum
    "max_new_tokens": (int, 1, 2**31),
    "min_new_tokens": (int, 0, 2**31),
    "num_beams": (int, 1, 2**15),
    "top_k": (int, 0, 2**31),
    "temperature": (float, 1e-9, 1e9),
    "top_p": (float, 1e-9, 1.0),
    "min_p": (float, 0.0, 1.0),
    "typical_p": (float, 1e-9, 1.0),
    "repetition_penalty": (float, 1e-9, 1e9),
    "no_repeat_ngram_size": (int, 0, 2**31),
    "max_length": (int, 1, 2**31),
    "min_length": (int, 0, 2**31),
    "max_time": (float, 1e-9, 1e9),
    "length_penalty": (float, -1e9, 1e9),
    "epsilon_cutoff": (float, 0.0, 1.0),
    "eta_cutoff": (float, 0.0, 1.0),
    "top_h": (float, 1e-9, 1.0),
    "encoder_repetition_penalty": (float, 1e-9, 1e9),
}
IDS = ("eos_token_id", "pad_token_id", "forced_bos_token_id", "forced_eos_token_id")  # one id, or a list of them


def check_value(name: str, value: Any) -> None:
    """Raise :class:`GenerationOptionError` for an invalid value of the option ``name``."""
    if name in SWITCHES and not isinstance(value, (bool, type(None))):
        raise GenerationOptionError(f"{name} must be True or False, not {value!r}.")
    if name in IDS and value is not None and not all(_is_id(each) for each in listed(value)):
        raise GenerationOptionError(f"{name} must be a token id, or a list of them, not {value!r}.")
    if name == "stop_strings" and value and not all(isinstance(each, str) and each for each in listed(value)):
        raise GenerationOptionError(f"stop_strings must be a string or a list of strings, none empty, not {value!r}.")
    if name not in NUMBERS or value is None:
        return
    kind, least, most = NUMBERS[name]
    fits = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if not fits or not least <= value <= most:
        span = f"at least {least:g}" if most >= 2**15 else f"from {least:g} to {most:g}"
        raise GenerationOptionError(
            f"{name} must be {'an integer' if kind is int else 'a number'}, {span}; got {value!r}."
        )


def listed(value: Any) -> list[Any]:
    """One value or several as a list."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _is_id(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0
