"""Tiny MiniCPM-o checkpoints in the original format, made from the reference cases of the MiniCPM-V they extend.

MiniCPM-o 2.6 and 4.5 are MiniCPM-V 2.6 and 4.5 with an audio encoder (Whisper), its projector and a speech generator.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from common import GOLDEN
from safetensors.torch import load_file, save_file

__all__ = ["AUDIO_AND_SPEECH", "omni"]

SHARD = "model-audio-and-speech.safetensors"
AUDIO_AND_SPEECH = {  # names in the released checkpoints; the shapes do not matter
    "apm.conv1.weight": (8, 4, 3),
    "apm.layers.0.self_attn.q_proj.weight": (8, 8),
    "audio_projection_layer.linear1.weight": (16, 8),
    "audio_projection_layer.linear2.bias": (16,),
    "tts.emb_text.weight": (12, 8),
    "tts.model.layers.0.mlp.up_proj.weight": (16, 8),
}


def omni(folder: Path, version: str, /, *, more: dict[str, tuple[int, ...]] | None = None, **fields: Any) -> Path:
    """Copy the reference case of MiniCPM-V ``version`` to ``folder`` as MiniCPM-o of that version.

    Args:
        folder: to create.
        version: "2.6" or "4.5".
        more: further weights to add, by name.
        **fields: to change in config.json.
    """
    shutil.copytree(GOLDEN / f"minicpmv-{version}", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "architectures": ["MiniCPMO"],
        "model_type": "minicpmo",
        "version": version,
        "init_vision": True,
        "init_audio": True,
        "init_tts": True,
        "audio_config": {"model_type": "whisper", "vocab_size": 51865},
        "tts_config": {"model_type": "conditional_chattts"},
    }
    (folder / "config.json").write_text(json.dumps(config | fields))
    added = {name: torch.randn(shape) for name, shape in (AUDIO_AND_SPEECH | (more or {})).items()}
    save_file(added, folder / SHARD)
    places = dict.fromkeys(added, SHARD)
    for file in folder.glob("model*.safetensors"):
        if file.name == "model.safetensors":  # which would be taken for the only file
            file = file.rename(folder / "model-00001.safetensors")
        places |= dict.fromkeys(load_file(file), file.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder
