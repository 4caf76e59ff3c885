"""Peak memory of loading a sharded checkpoint in original format, relative to the size of its weights.

    python benchmarks/loading.py                     # the sizes of InternVL2-2B: 4.4 GB of random bfloat16 weights
    python benchmarks/loading.py --dtype float32 --shards 8

Loading runs in a separate process. Only anonymous memory (RssAnon) is counted: pages of mapped files are page cache,
which the system reclaims under memory pressure.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

TOKENIZER = Path(__file__).parent.parent / "tests" / "data" / "golden" / "internvl2-internlm2"
LANGUAGE = {
    "architectures": ["InternLM2ForCausalLM"],
    "model_type": "internlm2",
    "vocab_size": 92553,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "bias": False,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000,
    "max_position_embeddings": 32768,
}
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 448,
    "norm_type": "layer_norm",
    "qk_normalization": False,
    "qkv_bias": True,
}
CONFIG = {
    "model_type": "internvl_chat",
    "template": "internlm2-chat",
    "ps_version": "v2",
    "force_image_size": 448,
    "dynamic_image_size": True,
    "use_thumbnail": True,
    "max_dynamic_patch": 12,
    "llm_config": LANGUAGE,
    "vision_config": VISION,
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of an original checkpoint with this configuration."""
    width, inner, heads, groups = (
        LANGUAGE[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    )
    packed = (heads + 2 * groups) * (width // heads)
    seen, hidden = VISION["hidden_size"], VISION["intermediate_size"]
    found: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, seen),
        "vision_model.embeddings.patch_embedding.weight": (seen, 3, 14, 14),
        "vision_model.embeddings.patch_embedding.bias": (seen,),
        "vision_model.embeddings.position_embedding": (1, 1025, seen),
        "mlp1.0.weight": (4 * seen,),
        "mlp1.0.bias": (4 * seen,),
        "mlp1.1.weight": (width, 4 * seen),
        "mlp1.1.bias": (width,),
        "mlp1.3.weight": (width, width),
        "mlp1.3.bias": (width,),
        "language_model.model.tok_embeddings.weight": (LANGUAGE["vocab_size"], width),
        "language_model.model.norm.weight": (width,),
        "language_model.output.weight": (LANGUAGE["vocab_size"], width),
    }
    for layer in range(VISION["num_hidden_layers"]):
        name = f"vision_model.encoder.layers.{layer}."
        found |= {name + each: (seen,) for each in ("ls1", "ls2")}
        found |= {f"{name}{norm}.{part}": (seen,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
        for part, rows, columns in (
            ("attn.qkv", 3 * seen, seen),
            ("attn.proj", seen, seen),
            ("mlp.fc1", hidden, seen),
            ("mlp.fc2", seen, hidden),
        ):
            found |= {f"{name}{part}.weight": (rows, columns), f"{name}{part}.bias": (rows,)}
    for layer in range(LANGUAGE["num_hidden_layers"]):
        name = f"language_model.model.layers.{layer}."
        found |= {
            f"{name}attention.wqkv.weight": (packed, width),
            f"{name}attention.wo.weight": (width, width),
            f"{name}feed_forward.w1.weight": (inner, width),
            f"{name}feed_forward.w2.weight": (width, inner),
            f"{name}feed_forward.w3.weight": (inner, width),
            f"{name}attention_norm.weight": (width,),
            f"{name}ffn_norm.weight": (width,),
        }
    return found


def write(folder: Path, shards: int) -> int:
    """Write the checkpoint with random weights; returns the size of the weights in bytes."""
    import torch
    from safetensors.torch import save_file

    for name in ("tokenizer.model", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(TOKENIZER / name, folder / name)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    wanted = list(shapes().items())
    weight_map: dict[str, str] = {}
    total = 0
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        held = {key: torch.randn(shape).mul_(0.02).bfloat16() for key, shape in wanted[shard::shards]}
        save_file(held, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(held, name)
        total += sum(each.numel() * each.element_size() for each in held.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return total


def measure(folder: Path, dtype: str) -> dict[str, float]:
    """Load the checkpoint in this process and track its memory."""
    import vlmprobe

    def own() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    import torch  # noqa: F401 - imported first: memory of the libraries is not counted
    import transformers  # noqa: F401

    before, peak, done = own(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, own())
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    probe = vlmprobe.load(folder, device="cpu", dtype=dtype)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    model = probe.engine.adapter.model
    weights = sum(each.numel() * each.element_size() for each in model.state_dict().values())
    return {"weights": weights, "peak": peak - before, "after": own() - before, "seconds": seconds}


def main() -> None:
    """Write, load and report."""
    parser = argparse.ArgumentParser(description="Peak memory of loading a sharded original checkpoint")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.dtype)))
        return
    with tempfile.TemporaryDirectory() as folder:
        stored = write(Path(folder), arguments.shards)
        command = [sys.executable, __file__, "--measure", folder, "--dtype", arguments.dtype]
        told = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        )
    print(f"stored {stored / 1e9:.2f} GB in {arguments.shards} shards; in memory {told['weights'] / 1e9:.2f} GB")
    print(f"peak {told['peak'] / 1e9:.2f} GB = {told['peak'] / told['weights']:.2f} copies, {told['seconds']:.1f} s")


if __name__ == "__main__":
    main()
