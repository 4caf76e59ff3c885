"""Analyses on top of a probe: one module per topic, imported on first use.

>>> from vlmprobe.analysis import calibration, contrast, uncertainty
>>> uncertainty.mean_entropy(result)
>>> contrast(probe, "Describe the picture.", image)

``dir(vlmprobe.analysis)`` lists the modules, and the functions ``boxes``, ``contrast``,
``field_alternatives``, ``fields`` and ``lens``, the entry points of theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors, which then show their signatures
    from vlmprobe.analysis.box_confidence import boxes as boxes
    from vlmprobe.analysis.image_contrast import contrast as contrast
    from vlmprobe.analysis.json_alternatives import field_alternatives as field_alternatives
    from vlmprobe.analysis.json_fields import fields as fields
    from vlmprobe.analysis.logit_lens import lens as lens

FUNCTIONS = {  # name: module
    "boxes": "box_confidence",
    "contrast": "image_contrast",
    "field_alternatives": "json_alternatives",
    "fields": "json_fields",
    "lens": "logit_lens",
}
MOVED = {  # former module: where it is now; until 1.0
    "alignment": "vlmprobe.analysis.token_alignment",
    "branching": "vlmprobe.probe.branch",
    "outcomes": "vlmprobe.analysis.confidences",
    "polygraph": "vlmprobe.analysis.lm_polygraph",
    "rank": "vlmprobe.probe.rank",
    "sampling": "vlmprobe.probe.sample",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module
    from importlib.util import find_spec

    if name in FUNCTIONS:
        return getattr(import_module(f"{__name__}.{FUNCTIONS[name]}"), name)
    if name in MOVED:
        return import_module(MOVED[name])
    if name.startswith("_") or find_spec(f"{__name__}.{name}") is None:
        from vlmprobe.errors import near

        raise AttributeError(f"vlmprobe.analysis has no module {name!r}.{near(name, __dir__())}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    from pkgutil import iter_modules

    return sorted([*FUNCTIONS, *MOVED, *(module.name for module in iter_modules(__path__))])
