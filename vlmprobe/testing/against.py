"""Compare a probe with a reference: ids, pixels, logits and answer of the model's original code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from vlmprobe.adapter import Encoding
from vlmprobe.errors import VlmprobeError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.testing.conformance.check import Check
from vlmprobe.testing.reference import Reference, Scenario
from vlmprobe.testing.report import CheckFailure, SkipCheck
from vlmprobe.testing.subject import Subject
from vlmprobe.testing.tolerance import require_rows

__all__ = ["IDS", "checks_against"]

IDS = ("R1", "R2", "R3", "R4")
ASIDE = 8  # characters on either side of where two prompts part


def checks_against(reference: Reference) -> tuple[Check, ...]:
    """One check for each kind of number that the reference holds, over all its scenarios."""
    compared = _Compared(reference)
    return (
        Check(
            "R1",
            "token ids are those of the original code",
            compared.ids,
            (
                "the begin token twice or not at all: does the template write it, or the tokenizer add it?",
                "another default system text, or white space between the parts of the template",
                "another number of positions for an image",
            ),
            rerun=False,
        ),
        Check(
            "R2",
            "pixels are those of the original code",
            compared.pixels,
            (
                "another mean or standard deviation, or none",
                "rows and columns of the tiles swapped, or the thumbnail in another place",
                "another interpolation when resizing, or a size that is rounded otherwise",
            ),
            rerun=False,
        ),
        Check(
            "R3",
            "logits of the prompt are those of the original code",
            compared.logits,
            (
                "image features in another order, or their axes swapped",
                "positions counted otherwise: of patches in the tower, or of tokens",
                "a part of the model that never runs (experts, a norm, a bias), or runs where it should not",
            ),
            rerun=False,
        ),
        Check(
            "R4",
            "the greedy answer and its logits are those of the original code",
            compared.answer,
            (
                "right for the prompt and wrong here: positions, masks or experts of generated tokens",
                "another end token",
            ),
            rerun=False,
        ),
    )


class _Compared:
    """The scenarios of a reference; each is encoded and run once."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self._encodings: dict[str, Encoding] = {}

    # -- the checks --------------------------------------------------------------------------------

    def ids(self, subject: Subject) -> None:
        """Exactly, but where a recorded id is negative: there an image stands."""
        for scenario in self.reference.scenarios:
            came, due = self._ids(subject, scenario)
            if came == due:
                continue
            prompt = self._encoding(subject, scenario).prompts[0]
            place = _where_they_part(came, due)
            names = subject.adapter.tokenizer.convert_ids_to_tokens
            raise CheckFailure(
                f"{len(due)} ids{_token(due, place, names)}",
                f"{len(came)} ids{_token(came, place, names)}",
                f"scenario {scenario.name}, position {place}",
                hints=_texts(scenario.prompt, prompt.text),
            )

    def pixels(self, subject: Subject) -> list[str]:
        """Every recorded tile, with zeros beside it where the tiles of a batch are padded."""
        compared, readable = 0, list(self._readable(subject))
        for scenario in readable:
            due = _tiles(scenario)
            if not due:
                continue
            came = self._encoding(subject, scenario).inputs.get("pixel_values")
            if came is None:
                raise CheckFailure(f"{len(due)} tiles", "no pixel_values", f"scenario {scenario.name}")
            tiles = came.float().cpu().numpy()
            whole = scenario.tensors.get("pixel_values")
            if whole is not None and whole.shape != tiles.shape:
                raise CheckFailure(
                    f"pixels of shape {whole.shape}", f"shape {tiles.shape}", f"scenario {scenario.name}"
                )
            for place, expected in due.items():
                if place >= len(tiles):
                    raise CheckFailure(f"tile {place}", f"{len(tiles)} tiles", f"scenario {scenario.name}")
                self._same_tile(tiles[place], expected, f"scenario {scenario.name}, tile {place}")
                compared += 1
        if not compared:
            raise SkipCheck("the reference holds no pixels" if readable else "no conversation is accepted: see R1")
        return [f"{compared} tiles compared", *self._left_out(readable)]

    def logits(self, subject: Subject) -> list[str]:
        """By one forward of the model over the prompt."""
        compared, alike = 0, list(self._alike(subject))
        for scenario in alike:
            inputs = subject.on_device(dict(self._encoding(subject, scenario).inputs))
            with torch.no_grad():
                rows = subject.model(**inputs).logits[0].float().cpu().numpy()
            at = scenario.tensors.get("positions", np.arange(len(scenario.input_ids)))
            require_rows(
                rows[at.astype(int)],
                scenario.tensors["logits"],
                self.reference.logits,
                of="logits",
                path="those of the original code",
                names=[f"scenario {scenario.name}, position {int(each)}" for each in at],
            )
            compared += len(at)
        return [f"{compared} rows compared", *self._left_out(alike)]

    def answer(self, subject: Subject) -> list[str]:
        """By the probe's own ``generate``."""
        compared, alike = 0, list(self._alike(subject))
        for scenario in (each for each in alike if each.gen_ids):
            result = subject.probe.generate(
                scenario.messages,
                keep="logits",
                max_new_tokens=len(scenario.gen_ids),
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
            )
            came, due = result.output.ids.tolist(), scenario.gen_ids
            ended = len(came) < len(due) and came[-1] in subject.adapter.end_ids
            if came != (due[: len(came)] if ended else due):
                names = subject.adapter.tokenizer.convert_ids_to_tokens
                raise CheckFailure(f"{names(due)}", f"{names(came)}", f"scenario {scenario.name}")
            if (rows := scenario.tensors.get("gen_logits")) is not None and result.output.logits is not None:
                require_rows(
                    np.asarray(result.output.logits, dtype=np.float32),
                    rows[: len(came)],
                    self.reference.logits,
                    of="logits of the answer",
                    path="those of the original code",
                    names=[f"scenario {scenario.name}, token {place}" for place in range(len(came))],
                )
            compared += len(came)
        if not compared:
            raise SkipCheck("the reference holds no answers")
        return [f"{compared} tokens compared", *self._left_out(alike)]

    # -- what they share ---------------------------------------------------------------------------

    def _ids(self, subject: Subject, scenario: Scenario) -> tuple[list[int], list[int]]:
        """The ids of the probe and the recorded ones; where an image stands, a negative recorded id is any."""
        prompt = self._encoding(subject, scenario).prompts[0]
        came, due = prompt.ids.tolist(), list(scenario.input_ids)
        for span in prompt.spans:
            for place in range(span.start, min(span.stop, len(due))):
                due[place] = came[place] if due[place] < 0 else due[place]
        return came, due

    def _alike(self, subject: Subject) -> Iterator[Scenario]:
        """The scenarios whose ids are the recorded ones: rows of others say nothing."""
        found = False
        for scenario in self._readable(subject):
            came, due = self._ids(subject, scenario)
            if came == due:
                found = True
                yield scenario
        if not found:
            raise SkipCheck("no prompt has the recorded ids: see R1")

    def _readable(self, subject: Subject) -> Iterator[Scenario]:
        """The scenarios whose conversation the adapter accepts; R1 fails for the others."""
        for scenario in self.reference.scenarios:
            try:
                self._encoding(subject, scenario)
            except CheckFailure:
                continue
            yield scenario

    def _left_out(self, compared: Sequence[Scenario]) -> list[str]:
        names = {each.name for each in compared}
        missing = [each.name for each in self.reference.scenarios if each.name not in names]
        return [f"not compared, see R1: {', '.join(missing)}"] if missing else []

    def _encoding(self, subject: Subject, scenario: Scenario) -> Encoding:
        if scenario.name not in self._encodings:
            try:
                encoded = subject.adapter.encode([Conversation.build(scenario.messages)])
            except VlmprobeError as error:
                raise CheckFailure(
                    "the conversation that the original code answers",
                    f"{type(error).__name__}: {error}",
                    f"scenario {scenario.name}",
                ) from error
            self._encodings[scenario.name] = encoded
        return self._encodings[scenario.name]

    def _same_tile(self, came: np.ndarray, due: np.ndarray, where: str) -> None:
        if came.ndim != due.ndim or any(held < wanted for held, wanted in zip(came.shape, due.shape, strict=True)):
            raise CheckFailure(f"pixels of shape {due.shape}", f"shape {came.shape}", where)
        own = tuple(slice(0, side) for side in due.shape)
        gap = np.abs(came[own].astype(np.float64) - due)
        worst = float(gap.max(initial=0.0))
        if not worst <= self.reference.pixels:  # NaN is neither
            place = tuple(int(each) for each in np.unravel_index(int(gap.argmax()), gap.shape))
            raise CheckFailure(
                f"{due[place]:.6g} within {self.reference.pixels:g}",
                f"{came[place]:.6g}; {float((gap > self.reference.pixels).mean()):.1%} of the pixels differ",
                f"{where}, {place}",
                hints=_about_pixels(came[own], due),
            )
        rest = came.copy()
        rest[own] = 0
        if np.any(rest):
            raise CheckFailure("zeros where tiles are padded", f"up to {np.abs(rest).max():.3g}", where)


