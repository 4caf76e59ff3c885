"""Run in the environment of vLLM: the numbers of ``vlmprobe.load(MODEL, engine="vllm")``, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "helpers"))

from engine_record import CANDIDATES, QUESTION, picture

import vlmprobe


def main(model: str, mode: str, out: str) -> None:
    """Ask, score and write."""
    options = {"dtype": "float32", "max_model_len": 512, "enforce_eager": True, "seed": 0}
    probe = vlmprobe.load(model, engine="vllm", logprobs_mode=mode, **options)
    keep = "logits" if mode == "raw_logits" else "stats"
    results = list(probe.generate_many([(QUESTION), QUESTION], max_new_tokens=4, keep=keep, progress=False))
    shown = probe.generate(QUESTION, image=picture(), max_new_tokens=4, keep=keep)
    scores = probe.score(QUESTION, CANDIDATES, image=picture(), keep=keep)
    for name, saved in (("shown", shown), ("plain", results[0]), ("again", results[1]), ("scores", scores)):
        saved.save(Path(out) / name)
    (Path(out) / "meta.json").write_text(json.dumps(shown.meta, default=str))


if __name__ == "__main__":
    main(*sys.argv[1:])
