"""Quick checks: a few cheap ones that run when a checkpoint is loaded for the first time.

They see gross errors only, those that make every number wrong. ``vlmprobe check MODEL`` runs the full suite.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vlmprobe.errors import VlmprobeWarning

if TYPE_CHECKING:
    from vlmprobe.engines.local import LocalEngine

__all__ = ["SWITCH", "check_loaded", "switched_on"]

SWITCH = "VLMPROBE_CHECK"  # environment variable; 0 turns the checks off
OFF = ("0", "false", "no", "off")


def switched_on() -> bool:
    """Whether the environment leaves the quick checks on, as it does by default."""
    return os.environ.get(SWITCH, "").strip().lower() not in OFF


def check_loaded(engine: LocalEngine, meta: Mapping[str, Any], config: Mapping[str, Any], checkpoint: str) -> None:
    """Run the quick checks, unless this very checkpoint passed them before, and warn of what is off.

    What passed is remembered in the user's cache; what failed is not, so it is told at every load.

    Args:
        engine: around the model that was just loaded.
        meta: the probe's record: model, revision, adapter, dtype, device, versions.
        config: the checkpoint's ``config.json`` as read.
        checkpoint: local folder or hub id.
    """
    from vlmprobe.quick import memory

    known = memory.fingerprint(type(engine.adapter), meta, config, checkpoint)
    if memory.passed(str(meta["model"]), known):
        return
    from vlmprobe.quick.checks import run

    findings = run(engine)
    if not findings:
        memory.remember(str(meta["model"]), known)
        return
    listed = "\n".join(f"- {str(finding).rstrip('.')}." for finding in findings)
    warnings.warn(
        f"The numbers of {meta['model']} cannot be trusted yet: with the adapter {meta['adapter']!r}, "
        f"{len(findings)} of the quick checks at load found something off.\n{listed}\n"
        f"Run 'vlmprobe check {meta['model']}' for where and why; check=False or {SWITCH}=0 turns these checks off.",
        VlmprobeWarning,
        stacklevel=3,  # who called load
    )
