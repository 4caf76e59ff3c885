"""The timed tasks, and for each its variants, on one model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from benchmarks import asked, glance_peer, peers, runs
from benchmarks.model import SIZES, load, picture, words
from benchmarks.qwen3_vl import SIDES
from vlmprobe.engines.local.row_stats import row_stats

__all__ = ["CASES", "Bench", "Case", "agreement"]

Variants = Mapping[str, Callable[[], Any] | str]  # a text says why a variant cannot run here
QUESTION = 40  # tokens
TEMPLATE = 19  # tokens that the chat template puts around a question
NEW = 64
WORDS = 151_656  # vocabulary of Qwen2 and later


@dataclass(frozen=True)
class Bench:
    """A model of one size and dtype, bare and behind a probe."""

    size: str
    dtype: str
    device: str = "cpu"
    vocabulary: int | None = None  # overrides that of the size

    @cached_property
    def model(self) -> Any:
        return load(self.size, self.dtype, self.vocabulary)[0].to(self.device)

    @cached_property
    def processor(self) -> Any:
        return load(self.size, self.dtype, self.vocabulary)[1]

    @cached_property
    def runs(self) -> list[None]:
        """Gets one entry per forward pass of the vision tower from here on."""
        found: list[None] = []
        inner = self.model.model
        tower = inner.visual if hasattr(inner, "visual") else inner.vision_tower
        tower.register_forward_pre_hook(lambda *_: found.append(None))
        return found

    @cached_property
    def probe(self) -> Any:
        import vlmprobe

        return vlmprobe.wrap(self.model, self.processor)

    @cached_property
    def scorer(self) -> Any:
        return peers.scorer(self.model, self.processor)

    @cached_property
    def glance(self) -> Any:
        return glance_peer.backend(self.model, self.processor)

    def picture(self, tiles: int = 1, seed: int = 0) -> Any:
        if self.size == "embedded":
            from vlmprobe.demo.scenes import scene_at

            return scene_at(11, seed).picture
        if self.size == "20m":
            return picture(1, max(SIDES), seed).resize(SIDES)
        return picture(tiles, SIZES[self.size]["side"], seed)

    def inputs(self, question: str, image: Any = None) -> peers.Inputs:
        return peers.inputs_of(self.model, self.processor, peers.chat(self.processor, question, image), image)


@dataclass(frozen=True)
class Case:
    """One task: its variants on a model, the number of rounds, the slow variants that run only once, and the models."""

    what: str
    variants: Callable[[Bench], Variants]
    rounds: int
    once: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ("1b", "small", "tiny")


def answer(bench: Bench, image: Any, new: int = NEW, prompt: bool = True) -> Variants:
    """Greedy answers of ``new`` tokens, with the default columns on the answer and, by default, on the prompt."""
    text = words(QUESTION)
    inputs = bench.inputs(text, image)
    head = bench.model.get_output_embeddings()
    rows = torch.randn(QUESTION + TEMPLATE - 1, head.weight.shape[1]).to(head.weight)
    return {
        "model.generate": partial(peers.bare_generate, bench.model, inputs, new),
        "vlmprobe": partial(
            bench.probe.generate, text, image=image, prompt=prompt, max_new_tokens=new, do_sample=False
        ),
        "head on the prompt's rows": partial(_head, head, rows),
        "generate(output_logits=True)": partial(peers.generated_rows, bench.model, inputs, new),
    }


@torch.no_grad()
def _head(head: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Logits of text rows [R, H] only: the minimum cost of any numbers on a prompt."""
    return head(rows)


def prompt(bench: Bench, tokens: int) -> Variants:
    """The columns of a text prompt."""
    text = words(tokens)
    inputs = bench.inputs(text)
    return {
        "prefill": partial(peers.bare_generate, bench.model, inputs, 1),
        "vlmprobe": partial(bench.probe.generate, text, max_new_tokens=1, do_sample=False),
        "forward + log_softmax": partial(peers.forward_rows, bench.model, inputs),
    }


def columns(bench: Bench, tokens: int) -> Variants:
    """The columns of a text prompt with a vocabulary of a real size, after a decoder that costs next to nothing."""
    return prompt(replace(bench, size="tiny", vocabulary=WORDS), tokens)


