"""Generation options for a server: the names and values of transformers' ``GenerationConfig``, greedy by default."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from vlmprobe.engines.option_checks import check_value, listed, with_temperature
from vlmprobe.errors import CapabilityError, GenerationOptionError, near

__all__ = ["BASIC", "SAMPLING", "Decoding"]

BASIC = frozenset({"max_new_tokens", "do_sample", "temperature", "top_p"})
SAMPLING = frozenset({"temperature", "top_p", "top_k", "min_p"})
# Options of transformers that no server is sent, at the value that changes nothing: they are left out.
NEUTRAL: dict[str, float | bool] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "diversity_penalty": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "guidance_scale": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "min_length": 0,
    "use_cache": True,
    "renormalize_logits": False,
    "remove_invalid_values": False,
}
DEFAULT_NEW_TOKENS = 128


@dataclass(frozen=True)
class Decoding:
    """How the answer is drawn. Every value is sent, so that no server default applies."""

    max_new_tokens: int = DEFAULT_NEW_TOKENS
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0
    stop_strings: tuple[str, ...] = ()
    eos_token_id: tuple[int, ...] = ()  # further ids that end the answer

    @classmethod
    def read(cls, options: Mapping[str, Any], takes: Iterable[str], engine: str) -> Decoding:
        """The options of one call, for an engine that takes those in ``takes``; a temperature above 0 samples.

        Raises:
            GenerationOptionError: for an option that does not exist or has an invalid value.
            CapabilityError: for one that the engine does not take.
        """
        names = [field.name for field in fields(cls)]
        taken: dict[str, Any] = {}
        for name, value in with_temperature(options).items():
            if value is None:
                continue
            check_value(name, value)
            if name in NEUTRAL and value == NEUTRAL[name]:
                continue
            if name not in names:
                raise _unknown(name, names, engine)
            if name not in takes and value != getattr(cls, name, None):
                raise CapabilityError(
                    f"{engine} does not take {name}; it takes {', '.join(sorted(takes))}. vllm takes all that a "
                    "served engine can."
                )
            plain = value.item() if isinstance(value, np.generic) else value
            taken[name] = tuple(listed(plain)) if name in ("stop_strings", "eos_token_id") else plain
        return cls(**taken)

    @property
    def processing(self) -> str:
        """What is done to the distribution before a token is drawn: ``"none"``, ``"tempered"`` or ``"filtered"``."""
        filtered = self.do_sample and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)
        tempered = (self.do_sample and self.temperature != 1) or self.repetition_penalty != 1
        return "filtered" if filtered else "tempered" if tempered or self.min_new_tokens else "none"

    def told(self) -> dict[str, Any]:
        """The options that were set, for ``meta``."""
        default = Decoding()
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        keep = ("max_new_tokens", "do_sample")
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in told.items()
            if name in keep or value != getattr(default, name)
        }


def _unknown(name: str, names: list[str], engine: str) -> GenerationOptionError:
    return GenerationOptionError(
        f"Served engines ({engine}) have no generation option {name!r}.{near(name, names)} "
        f"They have {', '.join(names)}; a model opened with vlmprobe.load takes all of transformers'."
    )
