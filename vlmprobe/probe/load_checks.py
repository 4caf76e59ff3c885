"""Quick checks on the first load of a checkpoint; each returns a description of the problem, or None.

They catch only gross errors, which make every number wrong; ``vlmprobe check MODEL`` runs the full suite. C5 and C11
are cheap halves of the checks of those names there.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vlmprobe._version import TESTED, __version__
from vlmprobe.adapter import Adapter
from vlmprobe.engines.base import Options
from vlmprobe.engines.local import LocalEngine
from vlmprobe.engines.local.model_state import alone, to_model
from vlmprobe.errors import CapabilityError, VlmprobeWarning
from vlmprobe.inputs.messages import Conversation, ImagePart, Message, TextPart
from vlmprobe.inputs.prompt_format import AS_BY_DEFAULT, PromptFormat
from vlmprobe.probe import passed_checks

__all__ = ["SWITCH", "Finding", "check_loaded", "filled_positions", "run", "switched_on"]

QUESTION = "What is in the picture?"
ANSWER = "It shows two boats."
FURTHER = "And what else?"
GREEDY = {"max_new_tokens": 1, "do_sample": False, "num_beams": 1}
# Relative to the largest logit, or to ten if that is larger. Loose: rounding must cause no false alarm at load.
RELATIVE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
TEMPLATE = "chat template"
SWITCH = "VLMPROBE_CHECK"  # environment variable; 0 turns the checks off
OFF = ("0", "false", "no", "off")
_UNTOLD = threading.Lock()  # acquired once this process has logged that its transformers is newer than tested


def switched_on() -> bool:
    """Whether quick checks are on: the default, unless the environment turns them off."""
    return os.environ.get(SWITCH, "").strip().lower() not in OFF


def check_loaded(
    engine: LocalEngine,
    meta: Mapping[str, Any],
    config: Mapping[str, Any],
    checkpoint: str,
    format: PromptFormat = AS_BY_DEFAULT,
) -> None:
    """Run the quick checks unless this exact checkpoint has passed them before, and warn about failures.

    Passes are recorded in the user's cache; failures are not, so they are reported at every load. With a newer
    transformers than the tested one, a log line says so and what passed, once per process.

    Args:
        engine: of the model that was just loaded.
        meta: the probe's metadata: model, revision, adapter, dtype, device, versions.
        config: the checkpoint's ``config.json`` as read.
        checkpoint: local folder or hub id.
        format: of the prompts; passes are recorded for the checkpoint's own only.

    Raises:
        CapabilityError: for an option of the format that the chat template does not read.
    """
    known = passed_checks.fingerprint(type(engine.adapter), meta, config, checkpoint)
    findings: list[Finding] = []
    if format != AS_BY_DEFAULT:
        asked = replace(format, tools=(), continue_final_message=None)
        # What the template does not read is the caller's mistake, not a fault of the adapter.
        engine.adapter.check_format(_short_text(engine.adapter, format=asked))
        findings = run(engine, asked)
    elif not passed_checks.passed(str(meta["model"]), known):
        findings = run(engine)
        if not findings:
            passed_checks.remember(str(meta["model"]), known)
    _tell_of_newer(str(meta["versions"]["transformers"]), str(meta["model"]), findings)
    if not findings:
        return
    listed = "\n".join(f"- {str(finding).rstrip('.')}." for finding in findings)
    warnings.warn(
        f"The numbers of {meta['model']} cannot be trusted yet: with the adapter {meta['adapter']!r}, "
        f"{len(findings)} of the quick checks at load failed.\n{listed}\n"
        f"Run 'vlmprobe check {meta['model']}' for details; check=False or {SWITCH}=0 turns these checks off.",
        VlmprobeWarning,
        stacklevel=3,  # the caller of load
    )


def _tell_of_newer(installed: str, model: str, findings: Sequence[Finding]) -> None:
    from packaging.version import InvalidVersion, Version

    try:  # a local version suffix (5.24.0+cpu) does not make it newer
        newer = Version(Version(installed).public) > Version(TESTED["transformers"])
    except InvalidVersion:
        return
    if not newer or not _UNTOLD.acquire(blocking=False):
        return
    off = {finding.check for finding in findings}
    passed = [] if TEMPLATE in off else [name for name in CHECKS if name not in off]  # without it, no other check ran
    # Logged, not warned: with warnings as errors, a newer transformers that works must not fail.
    logging.getLogger("vlmprobe").warning(
        "transformers %s is newer than %s, with which vlmprobe %s was tested; quick checks of %s that passed: %s",
        installed,
        TESTED["transformers"],
        __version__,
        model,
        ", ".join(passed) or "none",
    )


@dataclass(frozen=True)
class Finding:
    """A failed check."""

    check: str
    told: str

    def __str__(self) -> str:
        return f"{self.check}: {self.told}"


def run(engine: LocalEngine, format: PromptFormat = AS_BY_DEFAULT) -> list[Finding]:
    """The failed checks, in order, of prompts of a format."""
    found = []
    for name, check in CHECKS.items():
        try:
            with alone(engine.adapter):
                told = check(engine, format)
        except Exception as error:  # noqa: BLE001 - an adapter may fail in any way; the failure is reported
            told = f"{type(error).__name__}: {error}"
        if told is not None:
            found.append(Finding(name, told))
            if name == TEMPLATE:  # no other check can run without it
                break
    return found


def chat_template(engine: LocalEngine, format: PromptFormat = AS_BY_DEFAULT) -> str | None:
    """The prompt contains the question exactly once, verbatim."""
    prompt = engine.adapter.encode([_short_text(engine.adapter, format=format)]).prompts[0]
    if (times := prompt.text.count(QUESTION)) != 1:
        return f"the prompt contains the user's text {times} times: {_short(prompt.text)!r}"
    return None


def end_tokens(engine: LocalEngine, format: PromptFormat = AS_BY_DEFAULT) -> str | None:
    """Generation ends where the chat template ends an answer."""
    adapter, detokenizer = engine.adapter, engine.detokenizer
    ends = adapter.end_ids
    if not ends:
        return "no end token is known, so every answer runs to max_new_tokens: end_ids of the adapter is empty"
    if (
        format.raw_prompt or adapter.facts().get("chat_template", "") is None
    ):  # asked plainly: nothing says where a turn ends
        return None
    if not adapter.capabilities.one_end:  # nor do earlier answers
        return None
    written = adapter.encode([_short_text(adapter, ANSWER, FURTHER, format=format)]).prompts[0].text
    between = written.partition(ANSWER)[2].partition(FURTHER)[0]
    special = [
        each
        for each in adapter.tokenizer(between, add_special_tokens=False)["input_ids"]
        if each in detokenizer.special
    ]
    if not special or ends.intersection(special):
        return None
    return (
        f"the chat template ends an answer with {detokenizer.decode(special[:1])!r}, but generation ends only at "
        f"{', '.join(repr(detokenizer.decode([each])) for each in sorted(ends))}: answers would run on"
    )


def image_positions(engine: LocalEngine, format: PromptFormat = AS_BY_DEFAULT) -> str | None:
    """C5: the spans of an image are the positions that the model fills with image features."""
    adapter = engine.adapter
    encoding = adapter.encode([Conversation.build(QUESTION, _image(), format)])
    prompt = encoding.prompts[0]
    held = {place for span in prompt.spans for place in range(span.start, span.stop)}
    filled = filled_positions(adapter, to_model(adapter.model, encoding.inputs))
    if not held:
        return (
            f"no position of the prompt is marked as the image's, though the model fills {len(filled)}; image_ids of "
            f"the adapter are {sorted(adapter.image_ids)}"
        )
    if not filled or filled == held:
        return None
    wrong = sorted(filled ^ held)
    ids = sorted({int(prompt.ids[place]) for place in wrong})
    return (
        f"the model fills {len(filled)} positions with image features, and the spans hold {len(held)}; they differ at "
        f"{len(wrong)}, first at position {wrong[0]} (ids {', '.join(map(str, ids[:6]))})"
    )


def selected_rows(engine: LocalEngine, format: PromptFormat = AS_BY_DEFAULT) -> str | None:
    """C11: for a short text, the default call's numbers match the full rows of the model's own forward."""
    adapter = engine.adapter
    model = adapter.model
    conversation = _short_text(adapter, format=format)
    encoding = adapter.encode([conversation])
    result = engine.generate([conversation], Options(alternatives=1, generation=GREEDY))[0]
    assert result.prompt is not None
    own = model(**to_model(model, encoding.inputs), use_cache=False, return_dict=True).logits[0]
    parts = [(table, np.flatnonzero(np.isfinite(table.logsumexp))) for table in (result.prompt, result.output)]
    places = np.concatenate([table.positions[rows] - 1 for table, rows in parts])
    ids = np.concatenate([table.ids[rows] for table, rows in parts])
    tokens = [table.tokens[row] for table, rows in parts for row in rows]
    rows = own[torch.as_tensor(places, device=own.device)].double().cpu()
    total = torch.logsumexp(rows, dim=-1)
    known = torch.as_tensor(np.minimum(ids, rows.shape[-1] - 1))
    expected = torch.stack([total, rows.gather(-1, known[:, None])[:, 0] - total], dim=-1).numpy()
    came = np.stack(
        [np.concatenate([getattr(table, name)[held] for table, held in parts]) for name in ("logsumexp", "logprobs")],
        axis=-1,
    )
    gaps = np.nan_to_num(np.abs(came - expected), nan=math.inf)
    gaps[ids >= rows.shape[-1], 1] = 0.0  # an id beyond the head has no log-probability
    size = rows.abs()
    allowed = RELATIVE[own.dtype] * max(10.0, size[size < torch.finfo(torch.float16).max].max().item())
    if gaps.max() <= allowed:
        return None
    row, column = np.unravel_index(gaps.argmax(), gaps.shape)
    return (
        f"the {('logsumexp', 'log-probability')[column]} of token {tokens[row]!r} at position {places[row] + 1} is "
        f"{came[row, column]:.5g} in the probe and {expected[row, column]:.5g} in the model's own forward"
    )


def filled_positions(adapter: Adapter, inputs: dict[str, Any]) -> set[int]:
    """The positions of one prompt that image features fill: their decoder input does not depend on a token.

    Empty if images enter through cross-attention, as vocabulary tokens, or are added to embeddings. Runs no decoder
    layer.

    Args:
        adapter: of the model.
        inputs: model inputs of one prompt, on the model's device.
    """
    generator = torch.Generator().manual_seed(0)
    ids = inputs["input_ids"]

    def disturb(_: nn.Module, given: Sequence[Any], embedded: Tensor) -> Tensor:
        if not given or not isinstance(given[0], Tensor) or given[0].shape != ids.shape:
            return embedded
        noise = torch.randn(embedded.shape, generator=generator, dtype=torch.float32)
        return embedded + noise.to(embedded) * embedded.float().std().to(embedded)

    plain = _decoder_input(adapter, inputs)
    # All embedding tables: some models have a separate one for special tokens.
    tables = [module for module in adapter.model.modules() if isinstance(module, nn.Embedding)]
    handles = [table.register_forward_hook(disturb) for table in tables]
    try:
        disturbed = _decoder_input(adapter, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return set((plain == disturbed).all(dim=-1).nonzero()[:, 0].tolist())


class _Reached(Exception):
    """Stops a forward at the first decoder layer."""


@torch.no_grad()
def _decoder_input(adapter: Adapter, inputs: dict[str, Any]) -> Tensor:
    """[S, ..]: what enters the first decoder layer."""
    seen: list[Tensor] = []

    def look(_: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        raise _Reached

    handle = adapter.layers[0].register_forward_pre_hook(look, with_kwargs=True)
    try:
        adapter.model(**inputs, use_cache=False, return_dict=True)
    except _Reached:
        length = inputs["input_ids"].shape[1]
        states = seen[0]
        return states.movedim(list(states.shape).index(length), 0).reshape(length, -1)
    finally:
        handle.remove()
    raise RuntimeError("a forward of the model does not reach the first of the adapter's layers")


def _short_text(adapter: Adapter, *further: str, format: PromptFormat) -> Conversation:
    """The question and further turns; with an image only if the model family requires one."""
    turns = [Message("user", (TextPart(QUESTION),))]
    turns += [Message(("assistant", "user")[place % 2], (TextPart(text),)) for place, text in enumerate(further)]
    conversation = Conversation(tuple(turns), format)
    try:
        adapter.encode([conversation])
    except CapabilityError:
        turns[0] = Message("user", (ImagePart(_image()), *turns[0].parts))
        return Conversation(tuple(turns), format)
    return conversation


def _image() -> Image.Image:
    """64 x 48 pixels of coloured patches, all different."""
    patches = np.random.default_rng(1).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((64, 48), Image.Resampling.BICUBIC)


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."


CHECKS: dict[str, Callable[[LocalEngine, PromptFormat], str | None]] = {
    TEMPLATE: chat_template,
    "end tokens": end_tokens,
    "C5 (image positions)": image_positions,
    "C11 (rows of the head)": selected_rows,
}
