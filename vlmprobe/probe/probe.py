"""``Probe``: the API. ``load``, ``wrap`` and ``connect`` return one; its longer methods live in sibling modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from vlmprobe.engines.base import Engine, RemembersImages, Streams, require
from vlmprobe.errors import renamed
from vlmprobe.inputs.messages import Conversation, Prompt, shows_images
from vlmprobe.inputs.prompt_format import AS_BY_DEFAULT, PromptFormat, PromptOptions, taken
from vlmprobe.probe.derived import DerivedMethods
from vlmprobe.probe.request import Keep, Request, Requests, bytes_to_keep, images_to_remember, options_of, with_meta
from vlmprobe.results.result import Result, Scores

if TYPE_CHECKING:
    from PIL.Image import Image

    from vlmprobe.engines.stream import Stream
    from vlmprobe.probe.failure import Failure
    from vlmprobe.probe.generate_many import OnError
    from vlmprobe.probe.rank import Ranking
    from vlmprobe.results.grouped import GroupedScores


__all__ = ["Probe", "Request", "Session"]


@dataclass(frozen=True)
class Probe(DerivedMethods):
    """Queries a model and reports the likelihood of every token of prompt and answer.

    Several threads may call one probe; their calls take turns on the model.
    """

    engine: Engine
    # Model, revision, adapter, dtype, device, versions when the probe was made; a result has those of its own call.
    meta: Mapping[str, Any] = field(default_factory=dict)
    format: PromptFormat = field(default=AS_BY_DEFAULT, kw_only=True)  # of every prompt, unless a call says otherwise

    def generate(
        self,
        question: Prompt,
        image: Any = None,
        *,
        keep: Keep = "stats",
        prompt: bool | None = None,
        alternatives: int | None = None,
        seed: int | None = None,
        logits_processor: Sequence[Any] = (),
        **generation: Any,
    ) -> Result:
        """Answer a question and report every token of prompt and answer.

        Args:
            question: a string, or chat messages such as
                ``[{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "Hi"}]}]``.
            image: an image or a list of images, put before the text: path, URL, open file, bytes, PIL image or array.
            keep: ``"stats"`` keeps the columns; ``"logits"`` also the full rows [T, V]; ``"hidden"`` also the states
                [T, H] that enter the LM head; a set keeps both. A ``pathlib.Path`` in place of ``"logits"`` is a folder
                to which the full rows are written as they are computed, memory-mapped instead of held in memory;
                :class:`vlmprobe.results.row_files.OnDisk` also sets their dtype.
            prompt: False skips the prompt side. None reports it if the engine provides it; every local model does.
            alternatives: K, how many top tokens to keep per position. None keeps 10, or as many as the engine provides.
            seed: for sampling; torch's global random state is left unchanged.
            logits_processor: custom transformers ``LogitsProcessor`` objects, applied between the penalties and the
                sampling filters of the options. Raw numbers stay raw; ``scores`` shows their effect.
            **generation: arguments of transformers' ``GenerationConfig``: ``max_new_tokens`` (the checkpoint's own
                default, else 128), ``temperature`` (0 is greedy, above 0 samples), ``do_sample``, ``num_beams``, ...
                And those of :class:`~vlmprobe.PromptOptions`: ``chat_template_kwargs``, ``tools``, ``chat_template``,
                ``raw_prompt`` and ``continue_final_message``. And one that the answer must obey: ``schema`` (JSON
                Schema as a mapping, text or path, or a Pydantic model), ``grammar`` (GBNF or Lark, as text or
                ``pathlib.Path``) or ``prefix_allowed_tokens_fn``; ``mass_allowed`` of the result says how likely the
                model would have obeyed by itself.

        Raises:
            ImageError: for an image that cannot be read.
            MessageError: for a malformed conversation.
            GenerationOptionError: for an unknown or invalid option.
            CapabilityError: for input that the model does not support.
            NonFiniteLogitsError: if the model returns NaN or infinite logits.
        """
        asked = taken(generation)
        options = options_of(keep, prompt, alternatives, seed, generation, logits_processor)
        conversation = self.conversation(question, image, **asked)
        self.engine.check([conversation], options)
        return self._with_meta(self.engine.generate([conversation], options)[0], conversation)

    def stream(
        self,
        question: Prompt,
        image: Any = None,
        *,
        keep: Keep = "stats",
        prompt: bool | None = None,
        alternatives: int | None = None,
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
            print(tokens.result.text)  # the text so far

        Args:
            question, image, keep, prompt, alternatives, seed, logits_processor, generation: as in :meth:`generate`;
                beams cannot be streamed. Until the answer ends, a ``seed`` occupies torch's global generator.

        Returns:
            A :class:`~vlmprobe.engines.stream.Stream` of one-row tables. Once it ends, its ``result`` is that of
            :meth:`generate`.
        """
        asked = taken(generation)
        options = options_of(keep, prompt, alternatives, seed, generation, logits_processor)
        conversation = self.conversation(question, image, **asked)
        self.engine.check([conversation], options)
        stream = require(self.engine, Streams).stream(conversation, options)
        stream.told = lambda result: self._with_meta(result, conversation)
        return stream

    @overload
    def generate_many(
        self, requests: Requests, *, on_error: Literal["raise"] = ..., **options: Any
    ) -> Iterator[Result]: ...
    @overload
    def generate_many(self, requests: Requests, *, on_error: OnError, **options: Any) -> Iterator[Result | Failure]: ...
    def generate_many(
        self,
        requests: Requests,
        *,
        batch_size: int | Literal["auto"] = "auto",
        progress: bool | None = None,
        on_error: OnError = "raise",
        keep: Keep = "stats",
        prompt: bool | None = None,
        alternatives: int | None = None,
        seed: int | None = None,
        logits_processor: Sequence[Any] = (),
        **generation: Any,
    ) -> Iterator[Result | Failure]:
        """Answer many requests in batches, yielding results in request order.

        A server gets concurrent requests instead, as many as :func:`vlmprobe.connect` allows; closing the iterator
        cancels the rest.

        The numbers are those of single calls: padding has no effect. Sampling with a seed runs the requests one by
        one, so that each samples what it would alone. Images shared by requests of a batch are encoded once.

        Args:
            requests: a list or iterator (which may be infinite) of :class:`Request` objects, plain questions, tuples
                ``(question, image)`` or mappings, or a table: a pandas or polars DataFrame, a pyarrow Table, a
                ``datasets.Dataset``. Keys and columns are ``question`` (or ``prompt``), ``image`` (or ``images``: one
                or a list), ``candidates``, ``id`` and those of :class:`~vlmprobe.PromptOptions`; all others are carried
                into ``result.meta``.
            batch_size: maximum batch size, halved from then on when out of memory. ``"auto"`` reads a window of 64
                requests ahead (fewer if their images take more than 256 MB) and batches by length, longest first; a
                number keeps the order of the requests.
            progress: whether to show a progress bar; None shows one in a terminal and in Jupyter.
            on_error: ``"raise"`` raises a request's error, which names the request, after the results before it;
                ``"keep"`` yields a :class:`vlmprobe.Failure` in its place and continues, whatever it was.
            keep, prompt, alternatives, seed, generation: as in :meth:`generate`.
            logits_processor: as in :meth:`generate`; requests then run one by one.
        """
        from vlmprobe.probe.generate_many import answered

        converse = replace(self, format=self.format.updated(taken(generation))).conversation
        options = options_of(keep, prompt, alternatives, seed, generation, logits_processor)
        return answered(self.engine, self.meta, converse, requests, batch_size, options, progress, on_error)

    def session(
        self, image: Any = None, *, images: int = 8, prefix_cache_gb: float = 1.0, **prompt: Unpack[PromptOptions]
    ) -> Session:
        """This probe with a memory: an image is encoded once, and the beginning of a prompt runs once.

        ::

            with probe.session("street.jpg") as street:
                people = street.generate("How many people are there?")
                traffic = street.score("Is the traffic light red?", ["yes", "no"])

        Numbers are those without a session, up to rounding. ``meta["image_features"]`` says whether features were
        reused, ``meta["prefix_in_common"]`` how many ids of the prompt. What was changed in between (weights, adapters,
        the image itself) is found out, and with a hook on the model every prompt runs whole; only single elements of
        a weight, set through ``.data``, are not: call :meth:`Session.forget` after such a change.

        Args:
            image: default image or list of images, for questions (and queries of :meth:`rank`) without images of their
                own; those of the session that this is called on if None. ``image=[]`` in a call asks without any.
            images: how many images (or sets of images of one conversation) to cache, at most 1 GB of them.
            prefix_cache_gb: how many GB the key-value caches of beginnings of prompts may take; the most recent one is
                kept in any case, and none with 0.
            **prompt: :class:`~vlmprobe.PromptOptions` of every question; those of a call come first.
        """
        remembering = require(self.engine, RemembersImages).remembering
        engine = remembering(images_to_remember(images), prefix_bytes=bytes_to_keep(prefix_cache_gb))
        about = self.conversation("about", image, continue_final_message=False).images
        return Session(engine, self.meta, about, format=self.format.updated(prompt))

    @overload
    def score(
        self,
        question: Prompt,
        candidates: Mapping[str, Sequence[str]],
        image: Any = None,
        *,
        keep: Keep = ...,
        alternatives: int | None = ...,
        **prompt: Unpack[PromptOptions],
    ) -> GroupedScores: ...
    @overload
    def score(
        self,
        question: Prompt,
        candidates: Sequence[str],
        image: Any = None,
        *,
        keep: Keep = ...,
        alternatives: int | None = ...,
        **prompt: Unpack[PromptOptions],
    ) -> Scores: ...
    def score(
        self,
        question: Prompt,
        candidates: Sequence[str] | Mapping[str, Sequence[str]],
        image: Any = None,
        *,
        keep: Keep = "stats",
        alternatives: int | None = None,
        **prompt: Unpack[PromptOptions],
    ) -> Scores:
        """Log-probability of each candidate as the answer, its tokens placed right after the prompt.

        Args:
            question: a string, or chat messages.
            candidates: distinct, non-empty answers, scored verbatim: no space or end token is added. A mapping gives
                several spellings per answer, ``{"yes": ["yes", "Yes"], "no": ["no", "No"]}``, whose probabilities are
                summed.
            image: as in :meth:`generate`.
            keep, alternatives: as in :meth:`generate`.
            **prompt: :class:`~vlmprobe.PromptOptions`.

        Raises:
            MessageError: for an empty, repeated or non-string candidate, named answers that collide (one is a
                prefix of the other), or a malformed conversation.
            ImageError, CapabilityError, NonFiniteLogitsError: as in :meth:`generate`.
        """
        from vlmprobe.probe.request import candidate_groups, candidate_list
        from vlmprobe.results.grouped import grouped

        options = options_of(keep, None, alternatives, None, {})
        groups = candidate_groups(candidates) if isinstance(candidates, Mapping) else {}
        listed = [each for texts in groups.values() for each in texts] or candidate_list(candidates)
        conversation = self.conversation(question, image, **prompt)
        self.engine.check([conversation], options)
        scores = self._with_meta(self.engine.score(conversation, listed, options), conversation)
        return grouped(groups, scores) if groups else scores

    def rank(
        self,
        query: Any,
        /,
        documents: Sequence[Any],
        *,
        instruction: str | None = None,
        template: str | None = None,
        yes: str = "yes",
        no: str = "no",
        batch_size: int | Literal["auto"] = "auto",
        progress: bool | None = None,
        prompt: str | None = None,
    ) -> Ranking:
        """Order documents by their relevance to a query: ``sigmoid(logit_yes - logit_no)`` at the start of the answer.

        Uses the checkpoint's chat template with query and document roles if it has one, the engine itself if it is a
        reranker server, and otherwise :data:`vlmprobe.probe.rank.PROMPT`.

        Args:
            query: a text, an image (a path object, bytes, PIL image or array), ``{"image": ..., "text": ...}``, or chat
                parts. A string is text, never a path. In a session, one without an image is about the session's.
            documents: likewise; never given a session's images.
            instruction: what makes a document relevant; the template's own, or
                :data:`vlmprobe.probe.rank.INSTRUCTION`, if None.
            template: the prompt to use instead, with the fields ``{query}``, ``{document}`` and ``{instruction}``.
            yes, no: the two answers, one token each.
            batch_size, progress: as in :meth:`generate_many`.
            prompt: former name of ``template``.

        Raises:
            MessageError: for an invalid document, a template without its fields, or answers of several tokens.
            ImageError, CapabilityError, NonFiniteLogitsError: as in :meth:`generate`.
        """
        from vlmprobe.probe.rank import rank

        if prompt is not None:
            renamed("rank(prompt=)", "rank(template=)")
            template = prompt
        asked: dict[str, Any] = {"instruction": instruction, "template": template, "yes": yes, "no": no}
        asked |= {"batch_size": batch_size, "progress": progress}
        return rank(self.engine, self.conversation, self.meta, query, documents, **asked)

    def branch(
        self,
        result: Result,
        /,
        position: int,
        token: int | str | Sequence[int],
        *,
        question: Prompt | None = None,
        image: Any = None,
        keep: Keep = "stats",
        prompt: bool | None = None,
        alternatives: int | None = None,
        seed: int | None = None,
        logits_processor: Sequence[Any] = (),
        **generation: Any,
    ) -> Result:
        """Keep an answer up to a position, put another token there, and continue generating.

        Args:
            result: an answer of this probe.
            position: row of ``result.output`` to replace.
            token: an id, the text of one of the likeliest tokens there, or other text or ids to continue with.
            question, image: the original ones. They may be omitted if the result holds them: one question, and images
                of at most 512 pixels.
            keep, prompt, alternatives, seed, logits_processor, generation: as in :meth:`generate`, not taken from
                ``result``; ``max_new_tokens`` counts tokens after the substituted one.

        Returns:
            A result whose ``output`` begins with the given tokens; their ``scores`` are NaN, as they were not sampled.

        Raises:
            ResultError: for a position outside the answer.
            MessageError: for no such token, or a result of another question.
            CapabilityError: for an engine that cannot begin an answer with given tokens.
        """
        from vlmprobe.probe.branch import branch

        options = options_of(keep, prompt, alternatives, seed, generation, logits_processor)
        return self._with_meta(
            *branch(self.engine, self.conversation, result, position, token, question, image, options)
        )

    def __repr__(self) -> str:
        known = ", ".join(
            f"{key}={self.meta[key]!r}" for key in ("model", "adapter", "dtype", "device") if key in self.meta
        )
        return f"Probe({known})"

    def conversation(
        self, question: Prompt | Conversation, image: Any = None, **prompt: Unpack[PromptOptions]
    ) -> Conversation:
        """What the methods ask for a question and its images: every one of them, and every analysis, builds it here."""
        own = question.format if isinstance(question, Conversation) else AS_BY_DEFAULT
        return Conversation.build(question, image, (self.format if own == AS_BY_DEFAULT else own).updated(prompt))

    def _with_meta(self, result: Any, conversation: Conversation) -> Any:
        return with_meta(result, self.meta, conversation)


@dataclass(frozen=True, repr=False)
class Session(Probe):
    """A :class:`Probe` that adds ``images`` to questions without images of their own, in every method and analysis."""

    images: tuple[Image, ...] = ()

    def forget(self) -> None:
        """Drop all cached features; the session stays usable."""
        require(self.engine, RemembersImages).forget()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.forget()

    def conversation(
        self, question: Prompt | Conversation, image: Any = None, **prompt: Unpack[PromptOptions]
    ) -> Conversation:
        """As in :class:`Probe`; the session's images unless the question or ``image`` has some, or ``image`` is []."""
        if image is None and self.images and not shows_images(question):
            image = list(self.images)
        return super().conversation(question, image, **prompt)
