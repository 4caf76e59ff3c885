"""Determines what a server supports, with a few short requests."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from vlmprobe.engines.base import Options, abilities
from vlmprobe.engines.serving.answer import Abilities, Answer
from vlmprobe.engines.serving.base import ServedEngine
from vlmprobe.engines.serving.findings import Finding
from vlmprobe.engines.serving.generation_options import Decoding
from vlmprobe.errors import EngineError, VlmprobeError
from vlmprobe.inputs.messages import Conversation

__all__ = ["Health", "examine"]

QUESTION = "What is in the picture?"
SIDE = 56  # pixels: a multiple of the patches of most models, so that nothing is resized
FEW = Decoding(max_new_tokens=2)


@dataclass(frozen=True)
class Health:
    """What ``vlmprobe doctor`` reports about a server."""

    url: str
    engine: str
    version: str | None
    model: str
    models: tuple[str, ...]
    context: int | None  # positions of prompt and answer together
    mode: str  # what its numbers are, such as raw_logprobs
    value_kind: str  # what they are if a call samples with temperature and filters
    max_logprobs: int | None  # maximum number of alternatives; None for no limit
    findings: tuple[Finding, ...]
    abilities: dict[str, bool]  # of vlmprobe.engines.base, whether engines of this kind have each

    @property
    def usable(self) -> bool:
        """Whether a probe can use it."""
        return all(each.state == "yes" for each in self.findings if each.needed)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing that starting the server differently would provide."""
        return self.usable and not any(each.remedy for each in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "usable": self.usable, "complete": self.complete}


async def examine(engine: ServedEngine) -> Health:
    """Test a server."""
    findings: list[Finding] = []
    try:
        await engine.known()
    except EngineError as error:
        findings += await engine.without_chat(error)
    else:
        findings += await _tried(engine)
        findings += await engine.further_findings()
    meaning = engine.meaning
    return Health(
        url=engine.client.url,
        engine=engine.name,
        version=engine.server.version,
        model=engine.model,
        models=engine.server.models,
        context=engine.server.context,
        mode=meaning.mode if meaning is not None else "unknown",
        value_kind=meaning.kind if meaning is not None else "unknown",
        max_logprobs=engine.abilities.alternatives,
        findings=tuple(findings),
        abilities=abilities(type(engine)),
    )


async def _tried(engine: ServedEngine) -> list[Finding]:
    plain = Conversation.build(QUESTION)
    shown = Conversation.build(QUESTION, _image())
    no_prompt = engine.abilities.no_prompt
    answered = await _asked(engine, plain, prompt=False)
    seen = await _asked(engine, shown, prompt=False)
    findings = [
        _finding("log-probabilities of the answer", answered, needed=True),
        _images(answered, seen),
        _finding("ids of the answer", answered, _has_ids(answered)),
    ]
    for name, conversation in (("prompt log-probabilities", plain), ("prompt log-probabilities with images", shown)):
        if no_prompt:
            findings.append(Finding(name, "no", no_prompt))
            continue
        asked = await _asked(engine, conversation, prompt=True)
        findings.append(_finding(name, asked, isinstance(asked, Answer) and asked.prompt is not None))
    return [*findings, _candidates(engine.abilities)]


async def _asked(engine: ServedEngine, conversation: Conversation, *, prompt: bool) -> Answer | VlmprobeError:
    options = Options(prompt=prompt, alternatives=2, demanded=frozenset())
    try:
        return await engine.answer(conversation, FEW, options)
    except VlmprobeError as error:
        return error


def _finding(name: str, asked: Answer | VlmprobeError, holds: bool = True, *, needed: bool = False) -> Finding:
    if isinstance(asked, VlmprobeError):
        return Finding(name, "no", str(asked), needed=needed)
    return Finding(name, "yes" if holds else "no", needed=needed)


def _images(plain: Answer | VlmprobeError, shown: Answer | VlmprobeError) -> Finding:
    name = "images"
    if isinstance(shown, VlmprobeError):
        return Finding(name, "no", str(shown))
    counted = None if isinstance(plain, VlmprobeError) else (_positions(plain), _positions(shown))
    if counted is None or None in counted:
        return Finding(name, "unknown", "accepted without an error; the reply does not show whether the model saw them")
    added = (counted[1] or 0) - (counted[0] or 0)
    if added <= 0:
        return Finding(name, "no", "the prompt is not longer with an image: the server ignores it")
    return Finding(name, "yes", f"an image of {SIDE} x {SIDE} pixels takes {added} positions")


def _positions(answer: Answer) -> int | None:
    """How many positions the prompt has, by its ids or as the server counts them."""
    return answer.usage.prompt if answer.prompt_ids is None else len(answer.prompt_ids)


def _candidates(able: Abilities) -> Finding:
    if able.no_score:
        return Finding("candidates", "no", able.no_score)
    if not able.one_token:
        return Finding("candidates", "yes", "of any text")
    among = "the likeliest" if able.alternatives is None else f"the {able.alternatives:,} likeliest"
    return Finding("candidates", "yes", f"of one token, among {among}; {able.one_token}")


def _has_ids(asked: Answer | VlmprobeError) -> bool:
    return isinstance(asked, Answer) and all(row.id is not None for row in asked.output)


def _image() -> Image.Image:
    gradient = Image.linear_gradient("L").resize((SIDE, SIDE))
    return Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180)))
