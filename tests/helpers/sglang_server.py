"""An SGLang server on the CPU, in an environment of its own, without its kernels (``sglang_real/stand_in``)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server_process import running

STAND_IN = Path(__file__).parents[1] / "engines" / "providers" / "sglang_real" / "stand_in"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "SGLANG_USE_CPU_ENGINE": "1",
    "SGLANG_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(STAND_IN),
}
# Attention and sampling by PyTorch, in float32: nothing that a kernel of SGLang would compute.
FLAGS = (
    *("--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
    *("--grammar-backend", "none", "--dtype", "float32", "--mem-fraction-static", "0.1", "--skip-server-warmup"),
    *("--random-seed", "0", "--log-level", "warning"),
)


def python() -> Path:
    """The interpreter that has SGLang: that of ``.venv-sglang``, or of the folder in ``VLMPROBE_SGLANG``."""
    folder = os.environ.get("VLMPROBE_SGLANG") or Path(__file__).parents[2] / ".venv-sglang"
    return Path(folder) / "bin" / "python"


def missing() -> str | None:
    """Why there is no SGLang here, or None."""
    if not python().exists():
        return f"no SGLang: {python().parents[1]} could not be made (make engine-test tries)"
    command = [python(), "-c", "import sglang.srt.entrypoints.http_server"]
    found = subprocess.run(command, capture_output=True, text=True, env=environment())
    return None if found.returncode == 0 else f"no SGLang in {python().parents[1]}: {found.stderr.strip()[-200:]}"


def environment(**more: str) -> dict[str, str]:
    """The environment of a process of SGLang."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("SGLANG_", "PYTHON", "VIRTUAL"))}
    return {**plain, **ENVIRONMENT, **more}


@contextmanager
def serving(model: Path, *flags: str, log: Path, **more: str) -> Iterator[str]:
    """The address of a server of ``model``, which ends with the block."""
    command = [python(), "-m", "sglang.launch_server", "--model-path", model, *FLAGS, *flags]
    # By a file: the socket by which its processes find each other would listen on every address.
    more["SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE"] = log.with_suffix(".rendezvous").absolute().as_uri()
    with running(command, log=log, environment=environment(**more)) as url:
        yield url