def reduction(bench: Bench) -> Variants:
    """Columns of 54 rows of logits, which is a chunk of 32 MB, by vlmprobe and by one call of torch for each."""
    rows = torch.randn(54, WORDS, generator=torch.Generator().manual_seed(0)).to(bench.device)
    ids = torch.arange(54, device=bench.device)
    return {"vlmprobe": partial(row_stats, rows, ids, 10), "one call for each column": partial(_plain, rows, ids)}


def _plain(rows: torch.Tensor, ids: torch.Tensor) -> Any:
    logprobs = rows.log_softmax(-1)
    chosen = logprobs.gather(-1, ids[:, None])
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return chosen, entropy, (logprobs > chosen).sum(-1), rows.logsumexp(-1), logprobs.topk(10, dim=-1)


def candidates(bench: Bench, count: int, peer: bool, tokens: int = 3) -> Variants:
    """Candidates of ``tokens`` tokens as the answer to a question about an image."""
    text, image = words(QUESTION), bench.picture()
    texts = list(dict.fromkeys(words(tokens, seed) for seed in range(2 * count)))[:count]
    found: dict[str, Callable[[], Any]] = {
        "prefill": partial(peers.bare_generate, bench.model, bench.inputs(text, image), 1),
        "vlmprobe": partial(bench.probe.score, text, texts, image=image),
    }
    if peer:
        given = (bench.model, bench.processor, text, image, texts)
        found |= {
            "full forward each": partial(peers.each_candidate, *given),
            "minicons": partial(peers.minicons, bench.scorer, *given[1:]),
        }
    return found


def questions(bench: Bench, count: int = 8, new: int = 2) -> Variants:
    """Short questions about one image, each with an answer of two tokens."""
    image = bench.picture()
    asked = [words(8, seed) for seed in range(count)]
    options = {"max_new_tokens": new, "do_sample": False}

    def calls() -> list[Any]:
        return [bench.probe.generate(each, image=image, **options) for each in asked]

    def session() -> list[Any]:
        with bench.probe.session(image) as about:
            return [about.generate(each, **options) for each in asked]

    def many() -> list[Any]:
        return list(bench.probe.generate_many([_request(each, image) for each in asked], progress=False, **options))

    return {"8 calls": calls, "session": session, "generate_many": many}


def requests(bench: Bench, count: int = 32, new: int = 16) -> Variants:
    """Questions of 6 to 37 tokens without an image, each with an answer of 16 tokens."""
    asked = [words(6 + place, place) for place in range(count)]
    options = {"max_new_tokens": new, "do_sample": False}
    return {
        "one by one": lambda: [bench.probe.generate(each, **options) for each in asked],
        "generate_many": lambda: list(bench.probe.generate_many(asked, progress=False, **options)),
    }


def batches(count: int = 64, new: int = 16, files: bool = False) -> Variants:
    """One question about each of many different pictures, with the embedded model, whatever the benchmark's own is."""
    import vlmprobe
    from vlmprobe.demo.scenes import scene_at

    probe = vlmprobe.load("demo")
    images: list[Any] = [scene_at(11, place).picture for place in range(count)]
    if files:
        folder = Path(mkdtemp())
        named = [str(folder / f"{place}.png") for place in range(count)]
        for name, image in zip(named, images, strict=True):
            image.save(name)
        images = named
    adapter = probe.engine.adapter
    given = (adapter.model, adapter.processor, "Describe the picture.", images, new)
    requests = [_request("Describe the picture.", each) for each in images]

    def many(**options: Any) -> list[str]:
        found = probe.generate_many(requests, progress=False, max_new_tokens=new, do_sample=False, **options)
        return [each.text for each in found]

    assert many() == peers.bare_batches(*given), "the same answers; and both have run"
    return {
        "batches of transformers": partial(peers.bare_batches, *given),
        "generate_many": many,
        "generate_many(prompt=False)": partial(many, prompt=False),
    }


def _request(question: str, image: Any) -> Any:
    from vlmprobe import Request

    return Request(question, image)


