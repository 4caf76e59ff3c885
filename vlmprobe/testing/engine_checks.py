"""The checks of a serving engine, E1 to E12: each compares it with the same checkpoint, run in this process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from vlmprobe.engines.base import Streams
from vlmprobe.errors import CapabilityError, EngineError, UnknownModelError, VlmprobeError
from vlmprobe.results.result import Result
from vlmprobe.testing.conformance.check import Check, check
from vlmprobe.testing.report import CheckFailure, SkipCheck
from vlmprobe.testing.served import GREEDY, NEW, QUESTIONS, Served
from vlmprobe.testing.subject import picture, text_rows
from vlmprobe.testing.tolerance import log_softmax, require_numbers

__all__ = ["CHECKS"]

HOT, KEPT = 2.0, 5  # temperature and top_k of the drawn answer
MANY = 16  # requests at once
LONGEST = 2**14  # tokens of a context that is filled to see what the server says
# Times the tolerance: unlikely tokens are farther off, and entropy is a mean over all of them.
FACTORS = {"likeliest tokens": 4, "entropy": 10}
CUT = "\ufffd"  # what pieces of a character are written as
SENTINEL = -1e3  # no log-probability of a token that was drawn or listed is below
ONE_TOKEN = ("yes", "no", "A", "B", "1", "2")
SEVERAL = "of several tokens"
LONGER = ("a red boat", "two green apples")


def _places(result: Result, rows: Any) -> list[str]:
    return [f"row {row}, token {result.output.tokens[row]!r}" for row in rows]


def _each(subject: Served, compare: Callable[[str], float | None]) -> list[str]:
    """Notes on the greatest difference over the questions, of text and of images apart, and on what was left out."""
    found: dict[bool, list[float]] = {}
    notes = []
    for name in subject.names:
        try:
            value = compare(name)
        except (SkipCheck, CapabilityError) as reason:
            notes.append(f"{name}: {reason}")
            continue
        if value is not None:
            found.setdefault(bool(QUESTIONS[name][1]), []).append(value)
    if not found:
        raise SkipCheck(notes[0].partition(": ")[2] if notes else "there is nothing to compare")
    told = [f"{'with images' if key else 'text'}: at most {max(values):.1e}" for key, values in found.items()]
    return [*told, *dict.fromkeys(notes)]


@check(
    "E1",
    "there is a row for every generated token, or the answer says which are missing",
    "a token that ends inside a character has no row on this wire",
    "rows of reasoning, of a stop string or of an end token are counted otherwise",
    rerun=False,
)
def rows(subject: Served) -> list[str]:
    """An answer that ends by its length has that many rows; one that stops has as many as the same text here."""
    notes, without = [], []
    for name in subject.names:
        result = subject.answer(name)
        came, due = len(result.output) + result.output.lost, NEW
        absent = result.meta.get("absent", {})
        told = [absent[key] for key in ("rows", "end", "reasoning") if key in absent]
        if result.finish_reason != "length":
            here = subject.local.generate(**subject.asked(name), **GREEDY)
            if here.text != result.text:
                continue
            due = len(here.output)
        if came != due and not told:
            raise CheckFailure(f"{due} rows", f"{came} rows, and no word about the others", f"question {name!r}")
        if (result.output.lost or not result.output.scored.all()) and not np.isnan(result.confidence):
            raise CheckFailure("a confidence of NaN, since rows are missing", f"{result.confidence:.3g}", name)
        notes += [f"{name}: {absent[key]}" for key in ("end", "reasoning") if key in absent]
        without += [f"{name}: {absent['rows'].partition(', so')[0]}"] if "rows" in absent else []
    if without:
        raise SkipCheck("; ".join(without))
    return notes


@check("E2", "ids are those of the model", "another chat template or tokenizer on the server", rerun=False)
def ids(subject: Served) -> list[str]:
    """Of the prompt, where the engine sends them, exactly; of the answer, each is the likeliest here."""

    def compare(name: str) -> float:
        result = subject.answer(name)
        prompt = subject.local.engine.prompt_ids(subject.conversation(name))  # type: ignore[attr-defined]
        if result.input_ids is not None and result.input_ids.tolist() != prompt.tolist():
            raise CheckFailure(f"{len(prompt)} ids of the prompt", f"{len(result.input_ids)}, or others", name)
        made = subject.ids(name, result)
        if not made:
            raise SkipCheck("the id of the first token is not known")
        own = subject.own(name, made)
        behind = own.max(axis=1) - own[np.arange(len(made)), made]
        if (worst := int(behind.argmax())) is not None and behind[worst] > 2 * subject.tolerance(name):
            raise CheckFailure(
                "the likeliest token in a greedy answer",
                f"id {made[worst]}, which is {behind[worst]:.3g} nats below it here",
                f"question {name!r}, {_places(result, [worst])[0]}",
            )
        return float(behind.max())

    return _each(subject, compare)


@check("E3", "the text is the server's, and that of the ids", "the server drops or repairs characters", rerun=False)
def texts(subject: Served) -> list[str]:
    """Where the ids read otherwise here, the result says as what; at the end of an answer, a character may be cut."""
    notes = []
    for name in subject.names:
        result = subject.answer(name)
        with suppress(SkipCheck):
            made = subject.ids(name, result)
            if len(made) < len(result.output) or result.output.lost:
                continue
            detokenizer = subject.local.engine.detokenizer  # type: ignore[attr-defined]
            read = detokenizer.join(made, detokenizer.texts(made))
            told = result.meta.get("text_of_ids", result.text)
            if told.rstrip(CUT) != read.rstrip(CUT):
                raise CheckFailure(f"{read!r}, as the ids read here", f"{told!r}", f"question {name!r}")
            if result.text != read:
                notes.append(f"{name}: the server writes {result.text!r}, the ids read {read!r}")
    return notes


@check(
    "E4", "a character that spans tokens is whole", "bytes of a token that the engine sends are not used", rerun=False
)
def characters(subject: Served) -> list[str]:
    """The tokens add up to the text; of an alternative that is a piece of one, its bytes are told."""
    for name in subject.names:
        result = subject.answer(name)
        table = result.output
        text = "".join(token for token, kind in zip(table.tokens, table.kinds, strict=True) if kind != "special")
        if not table.lost and text.strip() not in (result.text.strip(), result.meta.get("text_of_ids", "").strip()):
            raise CheckFailure(f"tokens that add up to {result.text!r}", f"{text!r}", f"question {name!r}")
        alone = subject.local.engine.detokenizer.alone  # type: ignore[attr-defined]
        for row in range(len(table)):
            for each, shown in zip(table.top_ids[row].tolist(), table.top_tokens[row], strict=True):
                if CUT in shown and (each < 0 or alone(each) != shown):
                    raise CheckFailure(
                        "the bytes of a piece, such as <0xE7>", repr(shown), f"{name}, {_places(result, [row])[0]}"
                    )
    return []


@check(
    "E5",
    "log-probabilities of generated tokens are those of the model",
    "another dtype, quantisation or image preprocessing on the server",
    "numbers after temperature, penalties or filters, taken for raw ones",
    rerun=False,
)
def generated(subject: Served) -> list[str]:
    """Of the chosen tokens and of the alternatives, and entropy and logsumexp where the engine gives them."""

    def compare(name: str) -> float:
        result = subject.answer(name)
        made = subject.ids(name, result)
        table, own, tolerance = result.output, subject.own(name, made), subject.tolerance(name)
        known = np.flatnonzero(~np.isnan(table.logprobs[: len(made)]))
        if not len(known):
            raise SkipCheck("no row of the answer has a number")
        pairs = [(table.logprobs[known], own[known, np.array(made)[known]], "log-probabilities")]
        weighted = np.where(own > -np.inf, np.exp(own) * own, 0.0)
        pairs += [(table.entropy[known], -weighted.sum(axis=1)[known], "entropy")]
        listed = [(row, place) for row in known for place in np.flatnonzero(table.top_ids[row] >= 0)]
        if listed:
            at = tuple(np.array(listed).T)
            pairs.append((table.top_logprobs[at], own[at[0], table.top_ids[at]], "likeliest tokens"))
        worst = 0.0
        for came, due, what in pairs:
            given = ~np.isnan(came)
            names = [f"{what} of {name!r}, number {place}" for place in np.flatnonzero(given)]
            allowed = tolerance * FACTORS.get(what, 1)
            require_numbers(came[given], due[given], allowed, of=what, path="the model's own forward", names=names)
            if what == "log-probabilities":
                worst = max(worst, float(np.abs(came[given] - due[given]).max(initial=0)))
        return worst

    return _each(subject, compare)


@check("E6", "rows of the prompt are those of the model", "positions of images are counted otherwise", rerun=False)
def prompts(subject: Served) -> list[str]:
    """Positions, ids and log-probabilities, beside images too."""

    def compare(name: str) -> float:
        asked = {**subject.asked(name), "prompt": True, "max_new_tokens": 1, "do_sample": False}
        there, here = subject.probe.generate(**asked).prompt, subject.local.generate(**asked).prompt
        if there is None or here is None:
            raise SkipCheck("the engine gives no rows of the prompt")
        if there.positions.tolist() != here.positions.tolist():
            raise CheckFailure(f"rows at {here.positions.tolist()}", f"at {there.positions.tolist()}", name)
        scored = text_rows(here)
        names = [f"{name}, token {here.tokens[row]!r}" for row in scored]
        require_numbers(
            there.logprobs[scored], here.logprobs[scored], subject.tolerance(name),
            of="rows of the prompt", path="those of the model here", names=names,
        )  # fmt: skip
        return float(np.abs(there.logprobs[scored] - here.logprobs[scored]).max())

    return _each(subject, compare)


@check("E7", "candidates have the scores of the model", "a candidate is written otherwise, or merges", rerun=False)
def candidates(subject: Served) -> list[str]:
    """Of one token and of several; what an engine does not list is bounded."""

    def compare(name: str) -> float:
        conversation = subject.conversation(name)
        single = [text for text in ONE_TOKEN if len(subject.local.engine.answer_ids(conversation, text)) == 1]  # type: ignore[attr-defined]
        worst = []
        for texts in (single, list(LONGER)):
            if len(texts) < 2:
                continue
            try:
                there = subject.probe.score(candidates=texts, **subject.asked(name))
            except CapabilityError as error:
                kinds, why = ("of one token", error) if texts is single else (SEVERAL, abilities.one_token or error)
                left_out.append(f"{kinds}: {why}")
                continue
            scores = subject.local.score(candidates=texts, **subject.asked(name))
            here, given = scores.logprobs, ~np.isnan(there.logprobs)
            # Each is a sum over its tokens, which are unlikely ones.
            allowed = subject.tolerance(name) * FACTORS["likeliest tokens"] * max(map(len, scores.tables))
            require_numbers(
                there.logprobs[given], here[given], allowed,
                of="candidates", path="their scores here", names=[f"{name}, {text!r}" for text in texts],
            )  # fmt: skip
            if (here > there.logprob_bounds[:, 1] + allowed).any():
                raise CheckFailure(f"bounds above {here}", f"{there.logprob_bounds[:, 1]}", f"question {name!r}")
            worst += [float(np.abs(there.logprobs[given] - here[given]).max(initial=0))]
        if not worst:
            raise SkipCheck(left_out[-1] if left_out else "no candidate of one token is known")
        return max(worst)

    abilities, left_out = subject.engine.abilities, list[str]()
    return [*_each(subject, compare), *dict.fromkeys(left_out)]


@check(
    "E8",
    "numbers under temperature and filters are what they are said to be",
    "the engine was judged wrongly",
    rerun=False,
)
def sampled(subject: Served) -> list[str]:
    """Raw ones are those of the model; tempered or filtered ones stand in ``scores``."""
    name = "count"
    options: dict[str, Any] = {"do_sample": True, "temperature": HOT, "max_new_tokens": NEW, "seed": 7}
    filters: dict[str, Any] = {"top_k": KEPT} if "top_k" in subject.engine.abilities.takes else {}
    result = subject.probe.generate(**subject.asked(name), **options, **filters)
    kind = result.meta["value_kind"]
    made = subject.ids(name, result)
    if kind == "unknown" or not made:
        raise SkipCheck("the engine does not tell what its numbers are, and they could not be found out")
    logits = subject.logits(name, made)
    kept = np.argsort(-logits, axis=1)[:, :KEPT]
    outside = [row for row, each in enumerate(made) if filters and each not in kept[row]]
    if outside:
        raise CheckFailure(
            f"one of the {KEPT} likeliest tokens, by top_k={KEPT}", "another", _places(result, outside)[0]
        )
    if kind == "filtered" and filters:
        masked = np.full_like(logits, -np.inf)
        np.put_along_axis(masked, kept, np.take_along_axis(logits, kept, axis=1), axis=1)
        logits = masked
    own = log_softmax(logits if kind == "raw" else logits / HOT)
    came = result.output.logprobs if kind == "raw" else result.output.scores
    if came is None:
        raise CheckFailure(f"numbers in scores, since they are {kind}", "none")
    at = np.flatnonzero(~np.isnan(came[: len(made)]))
    require_numbers(
        came[at], own[at, np.array(made)[at]], subject.tolerance(name),
        of=f"numbers that are said to be {kind}", path="those of the model's own forward", names=_places(result, at),
    )  # fmt: skip
    return [f"they are {kind}"]


@check("E9", "bounds and sentinels are in no mean", "a sentinel of the engine is not recognised", rerun=False)
def bounds(subject: Served) -> None:
    """A row that is only bounded has no number, and what needs it is NaN; every bound holds."""
    for name in subject.names:
        result = subject.answer(name)
        table = result.output
        if (np.nan_to_num(table.logprobs, nan=0.0) < SENTINEL).any() or (
            np.nan_to_num(table.top_logprobs, nan=0.0, neginf=0.0) < SENTINEL
        ).any():
            raise CheckFailure("log-probabilities", f"a sentinel: {np.nanmin(table.top_logprobs):.3g}", name)
        if table.bounded and not np.isnan(result.confidence):
            raise CheckFailure("a confidence of NaN, since a row is only bounded", f"{result.confidence:.3g}", name)
        with suppress(SkipCheck):
            made = subject.ids(name, result)
            own, slack = subject.own(name, made), 10 * subject.tolerance(name)
            chosen = own[np.arange(len(made)), made]
            entropy = -np.where(own > -np.inf, np.exp(own) * own, 0.0).sum(axis=1)
            for what, bound, sign, value in (
                ("logprobs_at_most", table.logprobs_at_most, 1, chosen),
                ("entropy_at_least", table.entropy_at_least, -1, entropy),
            ):
                if bound is not None and (sign * (value - bound[: len(made)]) > slack).any():
                    raise CheckFailure(f"{what} that hold of {value}", f"{bound[: len(made)]}", f"question {name!r}")


@check("E10", f"{MANY} requests at once give, in order, what each gives alone", "answers are mixed up", rerun=False)
def together(subject: Served) -> list[str]:
    """The same texts, and numbers within the tolerance."""
    order = [subject.names[place % len(subject.names)] for place in range(MANY)]
    requests = [subject.asked(name) for name in order]
    for name, result in zip(order, subject.probe.generate_many(requests, progress=False, **GREEDY), strict=True):
        alone = subject.answer(name)
        if result.output.tokens != alone.output.tokens:
            raise CheckFailure(f"{alone.text!r}, the answer alone", f"{result.text!r}", f"question {name!r}")
        require_numbers(
            result.output.logprobs, alone.output.logprobs, subject.tolerance(name),
            of="numbers of an answer among others", path="those of it alone",
            names=_places(alone, range(len(alone.output))),
        )  # fmt: skip
    return []


@check("E11", "a stream is the whole answer, and can be left", "rows of held-back text are dropped", rerun=False)
def streams(subject: Served) -> list[str]:
    """Token for token; after one that was left, the next answer is right. Rows that only a stream loses are told."""
    if not isinstance(subject.engine, Streams):
        raise SkipCheck(f"{subject.engine.title} does not stream here")
    notes = ["that the server stops when a stream is left is not visible over the wire"]
    for name, whole in ((each, subject.answer(each)) for each in subject.names):
        with subject.probe.stream(**subject.asked(name), **GREEDY) as stream:
            pieces = list(stream)
        came = stream.result.output
        if (text := stream.result.text) != whole.text:
            raise CheckFailure(f"{whole.text!r}", f"{text!r}, streamed", f"question {name!r}")
        count, due = len(came) + came.lost, len(whole.output) + whole.output.lost
        if len(pieces) != len(came) or count != due:
            raise CheckFailure(f"{due} rows", f"{len(pieces)} pieces of {count} rows", f"question {name!r}")
        if came.lost > whole.output.lost:
            notes.append(f"{name}, streamed: {stream.result.meta['absent']['rows'].partition(', so')[0]}")
        elif not whole.output.lost:
            require_numbers(
                came.logprobs, whole.output.logprobs, subject.tolerance(name),
                of="streamed rows", path="those of the whole answer", names=_places(whole, range(len(came))),
            )  # fmt: skip
    name = subject.names[0]
    with subject.probe.stream(**subject.asked(name), max_new_tokens=256, do_sample=False) as stream:
        next(iter(stream))
    after = subject.probe.generate(**subject.asked(name), **GREEDY)
    if after.text != subject.answer(name).text:
        raise CheckFailure(f"{subject.answer(name).text!r}", f"{after.text!r} after a stream was left", name)
    return notes


@check("E12", "limits and errors are told as what they are", "an error of the server passes for an answer", rerun=False)
def errors(subject: Served) -> list[str]:
    """Too long a prompt, too many alternatives, another model's name, an image where none is taken."""
    notes: list[str] = []

    def refused(what: str, kind: type[Exception], call: Callable[[], Any]) -> None:
        try:
            came = call()
        except kind:
            return
        except VlmprobeError as error:
            notes.append(f"{what}: {type(error).__name__}: {str(error)[:120]}")
            return
        raise CheckFailure(f"an error for {what}", repr(came)[:120])

    asked = subject.asked("question")
    if subject.engine.abilities.alternatives is not None:
        refused("10 million alternatives", CapabilityError, lambda: subject.probe.generate(**asked, alternatives=10**7))
    if (context := subject.engine.server.context) is not None and context <= LONGEST:
        long = {**asked, "question": "word " * context}
        refused(f"a prompt beyond {context:,} tokens", EngineError, lambda: subject.probe.generate(**long, **GREEDY))
    else:
        notes.append("how too long a prompt is refused was not tried: its context is long, or not known")
    refused("a model of another name", UnknownModelError, lambda: _elsewhere(subject))
    if not subject.engine.abilities.images:
        image = {**asked, "image": picture(1)}
        refused("an image", CapabilityError, lambda: subject.probe.generate(**image, **GREEDY))
    return notes


def _elsewhere(subject: Served) -> Result:
    from vlmprobe import connect

    to = subject.engine.client
    other = connect(to.url, model="no-such-model", value_kind="raw", **to.access)
    return other.generate(**subject.asked("question"), max_new_tokens=1)


CHECKS: tuple[Check, ...] = (
    rows, ids, texts, characters, generated, prompts, candidates, sampled, bounds, together, streams, errors,
)  # fmt: skip
