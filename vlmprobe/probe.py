"""``Probe``: the one API. ``vlmprobe.load`` and ``vlmprobe.wrap`` make one (``loading.py``); the rest are methods."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

from vlmprobe.engines import KEEP, Engine, Options, ability
from vlmprobe.errors import GenerationOptionError, MessageError, VlmprobeError, near
from vlmprobe.messages import Conversation, Prompt, TextPart
from vlmprobe.result import Result, Scores

if TYPE_CHECKING:
    from vlmprobe.analysis.sampling import Samples

__all__ = ["Probe", "Request"]

AUTO_BATCH = 8  # requests in one batch with batch_size="auto"


@dataclass(frozen=True)
class Request:
    """One question of :meth:`Probe.generate_many`; ``id`` comes back in ``result.meta["id"]``."""

    prompt: Prompt
    image: Any = None
    id: Any = None


@dataclass(frozen=True)
class Probe:
    """A model that can be asked, and that says how likely everything it said was.

    Many threads may call one probe; their calls take turns on the model.
    """

    engine: Engine
    meta: Mapping[str, Any] = field(default_factory=dict)  # model, revision, adapter, dtype, device, versions

    def generate(
        self,
        question: Prompt,
        /,
        image: Any = None,
        *,
        keep: str | Collection[str] = "stats",
        prompt: bool = True,
        alternatives: int = 10,
        seed: int | None = None,
        logits_processor: Sequence[Any] = (),
        **generation: Any,
    ) -> Result:
        """Answer a question and report every token of prompt and answer.

        Args:
            question: a string, or chat messages such as
                ``[{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "Hi"}]}]``.
            image: an image or a list of images, put before the text: path, URL, bytes, PIL image or array.
            keep: ``"stats"`` keeps the columns; ``"logits"`` also the full rows [T, V]; ``"hidden"`` also the states
                [T, H] that enter the LM head; a set keeps both.
            prompt: False skips the prompt side.
            alternatives: K, how many of the likeliest tokens to keep at each position.
            seed: for sampling; torch's own random state is left as it was.
            logits_processor: transformers ``LogitsProcessor`` objects of one's own, put between the penalties and the
                sampling filters of the options. Raw numbers stay raw; ``scores`` shows what they did.
            **generation: arguments of transformers' ``GenerationConfig``: ``max_new_tokens`` (the checkpoint's own
                default, else 128), ``do_sample``, ``temperature``, ``top_k``, ``num_beams``, ...

        Raises:
            ImageError: for a picture that cannot be read.
            MessageError: for a malformed conversation.
            GenerationOptionError: for an unknown or impossible option.
            CapabilityError: for what the model cannot take.
            NonFiniteLogitsError: where the model returns NaN or infinite logits.
        """
        options = _options(keep, prompt, alternatives, seed, generation, logits_processor)
        conversation = Conversation.build(question, image)
        self.engine.check([conversation], options)
        return self._told(self.engine.generate([conversation], options)[0], conversation)

    def stream(
        self,
        question: Prompt,
        /,
        image: Any = None,
        *,
        keep: str | Collection[str] = "stats",
        prompt: bool = True,
        alternatives: int = 10,
        seed: int | None = None,
        logits_processor: Sequence[Any] = (),
        **generation: Any,
    ) -> Stream:
        """Answer a question and yield each token, with its columns, as it is generated.

        ::

            with probe.stream("Describe the picture.", image="scene.png") as tokens:
                for row in tokens:
                    if row.confidence[0] < 0.3:
                        break
            print(tokens.result.text)  # what was read

        Args:
            question, image, keep, prompt, alternatives, seed, logits_processor, **generation: as in :meth:`generate`;
                beams cannot be streamed. Until the answer ends, a ``seed`` holds torch's global generator.

        Returns:
            A :class:`~vlmprobe.engines.stream.Stream` of tables of one row. When it ends, its ``result`` is that of
            :meth:`generate`.
        """
        options = _options(keep, prompt, alternatives, seed, generation, logits_processor)
        conversation = Conversation.build(question, image)
        self.engine.check([conversation], options)
        stream = ability(self.engine, "stream", "tokens as they are generated")(conversation, options)
        stream.told = lambda result: self._told(result, conversation)
        return stream

    def generate_many(
        self,
        requests: Iterable[Request | Prompt | Mapping[str, Any]],
        *,
        batch_size: int | Literal["auto"] = "auto",
        progress: bool | None = None,
        keep: str | Collection[str] = "stats",
        prompt: bool = True,
        alternatives: int = 10,
        seed: int | None = None,
        logits_processor: Sequence[Any] = (),
        **generation: Any,
    ) -> Iterator[Result]:
        """Answer many requests in batches, one result after the other in the order of the requests.

        The numbers are those of single calls: padding is invisible. Sampling with a seed runs the requests one by
        one, so that each draws what it would draw alone.

        Args:
            requests: :class:`Request` objects, plain questions, or mappings with ``prompt``, ``image`` and ``id``.
            batch_size: how many requests run together.
            progress: whether to show a progress bar; None shows one in a terminal.
            keep, prompt, alternatives, seed, **generation: as in :meth:`generate`.
            logits_processor: as in :meth:`generate`; requests then run one by one.
        """
        options = _options(keep, prompt, alternatives, seed, generation, logits_processor)
        if batch_size != "auto" and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
            raise GenerationOptionError(f"batch_size must be 'auto' or an integer of at least 1, not {batch_size!r}")
        if isinstance(requests, (str, Mapping, Request)) or not isinstance(requests, Iterable):
            raise MessageError(
                f"generate_many takes a list of requests, not {type(requests).__name__}; for one use generate"
            )
        self.engine.check([], options)
        size = self.engine.batch_size(AUTO_BATCH if batch_size == "auto" else batch_size, options)
        return self._many(requests, size, options, progress)

    def score(
        self,
        question: Prompt,
        /,
        candidates: Sequence[str],
        image: Any = None,
        *,
        keep: str | Collection[str] = "stats",
        alternatives: int = 10,
    ) -> Scores:
        """How likely each candidate is as the answer: log-probability of its tokens, written right after the prompt.

        Args:
            question: a string, or chat messages.
            candidates: the answers, different and not empty. They are scored as they stand: no space or end token
                is added.
            image: as in :meth:`generate`.
            keep, alternatives: as in :meth:`generate`.

        Raises:
            MessageError: for an empty, repeated or non-string candidate, or a malformed conversation.
            ImageError, CapabilityError, NonFiniteLogitsError: as in :meth:`generate`.
        """
        options = _options(keep, True, alternatives, None, {})
        listed = _candidates(candidates)
        conversation = Conversation.build(question, image)
        self.engine.check([conversation], options)
        return self._told(self.engine.score(conversation, listed, options), conversation)

    def sample(self, question: Prompt, /, image: Any = None, *, n: int = 10, seed: int = 0, **options: Any) -> Samples:
        """Answer a question n times, sampling from the model's own distribution, and say how far the answers agree.

        Args:
            question, image: as in :meth:`generate`.
            n: how many answers, at least 2; answer i is that of ``generate(..., do_sample=True, seed=seed + i)``.
            seed: of the first answer.
            **options: as in :meth:`generate`. Temperature 1 without filters and penalties, unless given here.
        """
        from vlmprobe.analysis.sampling import sample

        return sample(self, question, image, n=n, seed=seed, **options)

    def __repr__(self) -> str:
        known = ", ".join(
            f"{key}={self.meta[key]!r}" for key in ("model", "adapter", "dtype", "device") if key in self.meta
        )
        return f"Probe({known})"

    def _many(self, requests: Iterable[Any], size: int, options: Options, progress: bool | None) -> Iterator[Result]:
        from vlmprobe.progress import tracked

        pending: list[tuple[Request, Conversation]] = []
        for raw in tracked(requests, progress):
            try:
                request = _request(raw)
                conversation = Conversation.build(request.prompt, request.image)
                self.engine.check([conversation], options)
            except VlmprobeError:
                if pending:  # the good requests before a bad one are answered
                    yield from self._batch(pending, options)
                raise
            if pending and not _together(pending[0][1], conversation):
                yield from self._batch(pending, options)
                pending = []
            pending.append((request, conversation))
            if len(pending) == size:
                yield from self._batch(pending, options)
                pending = []
        if pending:
            yield from self._batch(pending, options)

    def _batch(self, pending: list[tuple[Request, Conversation]], options: Options) -> Iterator[Result]:
        results = self.engine.generate([conversation for _, conversation in pending], options)
        for (request, conversation), result in zip(pending, results, strict=True):
            yield self._told(result, conversation, **({} if request.id is None else {"id": request.id}))

    def _told(self, result: Any, conversation: Conversation, **more: Any) -> Any:
        """The result with what is known of the model and the question put into its ``meta``."""
        return replace(result, meta={**self.meta, "question": conversation.question, **result.meta, **more})


def _options(
    keep: Any, prompt: Any, alternatives: Any, seed: Any, generation: Mapping[str, Any], processors: Any = ()
) -> Options:
    listed = list(keep) if isinstance(keep, Collection) and not isinstance(keep, str) else [keep]
    for each in listed:
        if each not in KEEP:
            raise GenerationOptionError(f"keep must be of {', '.join(KEEP)}, not {each!r}.{near(str(each), KEEP)}")
    if not isinstance(prompt, bool):
        raise GenerationOptionError(
            "prompt is True or False (report the prompt side or not); the question comes first."
        )
    for name, value, least in (("alternatives", alternatives, 1), ("seed", seed, 0)):
        fits = isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) < 2**63
        if not fits and not (name == "seed" and value is None):
            raise GenerationOptionError(f"{name} must be an integer of at least {least}, not {value!r}")
    own = tuple(processors) if isinstance(processors, Iterable) else (processors,)
    if not all(map(callable, own)) or callable(processors):
        raise GenerationOptionError("logits_processor is a list of transformers LogitsProcessor objects")
    drawn = None if seed is None else int(seed)
    return Options(frozenset(listed), prompt, int(alternatives), drawn, dict(generation), own)


def _candidates(candidates: Any) -> list[str]:
    if isinstance(candidates, str) or not isinstance(candidates, Iterable):
        raise MessageError("candidates is a list of strings, such as ['yes', 'no']")
    listed = list(candidates)
    if not listed:
        raise MessageError("candidates is empty: give at least one answer to score")
    for place, each in enumerate(listed):
        if not isinstance(each, str):
            raise MessageError(f"candidate {place} is {type(each).__name__}, not a string")
        TextPart(each)  # refuses what no tokenizer can read
        if not each:
            raise MessageError(f"candidate {place} is empty: an answer without text has no tokens to score")
        if each in listed[:place]:
            raise MessageError(f"candidate {place} repeats candidate {listed.index(each)}: {each!r}")
    return listed


def _request(raw: Any) -> Request:
    if isinstance(raw, Request):
        return raw
    if isinstance(raw, Mapping):
        unknown = set(raw) - {"prompt", "image", "id"}
        if unknown or "prompt" not in raw:
            raise MessageError(f"a request has 'prompt', 'image' and 'id'; got {', '.join(sorted(map(str, raw)))}")
        return Request(**raw)
    return Request(raw)


def _together(first: Conversation, other: Conversation) -> bool:
    """Whether two conversations can share a batch: processors want the same images-or-none and kind of prompt."""
    return len(first.images) == len(other.images) and first.continues == other.continues
