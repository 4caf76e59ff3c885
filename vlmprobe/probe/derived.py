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
    from vlmprobe.probe.sample import Samples
    from vlmprobe.results.grouped import YesNo
    from vlmprobe.results.result import Scores

__all__ = ["DerivedMethods"]


class DerivedMethods(LocalParts):
    """Yes or no, by :meth:`Probe.score`; samples, by :meth:`Probe.generate`; scores of many requests."""

    generate: Any
    score: Any
    format: PromptFormat

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
        from vlmprobe.probe.request import candidate_groups
        from vlmprobe.results.grouped import NO, YES, YesNo, grouped

        groups = candidate_groups({"yes": yes or YES, "no": no or NO})
        spellings = [*groups["yes"], *groups["no"]]
        scores = self.score(question, spellings, image=image, alternatives=alternatives, **prompt)
        # A tokenizer may lack some of the default spellings; those given by the caller are all required.
        return grouped(groups, scores, strict=bool(yes or no), kind=YesNo)

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
            batch_size, progress, on_error: as in :meth:`generate_many`.
            keep, alternatives: as in :meth:`generate`.
            **prompt: :class:`~vlmprobe.PromptOptions` of all requests; those of a request come first.
        """
        from vlmprobe.probe.score_many import score_many

        about: Any = replace(self, format=self.format.updated(prompt))  # type: ignore[type-var, arg-type]
        options = options_of(keep, None, alternatives, None, {})
        return score_many(about, requests, candidates, options, batch_size, progress, on_error)
