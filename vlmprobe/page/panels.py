"""Panels: further questions about one answer. Each is one class here and one module of ``static/panels``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vlmprobe.display.html import image_parts
from vlmprobe.engines.base import ReadsLayers, ScoresIds
from vlmprobe.errors import GenerationOptionError, MessageError, VlmprobeError
from vlmprobe.results.document import finite

if TYPE_CHECKING:
    from vlmprobe.page.asked import Asked
    from vlmprobe.page.model_queue import Job
    from vlmprobe.probe import Probe

__all__ = ["PANELS", "Panel", "run_panel"]

GRIDS = range(2, 17)  # cells along each side of an image
SAMPLES = range(2, 33)


class Panel(Protocol):
    """One analysis of an answer."""

    needs: Any  # None, or the protocol of the ability that an engine must have
    about_answer: bool  # whether it needs the ids of the answer

    def run(self, probe: Probe, asked: Asked, messages: Any, job: Job) -> dict[str, Any]:
        """What the panel shows, ready for JSON."""

    def python(self, asked: Asked, about: str, options: str) -> list[str]:
        """Lines of Python that compute the same; ``about`` are the arguments of the question."""


class Regions:
    """Which region of the image each token came from: image contrast, one cell masked at a time."""

    needs: Any = ScoresIds
    about_answer: bool = True

    def run(self, probe: Probe, asked: Asked, messages: Any, job: Job) -> dict[str, Any]:
        """Nats that each token loses without each cell, [rows, columns, T], and the worth of the whole image, [T]."""
        from vlmprobe.analysis.image_contrast import contrast

        which = _whole(asked, "image", 0, range(len(asked.image_keys)))
        grid = _whole(asked, "grid", 8, GRIDS)
        found = contrast(probe, messages, answer=list(asked.answer), regions=grid, which=which)
        assert found.regions is not None
        assert found.image is not None
        return {
            "tokens": found.answer.tokens,
            "regions": found.regions.round(4),
            "worth": found.pmi.round(4),
            "unsupported": found.unsupported(),
            "image": image_parts(found.image)["uri"],
        }

    def python(self, asked: Asked, about: str, options: str) -> list[str]:
        """The contrast, and the map of the whole answer."""
        grid, which = asked.settings.get("grid", 8), asked.settings.get("image", 0)
        more = f", which={which}" if len(asked.image_keys) > 1 else ""
        return [
            "from vlmprobe.analysis import contrast",
            "",
            f"found = contrast(probe, {about}, answer={list(asked.answer)}, regions={grid}{more})",
            "found.plot_regions()",
        ]


class Layers:
    """What each decoder layer would have said: the logit lens."""

    needs: Any = ReadsLayers
    about_answer: bool = True

    def run(self, probe: Probe, asked: Asked, messages: Any, job: Job) -> dict[str, Any]:
        """Probability of each token, and the likeliest one, at each layer: [L, T]."""
        from vlmprobe.analysis.logit_lens import lens

        found = lens(probe, messages, answer=list(asked.answer), alternatives=1)
        return {
            "tokens": found.tokens,
            "layers": found.layers,
            "probabilities": np.exp(found.logprobs.astype(np.float64)).round(5),
            "says": [[each[0] for each in layer] for layer in found.top_tokens],
            "leads": found.leads,
        }

    def python(self, asked: Asked, about: str, options: str) -> list[str]:
        """The lens, drawn."""
        called = f"found = lens(probe, {about}, answer={list(asked.answer)})"
        return ["from vlmprobe.analysis import lens", "", called, "found.plot()"]


class Samples:
    """How far sampled answers agree."""

    needs: Any = None
    about_answer: bool = False

    def run(self, probe: Probe, asked: Asked, messages: Any, job: Job) -> dict[str, Any]:
        """The different answers with how many said so, and their agreement."""
        from vlmprobe.probe.sample import sample

        n = _whole(asked, "n", 8, SAMPLES)
        done = 0

        def generate(*question: Any, **options: Any) -> Any:
            nonlocal done
            if job.stopped:
                raise Stopped("stopped before all answers were sampled")
            job.tell("progress", {"done": done, "of": n})
            result = probe.generate(*question, **options)
            done += 1
            return result

        limit = {name: value for name, value in asked.options.items() if name == "max_new_tokens"}
        found = sample(generate, messages, n=n, **limit)
        groups = found.groups()
        texts = [found.texts[int(np.flatnonzero(groups == group)[0])] for group in range(groups.max() + 1)]
        counts = np.bincount(groups)
        order = np.argsort(-counts, kind="stable")
        return {
            "n": n,
            "answers": [{"text": texts[place], "count": int(counts[place])} for place in order],
            "agreement": found.agreement(),
            "entropy": found.predictive_entropy(),
        }

    def python(self, asked: Asked, about: str, options: str) -> list[str]:
        """The samples, and their agreement."""
        limit = asked.options.get("max_new_tokens")
        more = "" if limit is None else f", max_new_tokens={limit}"
        n = asked.settings.get("n", 8)
        return [f"found = probe.sample({about}, n={n}{more})", "print(found.agreement(), found.texts)"]


class Stopped(VlmprobeError):
    """Nobody waits for the result any more."""


PANELS: dict[str, Panel] = {"regions": Regions(), "layers": Layers(), "samples": Samples()}


def run_panel(probe: Probe, asked: Asked, messages: Any, job: Job) -> dict[str, Any]:
    """What a panel shows, ready for JSON.

    Raises:
        MessageError: for a panel that needs an answer, and none is given.
        CapabilityError: if the engine lacks what the panel needs.
    """
    panel = PANELS[asked.panel]
    if panel.about_answer and not asked.answer:
        raise MessageError("this panel is about an answer: give its token ids")
    shown: dict[str, Any] = finite(panel.run(probe, asked, messages, job))
    return shown


def _whole(asked: Asked, name: str, default: int, within: range) -> int:
    value = asked.settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value not in within:
        raise GenerationOptionError(f"{name} must be from {within.start} to {within.stop - 1}, not {value!r}")
    return value
