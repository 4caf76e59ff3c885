"""A vLLM server on 127.0.0.1 in an environment of its own, ended by what started it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server_process import running

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


def python() -> Path:
    """The interpreter that has vLLM: that of ``.venv-engine``, or of the folder in ``VLMPROBE_ENGINE``."""
    folder = os.environ.get("VLMPROBE_ENGINE") or Path(__file__).parents[2] / ".venv-engine"
    return Path(folder) / "bin" / "python"


def missing(*further: str) -> str | None:
    """Why there is no vLLM here, or no ``further`` module beside it, or None."""
    if not python().exists():
        return f"no vLLM: {python().parents[1]} could not be made (make engine-test tries)"
    modules = ", ".join(("vllm", *further))
    found = subprocess.run([python(), "-c", f"import {modules}"], capture_output=True, text=True, env=environment())
    return None if found.returncode == 0 else f"no {modules} in {python().parents[1]}: {found.stderr.strip()[-200:]}"


def environment(**more: str) -> dict[str, str]:
    """The environment of a process of vLLM."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("VLLM_", "PYTHON", "VIRTUAL"))}
    return {**plain, **ENVIRONMENT, **more}


@contextmanager
def serving(model: Path, *flags: str, log: Path, **more: str) -> Iterator[str]:
    """The address of a server of ``model``, which ends with the block."""
    command = [python(), "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "tiny"]
    command += ["--dtype", "float32", "--max-model-len", "512", "--enforce-eager", "--seed", "0", *flags]
    with running(command, log=log, environment=environment(**more)) as url:
        yield url
