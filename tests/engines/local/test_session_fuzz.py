"""Random calls of two sessions on one model, with changes of the model in between, against forwards of the model."""

from __future__ import annotations

import random
from contextlib import suppress

import numpy as np
import pytest
import torch
from common import picture

import vlmprobe
from vlmprobe.engines.local.model_state import alone, to_model

CLOSE = 1e-4
WORDS = [
    "a",
    "tiger",
    "in",
    "the",
    "grass",
    "and",
    "one",
    "bird",
    "that",
    "sang",
    "red",
    "yes",
    "no",
    "cat",
    "which",
    "colour",
    "is",
    "it",
]
TEXTS = [" ".join(random.Random(seed).choices(WORDS, k=3 + 7 * seed)) + "?" for seed in range(4)]
CANDIDATES = ["yes", "yes it is", "no", "red nine 9", "y", "a tiger in the grass and one bird"]
OPTIONS = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
QUICK = ("qwen3_vl",)
MORE = (
    "internvl",
    "gemma3",
    "gemma4",
    "mllama",
    "lfm2_vl",
    "minicpmv4_6",
    "idefics3",
    "qwen2_vl",
    "qwen3_5",
    "llava_onevision",
)


class Fuzz:
    """A model of its own, two sessions on it, and what is drawn."""

    def __init__(self, folder, seed):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.draw = random.Random(seed)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.probe = vlmprobe.wrap(self.model, self.processor)
        self.sessions = [self.probe.session(), self.probe.session(prefix_cache_gb=1e-3)]
        self.image = picture(7)  # edited in place
        self.handle, self.steered = None, 0.0
        self.log = []

    # -- what is asked -----------------------------------------------------------------------------------

    def question(self):
        images = self.draw.choice([[], [self.image], [picture(1)], [picture(2, 64, 40), self.image], [self.image] * 2])
        parts = [*({"type": "image", "image": each} for each in images)]
        parts.insert(self.draw.randint(0, len(parts)), {"type": "text", "text": self.draw.choice(TEXTS)})
        parts.append({"type": "text", "text": self.draw.choice(TEXTS)})
        turns = [{"role": "user", "content": parts}]
        if self.draw.random() < 0.3:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": self.draw.choice(WORDS)}]})
            if self.draw.random() < 0.5:
                turns.append({"role": "user", "content": [{"type": "text", "text": self.draw.choice(TEXTS)}]})
        return turns

    def score(self, session):
        question, candidates = self.question(), self.draw.sample(CANDIDATES, self.draw.randint(1, 4))
        self.require_scores(session.score(question, candidates), question, candidates)

    def score_many(self, session):
        questions = [self.question() for _ in range(self.draw.randint(2, 4))]
        size = self.draw.choice([1, 3, "auto"])
        found = session.score_many(questions, CANDIDATES[:3], batch_size=size, progress=False)
        for question, scores in zip(questions, found, strict=True):
            self.require_scores(scores, question, CANDIDATES[:3])
            if self.draw.random() < 0.2:  # closed in the middle
                found.close()
                return

    def generate(self, session):
        question = self.question()
        self.require_answer(session.generate(question, **OPTIONS), question)

    def stream(self, session):
        question = self.question()
        with session.stream(question, **OPTIONS) as tokens:
            for _ in tokens:
                if self.draw.random() < 0.3:
                    break
        self.require_answer(tokens.result, question)

    def failure(self, session):
        """A call that an error ends at some run of the second layer; numbers of later calls must not show it."""
        left = [self.draw.randint(1, 5)]
        layer = session.layers[1]
        kind, forward = type(layer), type(layer).forward
        wrong = self.draw.choice([RuntimeError, KeyboardInterrupt])("stopped")

        def fails(module, *args, **kwargs):
            left[0] -= module is layer
            if not left[0]:
                raise wrong
            return forward(module, *args, **kwargs)

        kind.forward = fails
        try:
            with suppress(RuntimeError, KeyboardInterrupt):
                if self.draw.random() < 0.5:
                    session.score(self.question(), CANDIDATES)
                else:
                    session.generate(self.question(), **OPTIONS)
        finally:
            kind.forward = forward

    # -- what is changed ---------------------------------------------------------------------------------

    def trained(self, session):
        weight = self.draw.choice([each for each in session.layers[0].parameters() if each.dim() == 2])
        with torch.no_grad():
            weight.mul_(1.1)

    def row(self, session):
        weight = self.draw.choice([each for each in session.layers[1].parameters() if each.dim() == 2])
        weight.data[self.draw.randrange(len(weight))] = 0

    def embedded(self, _):
        self.model.get_input_embeddings().weight.data.mul_(1.05)

    def head(self, _):
        weight = self.model.get_output_embeddings().weight
        weight.data += 0.05 * weight.data.roll(1, 0)

    def hook(self, session):
        """Steer a layer, or another way than before, or no more: the hook is the same, what it does is not."""
        if self.handle is None:
            norm = next(each for name, each in session.layers[0].named_modules() if "norm" in name)
            self.handle = norm.register_forward_pre_hook(lambda _, given: (given[0] + self.steered, *given[1:]))
        elif self.draw.random() < 0.3:
            self.handle.remove()
            self.handle = None
        self.steered = self.draw.choice([0.0, 0.5, 2.0])

    def mode(self, _):
        self.model.train(self.draw.random() < 0.5)

    def painted(self, _):
        corner = self.draw.randrange(20)
        self.image.paste(tuple(self.draw.choices(range(256), k=3)), (corner, corner, corner + 20, corner + 15))

    def attention(self, _):
        self.model.set_attn_implementation(self.draw.choice(["eager", "sdpa"]))

    # -- what must hold ----------------------------------------------------------------------------------

    def run(self, steps):
        calls = [self.score, self.score, self.generate, self.score_many, self.stream, self.failure]
        changes = [self.trained, self.row, self.embedded, self.head, self.mode, self.painted, self.attention]
        changes += [self.hook] * 6
        for _ in range(steps):
            step = self.draw.choice(calls if self.draw.random() < 0.7 else changes)
            session = self.draw.choice(self.sessions)
            self.log.append(f"{step.__name__} of session {self.sessions.index(session)}")
            step(session)
            for each in self.sessions:
                held = each.engine.prefixes
                sizes = [entry.prefix.size for entry in held._entries]
                assert len(sizes) < 2 or sum(sizes) <= held.limit, self.log

    @torch.no_grad()
    def rows(self, question, ids, drop=0):
        """float64 log-probabilities [S, V] of a forward over a prompt without its last ids, and these ids."""
        adapter = self.probe.engine.adapter
        encoding = adapter.encode([self.probe.conversation(question)])
        inputs = adapter.extend(encoding.inputs, torch.tensor([list(map(int, ids))]), drop)
        with alone(adapter):
            return adapter.model(**to_model(adapter.model, inputs)).logits[0].double().log_softmax(-1).numpy()

    def require_scores(self, scores, question, candidates):
        assert scores.candidates == candidates
        length = len(self.probe.engine.prompt_ids(self.probe.conversation(question)))
        for table in scores.tables:
            start = int(table.positions[0])
            due = self.rows(question, table.ids, length - start)[start - 1 : -1]
            self.require(table.logprobs, due[np.arange(len(table)), table.ids])

    def require_answer(self, result, question):
        start, ids = len(result.input_ids), result.output.ids
        rows = self.rows(question, ids)
        self.require(result.output.logprobs, rows[start - 1 : -1][np.arange(len(ids)), ids])
        at = np.flatnonzero(result.prompt.scored)
        places = result.prompt.positions[at]
        self.require(result.prompt.logprobs[at], rows[places - 1, result.prompt.ids[at]])

    def require(self, found, due):
        np.testing.assert_allclose(found, due, atol=CLOSE, err_msg=f"after {self.log}")


@pytest.mark.parametrize("name", QUICK)
def test_random_calls_and_changes(name, checkpoint):
    Fuzz(checkpoint(name), seed=1).run(6)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", [*QUICK, *MORE])
def test_many_random_calls_and_changes(name, seed, checkpoint):
    Fuzz(checkpoint(name), seed).run(80)
