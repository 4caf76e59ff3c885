"""Shared by the checks: the probe under test, synthetic images, and the model's own forward as the reference."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlmprobe.adapter import Adapter, EncodedPrompt, Encoding
from vlmprobe.errors import CapabilityError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.probe import Probe
from vlmprobe.results.result import Result, Scores
from vlmprobe.results.table import TokenTable
from vlmprobe.testing.global_state import changes, state_of
from vlmprobe.testing.report import SkipCheck
from vlmprobe.testing.tolerance import scale_of, tolerances

__all__ = ["ANSWER", "BEAMS", "GREEDY", "NEW_TOKENS", "SHORT", "SYSTEM", "Subject", "text_rows"]

NEW_TOKENS = 6
SHORT = "What is in the picture?"
SYSTEM = "Answer in few words."
ANSWER = "A red boat."
LONG = "Describe the picture in one long sentence, and say which colours it has and where they are."
GREEDY = {"do_sample": False, "num_beams": 1}
BEAMS = {"do_sample": False, "num_beams": 3}


class Subject:
    """One probe under test. Encodings, forwards and answers that several checks need are computed once.

    Conversations go by name: ``"main"`` is one image and a question; ``"other"`` has another image of the same
    size, ``"wide"`` an image of another size and a longer question; ``"text"`` has none; ``"two"`` has two of
    different sizes, ``"other two"`` another first one, and ``"two other"`` another second one. ``"text first"`` has
    its image after the question, ``"system"`` a system message, ``"turns"`` two turns with an image each, of which
    ``"turns other first"`` and ``"turns other second"`` have another; ``"main +12"`` and ``"text +12"`` have twelve
    more words.
    """

    def __init__(self, probe: Probe, *, exact: bool = False) -> None:
        if not isinstance(getattr(getattr(probe, "engine", None), "adapter", None), Adapter):
            raise TypeError(
                "The checks compare a probe with its own model's forward, so they need one that runs in this "
                f"process (vlmprobe.load or vlmprobe.wrap), not {type(probe).__name__} {probe!r}."
            )
        self.probe = probe
        self.exact = exact  # whether this is the float64 rerun
        self.adapter: Adapter = probe.engine.adapter  # type: ignore[attr-defined]
        self.model = self.adapter.model
        self._untouched = state_of(self.model, self.adapter.tokenizer)
        self._encodings: dict[str, Encoding] = {}
        self._unavailable: dict[str, str | None] = {}

    # -- requests ----------------------------------------------------------------------------------

    def conversation(self, name: str) -> Conversation:
        """A conversation by name."""
        name, _, words = name.partition(" +")
        if name in ("text first", "system") or name.startswith("turns"):
            return Conversation.build(_chat(name))
        question, images = {
            "main": (SHORT, [picture(1)]),
            "other": (SHORT, [picture(2)]),
            "wide": (LONG, [picture(3, 72, 40)]),
            "text": (SHORT, []),
            "two": (SHORT, [picture(1), picture(3, 72, 40)]),
            "other two": (SHORT, [picture(2), picture(3, 72, 40)]),
            "two other": (SHORT, [picture(1), picture(4, 72, 40)]),
        }[name]
        return Conversation.build("picture " * int(words or 0) + question, images)

    def ask(self, name: str, **options: Any) -> Result:
        """Run the probe's ``generate`` on a conversation by name."""
        return self.probe.generate(self.conversation(name).to_chat(), **options)

    def score(self, name: str, candidates: Sequence[str]) -> Scores:
        """Score candidates as the answer to a conversation by name."""
        return self.probe.score(self.conversation(name).to_chat(), candidates)

    def encoding(self, name: str) -> Encoding:
        """The adapter's encoding of a conversation."""
        if name not in self._encodings:
            self._encodings[name] = self.adapter.encode([self.conversation(name)])
        return self._encodings[name]

    def prompt(self, name: str = "main") -> EncodedPrompt:
        """The prompt of a conversation as the adapter encodes it."""
        return self.encoding(name).prompts[0]

    def unavailable(self, name: str) -> str | None:
        """Why the model does not support this conversation; None if it does. Every model must support ``"main"``."""
        if name not in self._unavailable:
            try:
                self.encoding(name)
                self._unavailable[name] = None
            except CapabilityError as error:
                if name == "main":
                    raise
                self._unavailable[name] = str(error)
        return self._unavailable[name]

    def require(self, name: str) -> None:
        """Skip the check if the model does not support this conversation."""
        if reason := self.unavailable(name):
            raise SkipCheck(reason)

    @cached_property
    def greedy(self) -> Result:
        """The answer to ``"main"``, greedy, with full rows."""
        return self.ask("main", keep="logits", max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, **GREEDY)

    # -- the reference -----------------------------------------------------------------------------

    def on_device(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Model inputs on the model's device, floating-point ones in its dtype."""
        moved = {}
        for key, value in inputs.items():
            if isinstance(value, Tensor):
                value = value.to(self.model.device)
                value = value.to(self.model.dtype) if value.is_floating_point() else value
            moved[key] = value
        return moved

    def written(self, name: str, ids: Any, drop: int = 0) -> dict[str, Any]:
        """Model inputs of a conversation without its last ``drop`` positions, followed by ``ids``."""
        inputs = self.encoding(name).inputs
        if len(ids) or drop:
            inputs = self.adapter.extend(inputs, torch.tensor([list(map(int, ids))], dtype=torch.long), drop)
        return self.on_device(inputs)

    @torch.no_grad()
    def forward(self, inputs: dict[str, Any], **more: Any) -> Any:
        """The output of the model's own forward, without a cache."""
        _forget_lengths(self.model)
        return self.model(**{**inputs, "use_cache": False, "return_dict": True, **more})

    def own(self, name: str, rows: Any, ids: Any = (), drop: int = 0) -> np.ndarray:
        """float64 [R, V]: logits of the model's own forward of a conversation followed by ``ids``, at ``rows``."""
        logits = self.forward(self.written(name, ids, drop)).logits[0]
        return logits[torch.as_tensor(np.asarray(rows), device=logits.device)].double().cpu().numpy()

    @cached_property
    def own_prompt(self) -> np.ndarray:
        """float64 [R, V]: the forward's rows of the text tokens of ``greedy.prompt`` and of the first answer token."""
        prompt = self.prompt_table(self.greedy)
        rows = [*(prompt.positions[text_rows(prompt)] - 1), len(self.prompt().ids) - 1]
        return self.own("main", rows)

    @torch.no_grad()
    def own_generate(self, *, seed: int = 0, **options: Any) -> tuple[list[int], np.ndarray]:
        """What the model's own generate emits after ``"main"``, up to and including the end token.

        Returns:
            The ids, and float64 [T, V]: the scores that each was drawn from, after processors (of one beam only).
        """
        ends = sorted(self.adapter.end_ids)
        inputs = self.written("main", ())
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            output = self.model.generate(
                **inputs,
                max_new_tokens=NEW_TOKENS,
                output_scores=True,
                return_dict_in_generate=True,
                pad_token_id=self.model.generation_config.pad_token_id or (ends or [0])[0],
                **({"eos_token_id": ends} if ends else {}),
                **options,
            )
        made = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        stop = next((place + 1 for place, each in enumerate(made) if each in ends), len(made))
        return made[:stop], torch.stack([step[0] for step in output.scores[:stop]]).double().cpu().numpy()

    @cached_property
    def no_beams(self) -> str:
        """Why beam search on an image fails, or is wrong, in the model's own generate; empty if it works."""
        try:
            self.own_generate(**BEAMS)
        except Exception as error:  # noqa: BLE001 - the model fails without vlmprobe, with any exception
            return f"the model's own generate fails: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
        try:
            self.ask("main", prompt=False, max_new_tokens=1, **BEAMS)
        except CapabilityError as error:
            return str(error)
        return ""

    def prompt_table(self, result: Result) -> TokenTable:
        """The prompt side of a result, which every check here requests."""
        if result.prompt is None:
            raise TypeError("the engine returned no prompt side, though prompt=True was requested")
        return result.prompt

    def tolerance(self, kind: str) -> float:
        """The greatest allowed difference of a logit, for ``"rows"`` or ``"paths"``, at this model's scale."""
        return tolerances(self.model.dtype, scale_of(self.own_prompt))[kind]

    def named(self, table: TokenTable, rows: Iterable[int] | None = None, what: str = "") -> list[str]:
        """Token and position of rows of a table (all if None), for messages."""
        return [
            f"{what or 'row'} {row}, token {table.tokens[row]!r}, position {int(table.positions[row])}"
            for row in (range(len(table)) if rows is None else rows)
        ]

    def changed(self) -> str:
        """Changes of global state since before the first check, in words; empty if there are none."""
        return changes(self._untouched, state_of(self.model, self.adapter.tokenizer))

    # -- bug or noise ------------------------------------------------------------------------------

    @cached_property
    def in_float64(self) -> Subject:
        """A float64 copy of this subject, freed together with it.

        Raises:
            SkipCheck: if that is not possible, with the reason.
        """
        if self.model.dtype == torch.float64:
            raise SkipCheck("the model runs in float64 already")
        if not all(parameter.is_floating_point() for parameter in self.model.parameters()):
            raise SkipCheck("the weights are quantised")
        needed = 8 * sum(parameter.numel() for parameter in self.model.parameters())
        if needed > (free := _free_bytes(self.model.device)) / 2:
            raise SkipCheck(f"it needs {needed / 2**30:.1f} GiB of {free / 2**30:.1f} GiB free memory")
        adapter = copy.deepcopy(self.adapter)
        adapter.model.double()
        if hasattr(adapter.model, "set_experts_implementation"):
            adapter.model.set_experts_implementation("eager")  # grouped matrix products do not support float64
        engine = type(self.probe.engine)(adapter)  # type: ignore[call-arg]
        return Subject(Probe(engine, self.probe.meta), exact=True)


def _forget_lengths(model: Any) -> None:
    """Dynamic RoPE begins anew; otherwise it keeps the frequencies of the longest sequence so far."""
    for module in model.modules():
        if "dynamic" in str(getattr(module, "rope_type", "")) and hasattr(module, "original_inv_freq"):
            module.inv_freq = module.original_inv_freq.clone()
            module.max_seq_len_cached = module.original_max_seq_len


def _chat(name: str) -> list[dict[str, Any]]:
    """Conversations of more than one message, or in another order than image and question."""
    pictures = picture(2 if name == "turns other first" else 1), picture(4 if name.endswith("second") else 3, 72, 40)
    one, other = ({"type": "image", "image": image} for image in pictures)
    question = {"type": "text", "text": SHORT}
    if name == "text first":
        return [{"role": "user", "content": [question, one]}]
    if name == "system":
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": [one, question]}]
    return [
        {"role": "user", "content": [one, question]},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": [other, {"type": "text", "text": LONG}]},
    ]


def picture(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    """An image of coloured patches, no two of which are alike."""
    patches = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)


def text_rows(table: TokenTable) -> np.ndarray:
    """int64 [R]: the rows of a table that must have numbers: neither an image nor the first token of the sequence."""
    text = np.array([kind != "image" for kind in table.kinds], dtype=bool)
    return np.flatnonzero(text & (table.positions > 0))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil  # comes with accelerate

    return int(psutil.virtual_memory().available)
