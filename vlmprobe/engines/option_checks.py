"""Valid values of generation options, for any engine."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from vlmprobe.errors import GenerationOptionError

__all__ = ["check_value", "greedy_by_default", "listed", "with_temperature"]

SWITCHES = ("do_sample", "use_cache", "renormalize_logits", "remove_invalid_values")
NUMBERS: dict[str, tuple[type, float, float]] = {  # option: type, minimum, maximum
    "max_new_tokens": (int, 1, 2**31),
    "min_new_tokens": (int, 0, 2**31),
    "num_beams": (int, 1, 2**15),
    "top_k": (int, 0, 2**31),
    "temperature": (float, 1e-9, 1e9),  # above 0; see with_temperature
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


def with_temperature(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options in which ``do_sample`` agrees with ``temperature``: 0 is greedy decoding, above 0 samples.

    Args:
        options: of one call. Without a temperature they stay as they are, and so does a checkpoint's own default.

    Raises:
        GenerationOptionError: for an invalid temperature, or one that contradicts ``do_sample``.
    """
    found = dict(options)
    if (temperature := found.get("temperature")) is None:
        return found
    greedy = isinstance(temperature, Real) and not isinstance(temperature, bool) and temperature == 0
    if not greedy:
        check_value("temperature", temperature)
    check_value("do_sample", found.get("do_sample"))
    if found.get("do_sample") is greedy:
        raise GenerationOptionError(
            f"do_sample={greedy} contradicts temperature={temperature}: 0 is greedy decoding, and above 0 samples. "
            "Leave out one of the two."
        )
    if greedy:
        del found["temperature"]
    return found | {"do_sample": not greedy}


def greedy_by_default(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a call that decodes greedily unless they say otherwise, by ``do_sample`` or ``temperature``."""
    return dict(options) if {"do_sample", "temperature"} & set(options) else {"do_sample": False, **options}


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
