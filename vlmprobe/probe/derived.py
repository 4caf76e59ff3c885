"""``DerivedMethods``: the methods of a probe that ask through its other ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from vlmprobe.inputs.messages import Prompt
from vlmprobe.inputs.prompt_format import PromptFormat, PromptOptions
from vlmprobe.probe.local_parts import LocalParts
from vlmprobe.probe.request import Keep, Requests, options_of

if TYPE_CHECKING:
    from vlmprobe.probe.failure import Failure
    from vlmprobe.probe.generate_many import OnError
    from vlmprobe.probe.question_kinds import By, Rotate
    from vlmprobe.probe.sample import Samples
    from vlmprobe.probe.widget import AskWidget
    from vlmprobe.results.asked import Answer, Answers, Choice, Rating
    from vlmprobe.results.grouped import YesNo
    from vlmprobe.results.result import Scores

__all__ = ["DerivedMethods"]


class DerivedMethods(LocalParts):
    """Typed answers, yes or no, by :meth:`Probe.score`; samples, by :meth:`Probe.generate`; scores of many requests."""

    generate: Any
    score: Any
    format: PromptFormat

    @overload
    def ask(self, question: Mapping[str, Any], image: Any = None, **kind: Any) -> Answers: ...
    @overload
    def ask(
        self,
        question: Prompt,
        image: Any = None,
        *,
        options: None = ...,
        levels: None = ...,
        think: int | bool | Mapping[str, Any] | None = ...,
        think_end: str | None = ...,
        **prompt: Any,
    ) -> YesNo: ...
    @overload
    def ask(
        self,
        question: Prompt,
        image: Any = None,
        *,
        options: Sequence[str] | Mapping[str, Sequence[str]],
        by: By = ...,
        none_of_these: bool | str | None = ...,
        rotate: Rotate = ...,
        think: int | bool | Mapping[str, Any] | None = ...,
        think_end: str | None = ...,
        **prompt: Any,
    ) -> Choice: ...
    @overload
    def ask(
        self,
        question: Prompt,
        image: Any = None,
        *,
        levels: Sequence[str] | Sequence[float],
        by: By = ...,
        rotate: Rotate = ...,
        think: int | bool | Mapping[str, Any] | None = ...,
        think_end: str | None = ...,
        **prompt: Any,
    ) -> Rating: ...
    def ask(
        self,
        question: Prompt | Mapping[str, Any],
        image: Any = None,
        *,
        options: Any = None,
        levels: Any = None,
        by: By = "texts",
        none_of_these: bool | str | None = None,
        rotate: Rotate = None,
        think: int | bool | Mapping[str, Any] | None = None,
        think_end: str | None = None,
        **prompt: Any,
    ) -> Answer | Answers:
        """Ask a question of a kind: yes or no, one of several options, or a level of a scale.

        ::

            probe.ask("Is there a person?", "street.jpg")  # yes 0.93
            probe.ask("What is the weather?", "street.jpg", options=["sunny", "rainy"])  # sunny 0.81
            probe.ask("How sharp is the picture?", "street.jpg", levels=["blurry", "fair", "sharp"])
            probe.ask({"person": "Is there a person?", "weather": ("The weather?", ["sunny", "rainy"])}, "street.jpg")

        Args:
            question: as in :meth:`generate`; or several by name, each a question, ``(question, options)``,
                ``(question, range)`` or a mapping of the arguments of its own. They share the beginning of their
                prompts, which runs once; the arguments given here are those of all that have none.
            image: as in :meth:`generate`.
            options: texts to choose from; a mapping gives the spellings of each. What begins with ``"red car"`` is not
                red, where both are options.
            levels: of a scale, from one end to the other: texts, with the values 1 to N, or numbers.
            by: ``"texts"`` scores each option as the answer, also with a capital or small first letter and after a
                space; the prompt does not list them. ``"letters"`` lists them below the question, one line each
                (``A. red``), then :data:`~vlmprobe.probe.question_kinds.INSTRUCTION`, and scores the letters.
            none_of_these: True adds the option "none of these"; a text adds it in other words.
            rotate: of letters. ``"all"`` asks in every cyclic order of the options, as many as there are options, and
                averages the probabilities; ``"close"`` does where the two likeliest are at most
                :data:`~vlmprobe.probe.ask.CLOSE` apart in the first order.
            think: tokens that the model may think, greedily, before the answers are scored after its thought
                (``answer.thought``), which is closed where they do not suffice; a mapping has options of
                :meth:`generate` too, ``{"max_new_tokens": 256, "temperature": 0.6, "seed": 0}``. False or 0 closes the
                thought at once. None writes the prompt as the template gives it.
            think_end: the text between thought and answer, where neither chat template nor tokenizer tell.
            **prompt: :class:`~vlmprobe.PromptOptions`.

        Returns:
            :class:`~vlmprobe.results.asked.YesNo` without options, :class:`~vlmprobe.results.asked.Choice`,
            :class:`~vlmprobe.results.asked.Rating`, or :class:`~vlmprobe.results.asked.Answers` to several questions.

        Raises:
            MessageError: for options that cannot be told apart, and as in :meth:`score`.
            GenerationOptionError: for arguments that do not fit together.
            CapabilityError: with ``think``, if it is not known how a thought is written, or a server cannot go on
                from one; and as in :meth:`generate`.
            ImageError, NonFiniteLogitsError: as in :meth:`generate`.
        """
        from vlmprobe.probe.ask import ask, require_arguments

        require_arguments(prompt)
        about: Any = replace(self, format=self.format.updated(prompt))  # type: ignore[type-var, arg-type]
        kind = {"options": options, "levels": levels, "by": by, "none_of_these": none_of_these, "rotate": rotate}
        return ask(about, question, image, think, think_end, **kind)

    def yes_no(
        self,
        question: Prompt,
        image: Any = None,
        *,
        yes: Sequence[str] = (),
        no: Sequence[str] = (),
        alternatives: int | None = None,
        **prompt: Unpack[PromptOptions],
    ) -> YesNo:
        """Probabilities of yes and no as the answer, each summed over its spellings.

        Over a server that lists only the likeliest tokens, ``bounds`` of the answer say how far its probability can be
        from that of all spellings.

        Args:
            question, image: as in :meth:`generate`.
            yes, no: spellings of the two answers; the usual English ones if empty.
            alternatives: as in :meth:`generate`; such a server is asked for so many, or as many as it lists if None.
            **prompt: :class:`~vlmprobe.PromptOptions`.

        Raises:
            MessageError: for spellings that collide, or that the tokenizer cannot encode; others as in :meth:`score`.
            CapabilityError: if a server lists too few tokens to tell yes from no.
        """
        from vlmprobe.probe.ask import warn_of_first_token
        from vlmprobe.probe.request import candidate_groups
        from vlmprobe.results.grouped import NO, YES, YesNo, grouped

        groups = candidate_groups({"yes": yes or YES, "no": no or NO})
        spellings = [*groups["yes"], *groups["no"]]
        scores = self.score(question, spellings, image=image, alternatives=alternatives, **prompt)
        # A tokenizer may lack some of the default spellings; those given by the caller are all required.
        answer = grouped(groups, scores, strict=bool(yes or no), kind=YesNo)
        warn_of_first_token(self.engine, answer)
        return answer

    def sample(self, question: Prompt, image: Any = None, *, n: int = 10, seed: int = 0, **options: Any) -> Samples:
        """Sample n answers from the model's own distribution and measure how far they agree.

        Args:
            question, image: as in :meth:`generate`.
            n: number of answers, at least 2; answer i is that of ``generate(..., do_sample=True, seed=seed + i)``.
            seed: of the first answer.
            **options: as in :meth:`generate`. Temperature 1 without filters and penalties, unless given here.
        """
        from vlmprobe.probe.sample import sample

        return sample(self.generate, question, image, n=n, seed=seed, **options)

    def widget(self, image: Any = None, question: str = "", *, lang: str | None = None, **options: Any) -> AskWidget:
        """Ask in a notebook, watch the answer come, and continue from another token with a click.

        Args:
            image: as in :meth:`generate`; it is part of every question.
            question: what the box holds at first.
            lang: "en" or "zh"; by default the browser's language.
            **options: as in :meth:`stream`, and in :meth:`branch`.

        Raises:
            MissingExtraError: if anywidget is not installed.
            ImageError: for an image that cannot be read.
        """
        from vlmprobe.probe.widget import AskWidget

        probe: Any = self
        return AskWidget(probe, image, question, lang=lang, **options)

    @overload
    def score_many(
        self, requests: Requests, candidates: Any = None, *, on_error: Literal["raise"] = ..., **options: Any
    ) -> Iterator[Scores]: ...
    @overload
    def score_many(
        self, requests: Requests, candidates: Any = None, *, on_error: OnError, **options: Any
    ) -> Iterator[Scores | Failure]: ...
    def score_many(
        self,
        requests: Requests,
        candidates: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        *,
        options: Any = None,
        levels: Any = None,
        batch_size: int | Literal["auto"] = "auto",
        progress: bool | None = None,
        on_error: OnError = "raise",
        keep: Keep = "stats",
        alternatives: int | None = None,
        **prompt: Any,
    ) -> Iterator[Scores | Failure]:
        """Score the candidates of many requests in batches, yielding scores in request order.

        The numbers are those of single calls up to rounding. Questions about the same images share the beginning of
        their prompts, which runs once; ``meta["prefix_in_common"]`` says how many tokens that was. On a server many
        requests are in flight at once.

        Args:
            requests: as for :meth:`generate_many`; each with its own candidates, unless they are given for all.
            candidates: those of all requests, as in :meth:`score`: a list, or a mapping of spellings by answer.
            options, levels: those of all requests, as in :meth:`ask` with ``by="texts"``: the scores are then the
                :class:`~vlmprobe.results.asked.Choice` or :class:`~vlmprobe.results.asked.Rating` of each.
            batch_size, progress, on_error: as in :meth:`generate_many`.
            keep, alternatives: as in :meth:`generate`.
            **prompt: :class:`~vlmprobe.PromptOptions` of all requests; those of a request come first.
        """
        from vlmprobe.probe.score_many import score_many

        about: Any = replace(self, format=self.format.updated(prompt))  # type: ignore[type-var, arg-type]
        run = options_of(keep, None, alternatives, None, {})
        if options is None and levels is None:
            return score_many(about, requests, candidates, run, batch_size, progress, on_error)
        from vlmprobe.probe.ask import answer_many

        return answer_many(about, requests, candidates, options, levels, run, batch_size, progress, on_error)
