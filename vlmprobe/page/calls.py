"""The calls of the model that the page makes; they run in the thread of the model and tell a job what they find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vlmprobe.engines.base import GivesPromptIds, RemembersImages, Streams, require
from vlmprobe.errors import CapabilityError
from vlmprobe.page.asked import Asked
from vlmprobe.page.panels import PANELS, run_panel
from vlmprobe.probe.request import options_of, with_meta
from vlmprobe.results.document import token_rows

if TYPE_CHECKING:
    from vlmprobe.page.memory import Images, Results
    from vlmprobe.page.model_queue import Job, Work
    from vlmprobe.probe import Probe

__all__ = ["abilities", "remembering", "work_of"]


def remembering(probe: Probe) -> Probe:
    """A session of a model in this process: questions and branches about an image share what was computed of it."""
    return probe.session() if isinstance(probe.engine, RemembersImages) else probe


def work_of(asked: Asked, images: Images, results: Results) -> Work:
    """What to run for a request.

    Raises:
        GoneError: if the server no longer holds one of its images.
    """
    messages = asked.messages(images)  # now: they may be dropped while the job waits

    def work(probes: Sequence[Probe], job: Job) -> None:
        if job.stopped:
            return
        probe = probes[asked.model]
        if asked.panel:
            job.tell("panel", run_panel(probe, asked, messages, job))
            return
        result = _typed(probe, asked, messages) if asked.kind else _answer(probe, asked, messages, job)
        job.tell("result", {"key": results.add(result), "document": result.to_dict()})

    return work


def _answer(probe: Probe, asked: Asked, messages: Any, job: Job) -> Any:
    """An answer in the model's own words, its tokens told as they come; up to where the job was stopped."""
    generation = {name: value for name, value in asked.options.items() if name != "seed"}
    options = options_of("stats", None, None, asked.options.get("seed"), generation)
    options = replace(options, begin=asked.begin)
    conversation = probe.conversation(messages)
    probe.engine.check([conversation], options)
    if not isinstance(probe.engine, Streams):
        return with_meta(probe.engine.generate([conversation], options)[0], probe.meta, conversation)
    with probe.engine.stream(conversation, options) as tokens:
        for row in tokens:
            job.tell("token", token_rows(row)[0])
            if job.stopped:
                break
    return with_meta(tokens.result, probe.meta, conversation)


def _typed(probe: Probe, asked: Asked, messages: Any) -> Any:
    """The probabilities of given answers."""
    if asked.kind == "candidates":
        return probe.score(messages, list(asked.texts))
    return probe.ask(messages, **asked.typed)


def abilities(probe: Probe) -> dict[str, str]:
    """What the page can do with an engine: by its name why it cannot, empty if it can."""
    declared = getattr(probe.engine, "abilities", None)
    found = {
        "stream": _lacks(probe, Streams),
        "branch": _lacks(probe, GivesPromptIds),
        "prompt": getattr(declared, "no_prompt", ""),
        "score": getattr(declared, "no_score", ""),
    }
    return found | {name: _lacks(probe, panel.needs) if panel.needs else "" for name, panel in PANELS.items()}


def _lacks(probe: Probe, ability: Any) -> str:
    try:
        require(probe.engine, ability)
    except CapabilityError as error:
        return str(error)
    return ""
