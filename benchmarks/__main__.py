"""Benchmark vlmprobe against common alternatives, and report which goals are met.

    make bench                                                  # all of it; about an hour on two cores
    python -m benchmarks --size 1b --dtype bfloat16 --only generate candidates_16
    python -m benchmarks --only none                            # no new measurements: print the table of stored results

Every measurement runs in a separate process and is written to the JSON file immediately, replacing the previous result,
so a run can be interrupted and parts of it repeated when the machine is less busy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import glance_peer
from benchmarks.cases import CASES
from benchmarks.goals import table
from benchmarks.growth import SWEEPS
from benchmarks.memory import EXACT
from benchmarks.page import write
from benchmarks.runs import MEASURED
from benchmarks.startup import startup
from benchmarks.timing import load
from vlmprobe._version import DISTRIBUTION

RESULTS = Path(__file__).with_name("results.json")
TOKENS = (32, 2080)  # answer lengths whose peaks give the memory per token
AS_IS = ("memory_columns",)  # with the allocator's own settings, under which freed memory may stay unusable
MEMORY: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "memory_prompt": ("prompt", dict.fromkeys(("prefill", "vlmprobe", "forward + log_softmax"), (2000,))),
    "memory_columns": ("columns", dict.fromkeys(("prefill", "vlmprobe"), (2711,))),
    "memory_answer": (
        "generate",
        dict.fromkeys(("model.generate", "vlmprobe"), TOKENS) | {"generate(output_logits=True)": (32, 160)},
    ),
    "memory_candidates": ("candidates", {"prefill": (16,), "vlmprobe": (16, 1000), "minicons": (16,)}),
    "memory_asked": ("asked", {"score_many": (100, 1000)}),
}
SIZES = {"memory_columns": ("tiny",), "memory_asked": ("20m",), "agreement": ("1b", "small", "tiny", "20m")}
NAMES = (*CASES, *MEMORY, "agreement", "startup", *MEASURED, *SWEEPS)


def measure(name: str, wanted: dict[str, Any], rounds: int | None, skip: list[str]) -> dict[str, Any]:
    """One measurement of a model."""
    if name in CASES:
        return work({**wanted, "kind": "time", "name": name, "rounds": rounds, "skip": skip})
    if name in MEASURED:
        return work({**wanted, "kind": "runs", "name": name}, EXACT if name == "run_memory" else None)
    if name in SWEEPS:
        return work({**wanted, "kind": "sweep", "name": name})
    if name == "agreement":
        return work({**wanted, "kind": "agreement"})
    task, variants = MEMORY[name]
    parts = {
        variant: work(
            {**wanted, "kind": "memory", "name": task, "variant": variant, "sizes": sizes},
            None if name in AS_IS else EXACT,
        )
        for variant, sizes in variants.items()
        if variant not in skip
    }
    loads = [each for part in parts.values() for each in part["load"]]
    return {"peak": {variant: part["peak"] for variant, part in parts.items()}, "load": [min(loads), max(loads)]}


def work(wanted: dict[str, Any], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run ``benchmarks.worker`` in a separate process."""
    # Waiting threads sleep: spinning, they would take cores from the others on a shared machine.
    given = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(wanted["threads"]), **os.environ}
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.worker", json.dumps(wanted)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        env=given | (environment or {}),
    )
    return json.loads(ran.stdout.splitlines()[-1])


def machine(device: str) -> dict[str, Any]:
    """Hardware of the measurement."""
    import torch

    processor = platform.processor()
    if (info := Path("/proc/cpuinfo")).exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        processor = next((value.strip() for key, value in lines.items() if key.strip() == "model name"), processor)
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if device != "cpu" else "cpu",
    }


def libraries() -> dict[str, str]:
    """The versions that a measurement was made with."""
    others = {name: version(name) for name in ("torch", "transformers", "minicons")}
    if not glance_peer.missing():
        others["glance-vlm"] = glance_peer.installed()
    return {"vlmprobe": version(DISTRIBUTION), **others, "python": platform.python_version()}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--size",
        nargs="+",
        default=["1b", "tiny", "20m", "embedded"],
        choices=["1b", "small", "tiny", "20m", "embedded"],
    )
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    parser.add_argument(
        "--only", nargs="+", choices=(*NAMES, "none"), default=list(NAMES), metavar="NAME", help=", ".join(NAMES)
    )
    parser.add_argument("--rounds", type=int, help="of every case that is timed, in place of its own number")
    parser.add_argument(
        "--skip", nargs="+", default=[], metavar="VARIANT", help="peers that need not run again, or at all"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where results are kept")
    parser.add_argument("--page", action="store_true", help="also write docs/reference/performance.md and its plots")
    return parser.parse_args()


def planned(given: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """Name, size and dtype of every measurement."""
    only = [name for name in given.only if name != "none"]
    if "startup" in only:
        yield "startup", "", ""
    for name in only:
        if name in SWEEPS:
            yield name, "small", "float32"
        if name in MEASURED:  # of the embedded model, or of none
            yield name, "", ""
    for size in given.size:
        for dtype in given.dtype if size in ("1b", "small") else ["float32"]:
            for name in only:
                if size in sizes_of(name):
                    yield name, size, dtype


def sizes_of(name: str) -> tuple[str, ...]:
    """The models that a measurement is made on."""
    if name in CASES:
        return CASES[name].sizes
    return SIZES.get(name, ("1b", "small", "tiny") if name in MEMORY else ())


def main() -> None:
    """Measure, store, and report."""
    given = arguments()
    held = json.loads(given.json.read_text()) if given.json.exists() else {"measured": {}}
    for name, size, dtype in planned(given):
        key = "/".join(filter(None, (name, size, dtype)))
        print(f"{key} ...", file=sys.stderr, flush=True)
        started, before = time.time(), load()
        wanted = {"size": size, "dtype": dtype, "device": given.device, "threads": given.threads}
        found = (
            {"seconds": startup(), "load": [before, load()]}
            if name == "startup"
            else measure(name, wanted, given.rounds, given.skip)
        )
        held["measured"][key] = {
            **found,
            "machine": machine(given.device),
            "versions": libraries(),
            "threads": given.threads,
            "when": time.strftime("%Y-%m-%d %H:%M", time.gmtime(started)),
        }
        given.json.write_text(json.dumps(held, indent=1) + "\n")
    print(table(held))
    if given.page:
        write(held)


if __name__ == "__main__":
    main()
