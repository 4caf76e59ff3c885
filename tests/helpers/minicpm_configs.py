"""The fields of the released MiniCPM-V and MiniCPM-o configurations that decide sizes, and how large the models are.

The sizes of the towers and language models are those of the models named in each model card. 2.0 and 1.0 are not here:
they take the size of their tower from the shapes of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["RELEASES", "Release"]

TOWER = {
    "hidden_size": 1152,
    "image_size": 980,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
}


@dataclass(frozen=True)
class Release:
    """One release: fields of its config.json, and the size in billions of parameters that its model card states.

    Attributes:
        billions: of the whole model; for MiniCPM-o without the audio encoder and the speech generator.
        language: of its language model alone.
    """

    name: str
    config: dict[str, Any]
    billions: str
    language: str

    def __str__(self) -> str:
        return self.name


def _config(version: Any, size: str, vocabulary: int, **fields: Any) -> dict[str, Any]:
    """``size`` is hidden size / layers / heads / key-value heads / intermediate size."""
    hidden, layers, heads, groups, intermediate = (int(each) for each in size.split("/"))
    return {
        "model_type": "minicpmv",
        "version": version,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "intermediate_size": intermediate,
        "query_num": 64,
        "drop_vision_last_layer": False,
        "vision_config": TOWER,
        **fields,
    }


QWEN2 = "3584/28/28/4/18944"
QWEN3 = "4096/36/32/8/12288"
OMNI = {"model_type": "minicpmo", "audio_config": {}, "tts_config": {}}

RELEASES = (
    Release("MiniCPM-Llama3-V 2.5", _config("2.5", "4096/32/32/8/14336", 128256, query_num=96), "8.5", "8.0"),
    Release("MiniCPM-V 2.6", _config(2.6, QWEN2, 151666), "8.1", "7.6"),
    Release("MiniCPM-V 4.0", _config("4.0", "2560/32/32/2/10240", 73448, head_dim=128), "4.1", "3.6"),
    Release("MiniCPM-V 4.5", _config(4.5, QWEN3, 151748, head_dim=128), "8.7", "8.2"),
    # The card of o 2.6 says 8B, of which 0.3B are Whisper and 0.2B ChatTTS; it is V 2.6 with 34 more tokens.
    Release("MiniCPM-o 2.6", _config("2.6", QWEN2, 151700, **OMNI), "8.1", "7.6"),
    # The card of o 4.5 says 9B, Qwen3-8B and SigLIP 2 among them.
    Release("MiniCPM-o 4.5", _config("4.5", QWEN3, 151748, head_dim=128, **OMNI), "8.7", "8.2"),
)
