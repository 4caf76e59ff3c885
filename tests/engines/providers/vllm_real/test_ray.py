"""vLLM in an actor on Ray: the records of a run are those of the same model run here. ``make engine-test`` only."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
from engine_models import engine_model
from engine_record import QUESTION, picture
from vllm_server import environment, missing, python

import vlmprobe

pytestmark = pytest.mark.engine
HOW = {"max_new_tokens": 4}
TOLERANCE = 2e-5  # nats
ENGINE = {"max_model_len": 512, "enforce_eager": "true", "seed": 0}


def test_a_run_in_an_actor_gives_the_records_of_one_here(tmp_path):
    if reason := missing("ray"):
        pytest.skip(reason)
    folder = engine_model("qwen2_vl", tmp_path / "qwen2_vl")
    picture().save(tmp_path / "a.png")
    rows = [{"id": n, "question": f"{QUESTION} {n}", "image": "a.png", "candidates": ["yes", "no"]} for n in range(4)]
    rows.append({"id": 4, "question": QUESTION, "candidates": ["yes", "no"]})
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    out = tmp_path / "out"
    command = [python(), "-m", "vlmprobe", "run", folder, data, "--out", out, "--ray", "1", "--dtype", "float32"]
    command += ["--engine", "vllm", "--max-new-tokens", "4"]
    for name, value in ENGINE.items():
        command += ["--engine-option", f"{name}={value}"]
    # Two CPUs: one for the actor, one for reading.
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "5 rows: 5 asked, 0 of them failed" in done.stderr
    assert json.loads((out / "run.json").read_text())["engine"] == "vllm"
    local = vlmprobe.load(folder, check=False, device="cpu", dtype="float32")
    for record in vlmprobe.open_run(out).table().to_pylist():
        row = rows[record["id"]]
        image = picture() if "image" in row else None
        here = local.generate(row["question"], image, do_sample=False, **HOW)
        assert record["text"] == here.text
        assert record["token_id"] == here.output.ids.tolist()
        np.testing.assert_allclose(record["token_logprob"], here.output.logprobs, atol=TOLERANCE)
        scores = local.score(row["question"], row["candidates"], image)
        np.testing.assert_allclose(record["candidate_logprobs"], scores.logprobs, atol=2 * TOLERANCE)