OWN = ("tiny",)  # of a case whose model is its own
CASES: dict[str, Case] = {
    "generate": Case(
        "64 new tokens after 40 tokens of text", lambda bench: answer(bench, None), 5, ("generate(output_logits=True)",)
    ),
    "generate_picture": Case(
        "64 new tokens after a picture and 40 tokens of text",
        lambda bench: answer(bench, bench.picture()),
        3,
        ("generate(output_logits=True)",),
    ),
    "prompt": Case("columns of 2,000 tokens of text", lambda bench: prompt(bench, 2000), 3, ("forward + log_softmax",)),
    "columns": Case("columns of 2,711 tokens and 151,656 words", lambda bench: columns(bench, 2711), 3, sizes=OWN),
    "reduction": Case("columns of 54 rows of 151,656 logits", reduction, 9, sizes=OWN),
    "candidates_16": Case(
        "16 candidates of 3 tokens after a picture",
        lambda bench: candidates(bench, 16, peer=True),
        3,
        ("full forward each", "minicons"),
    ),
    "candidates_1000": Case(
        "1,000 candidates of 3 tokens after a picture", lambda bench: candidates(bench, 1000, peer=False), 2
    ),
    "questions_8": Case("8 questions on one picture", questions, 2),
    "requests_32": Case("32 requests of different length", requests, 3),
    "asked_8": Case(
        "8 yes/no questions on one picture",
        asked.on_one,
        9,
        ("minicons",),
        ("1b", "20m"),
    ),
    "asked_64": Case("64 yes/no questions on 64 pictures", asked.one_each, 3, sizes=("20m", "embedded")),
    "asked_1000": Case("1,000 yes/no questions on one picture", asked.many_on_one, 2, sizes=("20m",)),
    "asked_100": Case(
        "100 yes/no questions on one picture", lambda bench: asked.many_on_one(bench, 100), 2, sizes=("1b",)
    ),
    "answers_16": Case("16 questions on one picture, 8 tokens each", asked.answers, 5, sizes=("20m",)),
    "yes_no_64": Case(
        "64 yes/no questions on 64 pictures", lambda bench: asked.yes_no(bench, 64, 1), 5, sizes=("embedded",)
    ),
    "yes_no_16": Case(
        "64 yes/no questions, 4 on each of 16 pictures",
        lambda bench: asked.yes_no(bench, 16, 4),
        5,
        sizes=("embedded",),
    ),
    "batches_64": Case("64 different pictures, embedded model", lambda bench: batches(), 11, sizes=OWN),
    "batches_64_files": Case(
        "files of 64 different pictures, embedded model", lambda bench: batches(files=True), 11, sizes=OWN
    ),
    "run_256": Case("a run over 256 rows, embedded model", lambda bench: runs.over_many(), 7, sizes=OWN),
    "run_candidates_256": Case(
        "a run over 256 rows with candidates, embedded model", lambda bench: runs.with_candidates(), 7, sizes=OWN
    ),
}


def agreement(bench: Bench, count: int = 4) -> Iterator[tuple[str, float]]:
    """Greatest difference in nats between vlmprobe and each peer, to verify that all compute the same numbers."""
    import numpy as np

    if bench.size == "20m":
        yield from asked.agreement(bench)
        return
    text, image = words(QUESTION), bench.picture()
    texts = [words(3, seed) for seed in range(count)]
    ours = bench.probe.score(text, texts, image=image).logprobs
    given = (bench.model, bench.processor, text, image, texts)
    yield "full forward each", float(np.abs(ours - peers.each_candidate(*given)).max())
    yield "minicons", float(np.abs(ours - peers.minicons(bench.scorer, *given[1:])).max())
    inputs = bench.inputs(text, image)
    result = bench.probe.generate(text, image=image, max_new_tokens=4, do_sample=False)
    theirs = peers.generated_rows(bench.model, inputs, 4).float().cpu().numpy()
    yield "generate(output_logits=True)", float(np.abs(result.output.logprobs - theirs).max())
    rows = peers.forward_rows(bench.model, inputs).float().cpu().numpy()
    scored = result.prompt.scored
    places = result.prompt.positions[scored] - 1
    yield "forward + log_softmax", float(np.abs(result.prompt.logprobs[scored] - rows[places]).max())
