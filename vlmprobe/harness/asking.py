"""What a harness asks of a probe: requests as rows, their log-likelihoods, and their answers up to a stop string."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from vlmprobe.cli.open_model import is_server
from vlmprobe.engines.option_checks import greedy_by_default
from vlmprobe.errors import CapabilityError, GenerationOptionError, ImageError, MessageError, ResultError
from vlmprobe.probe import Probe
from vlmprobe.probe.connect import connect
from vlmprobe.probe.load import load
from vlmprobe.runs.opened import open_run
from vlmprobe.runs.running import run

__all__ = ["IMAGE", "answers", "batches", "log_likelihoods", "opened", "pictures", "with_pictures"]

IMAGE = "<image>"  # where an image stands in a text of a task, in both harnesses
LENGTHS = ("max_new_tokens", "max_gen_toks", "max_tokens", "max_completion_tokens")  # names of one option in tasks
OF_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
)  # without effect on greedy decoding, where tasks often set them

Row = Mapping[str, Any]  # of generate_many and score_many


def opened(model: str | Probe, device: str | None, options: Mapping[str, Any]) -> Probe:
    """The probe of a harness: a given one, or that of a checkpoint or of the URL of a server.

    Args:
        model: as on vlmprobe's command line, or a probe.
        device: as in :func:`vlmprobe.load`; None for its default.
        options: arguments of :func:`vlmprobe.load`, or of :func:`vlmprobe.connect` for a URL.

    Raises:
        CapabilityError: in one of several processes that a launcher has started, each of which would ask everything.
    """
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise CapabilityError(
            f"This is one of {processes} processes of a launcher: run the harness in a single process. To use several "
            "GPUs, give the URL of a server of the model, or device=auto for a model that one GPU does not hold."
        )
    if isinstance(model, Probe):
        return model
    if is_server(model):
        if device is not None:
            raise CapabilityError(f"{model} is a server, which has loaded its model: leave out device={device}.")
        return connect(model, **options)
    return load(model, **options) if device is None else load(model, device=device, **options)


def batches(size: int | str) -> int | Literal["auto"]:
    """A batch size as harnesses give it, a number or its text, as a probe takes it, which checks it."""
    return int(size) if isinstance(size, str) and size.isdigit() else size  # type: ignore[return-value]


def pictures(given: Any) -> list[Image.Image]:
    """The images that a task gives for a document: one or a list, or None for none.

    Raises:
        ImageError: for anything but PIL images. Texts are cells of a data set, and would be read as paths or addresses.
    """
    listed = list(given) if isinstance(given, (list, tuple)) else [] if given is None else [given]
    for each in listed:
        if not isinstance(each, Image.Image):
            raise ImageError(
                f"a task gives {type(each).__name__} for an image: vlmprobe takes PIL images of a harness, as datasets "
                "reads a column of images. Files are opened by the task, and videos are given as frames."
            )
    return listed


def with_pictures(messages: Sequence[Row], images: Sequence[Image.Image], *, first: bool = False) -> list[Row]:
    """Chat messages of texts, with an image wherever ``<image>`` stands.

    Args:
        messages: with a ``role`` and a text as ``content``.
        images: in the order of their marks. Without any the texts are left as they are.
        first: put the images before the text of the last message if no text has a mark.

    Raises:
        MessageError: if the texts have another number of marks.
    """
    marks = sum(each["content"].count(IMAGE) for each in messages) if images else 0
    if first and not marks and images:
        (*before, last), parts = messages, [{"type": "image", "image": each} for each in images]
        return [*before, {**last, "content": [*parts, {"type": "text", "text": last["content"]}]}]
    if marks != len(images):
        raise MessageError(
            f"the text has {IMAGE} {marks} times for {len(images)} images: write it once where each image stands. "
            "(Examples of few-shot prompts bring marks of their own, and a harness gives no images for them.)"
        )
    rest = iter(images)

    def parts_of(text: str) -> list[Row]:
        head, *tail = text.split(IMAGE) if images else [text]
        found: list[Row] = [{"type": "text", "text": head}]
        for each in tail:
            found += [{"type": "image", "image": next(rest)}, {"type": "text", "text": each}]
        return [part for part in found if part.get("text") != ""]

    return [{**each, "content": parts_of(each["content"]) if images else each["content"]} for each in messages]


def log_likelihoods(
    probe: Probe, wanted: Sequence[tuple[Hashable, str]], read: Callable[[int], Row], batch_size: Any
) -> Iterator[tuple[int, tuple[float, bool]]]:
    """The log-likelihood of each continuation, as its place and (nats, whether greedy decoding gives it).

    Continuations of one prompt are the candidates of one request, and so share its prefill.

    Args:
        probe: to query.
        wanted: what tells the prompt of each request from others, and its continuation.
        read: the prompt of the request at a place, as a row with an id; called when it is about to be asked.
        batch_size: as in :meth:`Probe.score_many`.

    Raises:
        ResultError: for a continuation without a log-probability, which a harness would take for the likeliest.
    """
    prompts: dict[Hashable, list[int]] = defaultdict(list)
    for place, (prompt, _) in enumerate(wanted):
        prompts[prompt].append(place)
    rows = (
        {**read(places[0]), "candidates": list(dict.fromkeys(wanted[place][1] for place in places))}
        for places in prompts.values()
    )
    for places, scores in zip(prompts.values(), probe.score_many(rows, batch_size=batch_size), strict=True):
        greedy = [bool((table.ranks == 0).all()) for table in scores.tables]
        found = dict(zip(scores.candidates, zip(scores.logprobs.tolist(), greedy, strict=True), strict=True))
        for place in places:
            text = wanted[place][1]
            if math.isnan(found[text][0]):
                raise ResultError(f"{scores.meta['id']}: {text!r} has no log-probability: the engine does not give it")
            yield place, found[text]


def answers(
    probe: Probe, wanted: Sequence[Row], read: Callable[[int], Row], batch_size: Any, most: int, out: Any = None
) -> Iterator[tuple[int, str]]:
    """The answer to each request up to its first stop string, as its place and text.

    Requests with equal options run together. Decoding is greedy unless the options say otherwise.

    Args:
        probe: to query.
        wanted: the generation options of each request, as tasks write them.
        read: the prompt of the request at a place, as a row with an id; called when it is about to be asked.
        batch_size: as in :meth:`Probe.generate_many`.
        most: how many new tokens where the options do not say.
        out: a folder to keep the answers in with the numbers of their tokens, a run in it for each set of options; the
            same requests again are answered from there.
    """
    alike: dict[str, list[int]] = defaultdict(list)
    for place, given in enumerate(wanted):
        alike[json.dumps(given, sort_keys=True, default=repr)].append(place)
    for written, places in alike.items():
        options, until = _generation(wanted[places[0]], most)
        if out is None:
            results = probe.generate_many(map(read, places), batch_size=batch_size, prompt=False, **options)
            texts: Iterator[str] = (result.text for result in results)
        else:
            folder = Path(out) / hashlib.blake2b(written.encode(), digest_size=4).hexdigest()
            texts = iter(_kept(probe, map(read, places), folder, batch_size, options))
        for place, text in zip(places, texts, strict=True):
            yield place, min((text.partition(stop)[0] for stop in until), key=len, default=text)


def _kept(probe: Probe, rows: Iterator[Row], folder: Path, batch_size: Any, options: Row) -> list[str]:
    """The answers to rows, by a run into a folder.

    Raises:
        ResultError: if a row failed, for which a harness has no place.
    """
    summary = run(probe, rows, out=folder, batch_size=batch_size, **options)
    if summary.interrupted:
        raise KeyboardInterrupt
    opened_run = open_run(folder)
    if (failed := opened_run.failed()).num_rows:
        first = failed.slice(0, 1).to_pylist()[0]
        raise ResultError(f"{failed.num_rows} requests failed; of {first['id']}: {first['error']}")
    by_row = {each["row"]: each["text"] for each in opened_run.table(["row", "text"]).to_pylist()}
    return [by_row[row] for row in range(summary.rows)]


def _generation(given: Row, most: int) -> tuple[dict[str, Any], list[str]]:
    """Generation options of a task as those of a probe, and its stop strings."""
    options = {name: value for name, value in given.items() if value is not None}
    until = options.pop("until", [])
    until = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
    lengths = {name: options.pop(name) for name in LENGTHS if name in options}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name}={value}" for name, value in lengths.items())
        raise GenerationOptionError(f"{told} name one option: give it once, as the task does.")
    options = {"max_new_tokens": next(iter(lengths.values()), most), **greedy_by_default(options)}
    if not options.get("temperature") and options.get("do_sample") in (None, False):
        options = {"do_sample": False, **{name: each for name, each in options.items() if name not in OF_SAMPLING}}
    return options | ({"stop_strings": until} if until else {}), until
