"""Measure our numbers and those of others against an independent forward, and write other-ways.md.

``python -m tools.docs.write_other_ways`` needs the environment of ``make bench``, and glance-vlm beside it (see
benchmarks/glance_peer.py); what is not installed is said on the page. ``--page`` only writes the page anew, from the
numbers in benchmarks/other_ways.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "other-ways.md"
RESULTS = ROOT / "benchmarks" / "other_ways.json"
FAMILIES = ("gemma3", "mllama", "idefics3", "mistral3", "aya_vision", "qwen3_vl", "internvl", "llava")
PEERS = ("vlmprobe", "minicons", "glance-vlm")
QUESTION = "Question: Is it red?\nAnswer Yes or No."
WORDS = ("right", "The", " The", " blue")  # the first two that are one token after a prompt are its two answers
CANDIDATES = ("Yes", "No", "a red boat", "two cats")
CLOSE = 1e-4  # nats up to which numbers are called the same
SIDES = (128, 96)  # pixels of the image: 4 x 3 positions of Qwen3-VL, so that no budget resizes it


def image() -> Any:
    """An image of smooth noise."""
    import numpy as np
    from PIL import Image

    rough = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize(SIDES, Image.Resampling.BICUBIC)


@dataclass
class Checkpoint:
    """A tiny checkpoint of one architecture, as transformers loads it, and what it is asked."""

    folder: Path
    image: Any

    @cached_property
    def processor(self) -> Any:
        """Its processor."""
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(self.folder)

    @cached_property
    def model(self) -> Any:
        """The model in float32."""
        return self.loaded("float32")

    def loaded(self, dtype: str) -> Any:
        """The model, loaded anew."""
        import torch
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText.from_pretrained(self.folder, dtype=getattr(torch, dtype)).eval()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The question, in the order in which glance writes it."""
        from benchmarks.glance_peer import LABEL

        content = [{"type": "text", "text": f"Image `{LABEL}`:"}, {"type": "image"}, {"type": "text", "text": QUESTION}]
        return [{"role": "user", "content": content}]

    @cached_property
    def text(self) -> str:
        """The prompt as text, by the checkpoint's chat template."""
        return self.processor.apply_chat_template(self.messages, add_generation_prompt=True, tokenize=False)

    @cached_property
    def answers(self) -> dict[str, int]:
        """Two words that are one token after the prompt, and their ids."""
        tokenizer = self.processor.tokenizer
        before = tokenizer(self.text, add_special_tokens=False)["input_ids"]
        found = {}
        for word in WORDS:
            *begun, last = tokenizer(self.text + word, add_special_tokens=False)["input_ids"]
            if begun == before:
                found[word] = last
        return dict(list(found.items())[:2])

    @cached_property
    def own(self) -> Mapping[str, Any]:
        """Inputs that the processor makes of the conversation itself."""
        (turn,) = self.messages
        content = [{**part, "image": self.image} if part["type"] == "image" else part for part in turn["content"]]
        return self.processor.apply_chat_template(
            [{**turn, "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip


# -- the numbers ------------------------------------------------------------------------------------------


def reference(held: Checkpoint) -> dict[str, list[float]]:
    """Log-probabilities from a forward of each whole text in float64.

    Raises:
        SystemExit: the text of a prompt does not give the ids that the processor makes of the conversation.
    """
    import torch

    from vlmprobe.testing.float64 import exactly

    model, ids = held.loaded("float64"), held.own["input_ids"]
    begin = held.processor.tokenizer.bos_token
    written = bool(begin) and held.text.startswith(begin)  # by the template, else the tokenizer adds it

    def rows(text: str) -> tuple[Any, Any]:
        made = held.processor(text=[text], images=[[held.image]], add_special_tokens=not written, return_tensors="pt")
        inputs = {name: each.double() if each.is_floating_point() else each for name, each in made.items()}
        with torch.no_grad(), exactly():
            return inputs["input_ids"][0], model(**inputs).logits[0].log_softmax(-1)

    prompt, after = rows(held.text)
    if prompt.tolist() != ids[0].tolist():
        raise SystemExit(f"{held.folder.name}: the text of the prompt does not give the ids of the conversation")
    first = [float(after[-1, id]) for id in held.answers.values()]
    summed = []
    for candidate in CANDIDATES:
        whole, told = rows(held.text + candidate)
        place = len(prompt)
        if whole[:place].tolist() != prompt.tolist():
            raise SystemExit(f"{held.folder.name}: {candidate!r} changes the ids of the prompt")
        summed.append(float(told[place - 1 : -1].gather(-1, whole[place:, None]).sum()))
    return {"answers": first, "candidates": summed}


def ours(held: Checkpoint) -> dict[str, list[float]]:
    """By :meth:`vlmprobe.Probe.score`."""
    import vlmprobe

    probe = vlmprobe.load(held.folder, device="cpu", dtype="float32")
    return {
        "answers": probe.score(held.messages, list(held.answers), held.image).logprobs.tolist(),
        "candidates": probe.score(held.messages, list(CANDIDATES), held.image).logprobs.tolist(),
    }


def minicons(held: Checkpoint) -> dict[str, Any]:
    """By its ``next_word_distribution`` and ``conditional_score``; with the inputs that it makes."""
    from benchmarks import peers

    scorer = peers.scorer(held.model, held.processor)
    held.processor.tokenizer.padding_side = "right"  # as minicons had set it
    (row,) = peers.next_words(scorer, held.processor, [held.text], [[held.image]])
    scored = scorer.conditional_score(
        [held.text] * len(CANDIDATES), list(CANDIDATES), image=[[held.image]] * len(CANDIDATES), separator="",
        reduction=lambda each: each.double().sum().item(),
    )  # fmt: skip
    return {
        "answers": [float(row[id]) for id in held.answers.values()],
        "candidates": scored,
        "why": why(held, scorer.encode([held.text], [[held.image]])),
    }


def glance(held: Checkpoint) -> dict[str, Any]:
    """By its backend for Qwen3-VL, and its generic one for others; it has none for texts of several tokens."""
    import numpy as np

    from benchmarks import glance_peer

    cached = type(held.model).__name__ == "Qwen3VLForConditionalGeneration"
    backend = glance_peer.backend(held.model, held.processor, cached, [[id] for id in held.answers.values()])
    own = int((held.own["input_ids"] == held.model.config.image_token_id).sum())
    if cached:
        backend.image_token_budget = own  # else it would resize the image of so small a checkpoint
    said = glance_peer.score(backend, [QUESTION], held.image)
    both = 1 - said.off_mass[0]  # of both answers
    found = {"answers": [float(np.log(both) - np.logaddexp(0, -sign * said.z[0])) for sign in (1, -1)]}
    if not cached:
        return {**found, "why": why(held, held.processor(text=held.text, images=[held.image], return_tensors="pt"))}
    taken = said.usage.image_tokens
    return {**found, "why": f"resizes the image to {taken} positions, not {own}" if taken != own else ""}


def why(held: Checkpoint, made: Mapping[str, Any]) -> str:
    """What sets the inputs of a peer apart from the processor's own; empty if nothing does."""
    ids, own = made["input_ids"][0].tolist(), held.own["input_ids"][0].tolist()
    begin = held.processor.tokenizer.bos_token_id
    found = []
    if ids != own:
        more = ids.count(begin) - own.count(begin)
        rest = [each for each in ids if each != begin] == [each for each in own if each != begin]
        found.append("a second begin token" if more == 1 and rest else "other ids of the prompt")
    if missing := sorted(set(held.own) - set(made)):
        found.append(f"without {', '.join(missing)}")
    return "; ".join(found)


RUNS: dict[str, Callable[[Checkpoint], dict[str, Any]]] = {"vlmprobe": ours, "minicons": minicons, "glance-vlm": glance}


def missing() -> dict[str, str]:
    """Peers that cannot run here, and why."""
    from benchmarks import glance_peer

    found = {}
    try:
        import minicons.scorer  # noqa: F401
    except ImportError as error:
        found["minicons"] = f"not installed ({error})"
    if told := glance_peer.missing():
        found["glance-vlm"] = told
    return found


def measure(names: Sequence[str]) -> dict[str, Any]:
    """All numbers of the families."""
    from vlmprobe.testing import tiny

    absent, found = missing(), {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            held = Checkpoint(tiny.build(name, Path(folder) / name), image())
            record: dict[str, Any] = {"words": list(held.answers), "texts": CANDIDATES, "reference": reference(held)}
            for peer in (each for each in PEERS if each not in absent):
                try:
                    record[peer] = RUNS[peer](held)
                except Exception as error:  # noqa: BLE001 - whatever it fails with is said
                    record[peer] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
            found[name] = record
    return {"when": time.strftime("%Y-%m-%d", time.gmtime()), "versions": versions(absent), "families": found}


def versions(absent: Mapping[str, str]) -> dict[str, str]:
    """Of the peers and of what they run on; of a peer that is absent, why."""
    distributions = {"vlmprobe": "vlm-logit-probe"}
    found = {}
    for name in (*PEERS, "transformers", "torch"):
        try:
            found[name] = absent.get(name) or version(distributions.get(name, name))
        except PackageNotFoundError:
            found[name] = "of an unknown version"
    return {**found, "python": platform.python_version()}


# -- the page ---------------------------------------------------------------------------------------------

HEAD = """\
# Against the other ways

The same log-probabilities by vlmprobe, by others, and by a forward that is independent of all of them. Written by
`python -m tools.docs.write_other_ways` from [benchmarks/other_ways.json](../../benchmarks/other_ways.json).

Each row is a tiny checkpoint with random weights of the true architecture (`vlmprobe.testing.tiny`), asked one question
about one image. The reference is transformers' own forward in float64 on the ids that the model's own processor makes
of the conversation (`apply_chat_template(tokenize=True)`); the others run in float32. A difference is the greatest of a
row, in nats, and in **bold** where it is above 1e-4.
"""
ANSWERS = """\
## Two answers

Log-probabilities of two answers as the next token. The small vocabularies of these checkpoints spell "Yes" in several
tokens, which glance-vlm refuses, so that two words that are one token stand for yes and no. minicons is asked by
`next_word_distribution`, glance-vlm by its prefix cache on Qwen3-VL and by its generic backend elsewhere. Its backend
for Qwen3-VL sizes images itself; here its budget is what the checkpoint's own processor makes of the image.
"""
TEXTS = """\
## Candidates

Log-probabilities of {texts}, each summed over its tokens.
minicons is asked by `conditional_score`; glance-vlm reads single tokens only.
"""
END = """\
## Why they differ

A chat template writes the begin token, and so does a tokenizer that is given a text. Whoever renders a conversation as
text and then tokenizes it with the usual settings has the token twice, and the model answers another prompt. vlmprobe
lets the tokenizer add special tokens only where the template has not written the begin token. The weights are random:
a difference says that the prompt is another one, not how much that matters to a trained model.

Speed is on the page of [performance](performance.md).

## Reproduce

```bash
make .venv/.installed-bench
.venv/bin/python -m pip install --constraint constraints.txt pydantic python-dotenv pyyaml scipy
.venv/bin/python -m pip install --no-deps glance-vlm==0.3.1
.venv/bin/python -m tools.docs.write_other_ways
```

glance-vlm runs on Python 3.11 only and is installed beside: what it asks pip for does not fit the tested set
(constraints.txt). Without a peer, its column is empty and the line of versions says so.
"""


def page(held: Mapping[str, Any]) -> str:
    """The page's text."""
    families = held["families"]
    texts = ", ".join(f'"{each}"' for each in next(iter(families.values()))["texts"])
    run = ", ".join(f"{name} {told}" for name, told in held["versions"].items())
    parts = [HEAD, f"Run on {held['when']} with {run}.\n", ANSWERS, *_table(families, "answers", PEERS)]
    parts += ["", TEXTS.format(texts=texts), *_table(families, "candidates", PEERS[:2]), "", END]
    return "\n".join(parts)


def _table(families: Mapping[str, Any], what: str, peers: Sequence[str]) -> Iterator[str]:
    yield f"| architecture | reference | {' | '.join(peers)} | why |\n|{'---|' * (len(peers) + 3)}"
    for name, record in families.items():
        told = ", ".join(f"{each:.4f}" for each in record["reference"][what])
        if what == "answers":
            told = ", ".join(
                f'"{word}" {each:.4f}' for word, each in zip(record["words"], record["reference"][what], strict=True)
            )
        cells = [_difference(record, what, peer) for peer in peers]
        yield f"| {name} | {told} | {' | '.join(cells)} | {_reasons(record, what, peers)} |"


def difference(record: Mapping[str, Any], what: str, peer: str) -> float | None:
    """The greatest difference to the reference in nats; None where there are no numbers."""
    numbers = record.get(peer, {}).get(what)
    if numbers is None:
        return None
    return max(abs(one - other) for one, other in zip(numbers, record["reference"][what], strict=True))


def _difference(record: Mapping[str, Any], what: str, peer: str) -> str:
    if (found := difference(record, what, peer)) is None:
        return "fails" if "error" in record.get(peer, {}) else "-"
    return f"**{found:.2g}**" if found > CLOSE else f"{found:.1g}"


def _reasons(record: Mapping[str, Any], what: str, peers: Sequence[str]) -> str:
    """What sets the peers' inputs apart, where their numbers differ, and what they fail with."""
    found: dict[str, list[str]] = {}
    for peer in peers:
        apart = (difference(record, what, peer) or 0) > CLOSE
        reason = record.get(peer, {}).get("error") or (record.get(peer, {}).get("why") if apart else "")
        if reason:
            found.setdefault(reason, []).append(peer)
    return "; ".join(f"{', '.join(peers)}: {reason}" for reason, peers in found.items()).replace("|", "\\|")


def main() -> None:
    """Measure, store, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--page", action="store_true", help="only write the page, from the stored numbers")
    given = parser.parse_args()
    if not given.page:
        for peer, reason in missing().items():
            print(f"{peer} is left out: {reason}")  # noqa: T201
        warnings.simplefilter("ignore")
        RESULTS.write_text(json.dumps(measure(given.families), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