def _tiles(scenario: Scenario) -> dict[int, np.ndarray]:
    """The recorded tiles by their place."""
    if (whole := scenario.tensors.get("pixel_values")) is not None:
        return dict(enumerate(whole))
    prefix = "pixel_values_"
    named = {name.removeprefix(prefix): each for name, each in scenario.tensors.items() if name.startswith(prefix)}
    return {int(place): each for place, each in sorted(named.items()) if place.isdecimal()}


def _about_pixels(came: np.ndarray, due: np.ndarray) -> list[str]:
    """What the numbers suggest: a linear map from one to the other, or swapped axes."""
    if came.ndim >= 2 and came.shape[-1] == came.shape[-2] and np.allclose(came.swapaxes(-1, -2), due, atol=1e-4):
        return ["with rows and columns swapped they agree"]
    x, y = came.astype(np.float64).ravel(), due.astype(np.float64).ravel()
    if x.std() > 0:
        slope, offset = np.polyfit(x, y, 1)
        if np.abs(slope * x + offset - y).max() < 1e-3:
            return [f"they agree after times {slope:.4g} plus {offset:.4g}: mean or standard deviation differ"]
    return []


def _token(ids: list[int], place: int, names: Callable[[list[int]], Any]) -> str:
    if place >= len(ids):
        return f", of which {place} are alike"
    name = names([ids[place]])[0] if ids[place] >= 0 else "an image position"
    return f"; at position {place} id {ids[place]} ({name!r})"


def _texts(due: str | None, came: str) -> list[str]:
    """Where the texts that were tokenised part."""
    if due is None or due == came:
        return []
    place = next(
        (at for at, pair in enumerate(zip(due, came, strict=False)) if pair[0] != pair[1]), min(len(due), len(came))
    )
    around = slice(max(0, place - ASIDE), place + 3 * ASIDE)
    return [f"the prompts part at character {place}: {due[around]!r} in the original, {came[around]!r} here"]


def _where_they_part(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The first place where two sequences differ; the length of the shorter one if it begins the other."""
    shorter = min(len(one), len(other))
    return next((place for place in range(shorter) if one[place] != other[place]), shorter)
