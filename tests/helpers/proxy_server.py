"""A LiteLLM proxy before a server, and ``transformers serve``: both run in the environment ``.venv-proxy``."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server_process import running

# A price list and usage reports would be sent for; the hub would be asked for a checkpoint.
ENVIRONMENT = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
CONFIGURATION = """model_list:
  - model_name: tiny
    litellm_params:
      model: hosted_vllm/tiny
      api_base: os.environ/BEHIND
      api_key: none
"""


def python() -> Path:
    """The interpreter that has LiteLLM: that of ``.venv-proxy``, or of the folder in ``VLMPROBE_PROXY``."""
    folder = os.environ.get("VLMPROBE_PROXY") or Path(__file__).parents[2] / ".venv-proxy"
    return Path(folder) / "bin" / "python"


def missing(module: str) -> str | None:
    """Why ``module`` cannot be run here, or None."""
    if not python().exists():
        return f"no {module}: {python().parents[1]} could not be made (make engine-test tries)"
    found = subprocess.run([python(), "-c", f"import {module}"], capture_output=True, text=True, env=environment())
    return None if found.returncode == 0 else f"no {module} in {python().parents[1]}: {found.stderr.strip()[-200:]}"


def environment(**more: str) -> dict[str, str]:
    """The environment of a process of either."""
    left_out = ("LITELLM_", "PYTHON", "VIRTUAL")
    return {key: value for key, value in os.environ.items() if not key.startswith(left_out)} | ENVIRONMENT | more


@contextmanager
def litellm(behind: str, *, log: Path) -> Iterator[tuple[str, str]]:
    """The address of a proxy before a vLLM that serves ``tiny``, and the key that it wants; it ends with the block."""
    configuration, key = log.with_suffix(".yaml"), f"sk-{secrets.token_hex(24)}"
    configuration.write_text(CONFIGURATION, encoding="utf-8")
    command = [python(), "-c", "from litellm import run_server; run_server()", "--config", configuration]
    more = {"BEHIND": f"{behind}/v1", "LITELLM_MASTER_KEY": key}
    flags = ("--num_workers", "1", "--telemetry", "False")
    with running([*command, *flags], log=log, environment=environment(**more), path="/health/liveliness") as url:
        yield url, key


@contextmanager
def transformers_serve(model: Path, *, log: Path) -> Iterator[str]:
    """The address of a ``transformers serve`` of ``model``, which ends with the block."""
    command = [python(), "-m", "transformers.cli.transformers", "serve", model, "--device", "cpu", "--dtype", "float32"]
    with running(command, log=log, environment=environment()) as url:
        yield url
