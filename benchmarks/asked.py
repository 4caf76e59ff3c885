"""Timed tasks of questions: many on one picture, and one each on many pictures.

Every variant starts from the questions and the pictures: processing and tokenizing are part of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import beginning, glance_peer, peers
from benchmarks.model import words

if TYPE_CHECKING:
    from benchmarks.cases import Bench

__all__ = ["BATCH", "agreement", "answers", "many_on_one", "on_one", "one_each", "yes_no"]

Variants = Mapping[str, Callable[[], Any] | str]  # a text says why a variant cannot run
BATCH = 16  # the largest batch of vlmprobe's own choice


def questions(bench: Bench, count: int) -> list[str]:
    """Questions of 6 to 14 words, as glance writes them; of the embedded model, those that it was trained on."""
    if bench.size == "embedded":
        from vlmprobe.demo.handwriting import DIGITS
        from vlmprobe.demo.scenes import article

        return [f"Is there {article(word)} {word}?" for word in (DIGITS[place % 10] for place in range(count))]
    return [glance_peer.question(f" Is{words(6 + seed % 9, seed)}") for seed in range(count)]


def messages(bench: Bench, question: str) -> list[dict[str, Any]]:
    """A question about an image; with the label that glance gives an image, so that all read the same prompt."""
    content: list[dict[str, Any]] = [{"type": "image"}, {"type": "text", "text": question}]
    if bench.size != "embedded":
        content.insert(0, {"type": "text", "text": f"Image `{glance_peer.LABEL}`:"})
    return [{"role": "user", "content": content}]


def rendered(bench: Bench, asked: Iterable[str]) -> list[str]:
    """The prompts as text."""
    return [
        bench.processor.apply_chat_template(messages(bench, each), add_generation_prompt=True, tokenize=False)
        for each in asked
    ]


def _many(bench: Bench, asked: Iterable[str], images: Iterable[Any], spelt: Any = None) -> Any:
    """Scores of yes and no, in the usual spellings of vlmprobe or the given ones."""
    from vlmprobe import Request
    from vlmprobe.analysis.yes_no import NO, YES

    requests = [Request(messages(bench, each), image) for each, image in zip(asked, images, strict=True)]
    return bench.probe.score_many(requests, spelt or {"yes": YES, "no": NO}, progress=False)


def on_one(bench: Bench, count: int = 8) -> Variants:
    """Yes/no questions on one picture."""
    image, asked = bench.picture(), questions(bench, count)
    named = {str(place): messages(bench, each) for place, each in enumerate(asked)}

    def batched() -> Any:
        begun = beginning.begin(bench.model, bench.processor, rendered(bench, asked), image)
        return list(beginning.last_rows(bench.model, begun, BATCH))

    def minicons() -> Any:
        return peers.next_words(bench.scorer, bench.processor, rendered(bench, asked), [image] * count)

    found: dict[str, Callable[[], Any] | str] = {
        "one prefill, own tokens batched": batched,
        "score_many": lambda: list(_many(bench, asked, [image] * count)),
        "ask": lambda: bench.probe.ask(named, image),
        "minicons": minicons,
    }
    if bench.size == "20m":
        found["glance"] = glance_peer.missing() or partial(glance_peer.score, bench.glance, asked, image)
    return found


def many_on_one(bench: Bench, count: int = 1000) -> Variants:
    """The same for many: what their own tokens cost on a cache that is there already, against all of it."""
    image, asked = bench.picture(), questions(bench, count)
    begun = beginning.begin(bench.model, bench.processor, rendered(bench, asked), image)
    return {
        "own tokens batched": lambda: _drained(beginning.last_rows(bench.model, begun, BATCH)),
        "score_many": lambda: _drained(_many(bench, asked, [image] * count)),
    }


def answers(bench: Bench, count: int = 16, new: int = 8) -> Variants:
    """Questions on one picture that are answered, each with ``new`` tokens."""
    image, asked = bench.picture(), questions(bench, count)
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}

    def batch() -> Any:
        return beginning.whole_answers(bench.model, bench.processor, rendered(bench, asked), [image] * count, options)

    def many() -> Any:
        from vlmprobe import Request

        requests = [Request(messages(bench, each), image) for each in asked]
        found = bench.probe.generate_many(requests, batch_size=count, progress=False, **options)
        return [each.output.ids.tolist() for each in found]

    assert many() == batch().tolist(), "the same answers; and both have run"
    return {"batch of transformers": batch, "generate_many": many}


def one_each(bench: Bench, count: int = 64) -> Variants:
    """One yes/no question on each of many pictures."""
    images, asked = [bench.picture(seed=seed) for seed in range(count)], questions(bench, count)

    def batched() -> Any:
        texts = rendered(bench, asked)
        return list(beginning.full_batches(bench.model, bench.processor, texts, images, BATCH))

    return {"prompts batched": batched, "score_many": lambda: list(_many(bench, asked, images))}


def yes_no(bench: Bench, pictures: int, each: int) -> Variants:
    """Yes/no questions, some on each picture: one at a time, as ``yes_no_many`` once did, and together."""
    from vlmprobe.analysis.yes_no import yes_no_many

    images = [bench.picture(seed=seed) for seed in range(pictures)]
    asked = list(zip(questions(bench, pictures * each), [image for image in images for _ in range(each)], strict=True))

    def in_session() -> Any:
        with bench.probe.session() as session:
            return [session.yes_no(*one) for one in asked]

    return {
        "one at a time in a session": in_session,
        "one at a time": lambda: [bench.probe.yes_no(*one) for one in asked],
        "yes_no_many": lambda: list(yes_no_many(bench.probe, asked, progress=False)),
    }


def agreement(bench: Bench, count: int = 8) -> Iterator[tuple[str, float]]:
    """Greatest difference in nats between vlmprobe's log-odds of yes and those of each peer that can run."""
    import numpy as np

    image, asked = bench.picture(), questions(bench, count)
    spelt = {"yes": glance_peer.YES, "no": glance_peer.NO}
    scored = np.array([each.logprobs for each in _many(bench, asked, [image] * count, spelt)])
    ours = scored[:, 0] - scored[:, 1]
    encode = partial(bench.probe.tokenizer.encode, add_special_tokens=False)
    ids = [[id for (id,) in map(encode, texts)] for texts in spelt.values()]
    for name, run in on_one(bench, count).items():
        if name.startswith(("one prefill", "minicons")):
            rows = torch.stack(list(run())).double()
            theirs = rows[:, ids[0]].logsumexp(-1) - rows[:, ids[1]].logsumexp(-1)
            yield name, float(np.abs(ours - theirs.cpu().numpy()).max())
        elif name == "glance" and callable(run):
            yield name, float(np.abs(ours - run().z).max())


def _drained(results: Iterable[Any]) -> None:
    """Run through results that are not kept."""
    deque(results, maxlen=0)
