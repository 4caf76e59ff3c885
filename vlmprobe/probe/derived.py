"""``DerivedMethods``: the methods of a probe that ask through its other ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

from vlmprobe.inputs.messages import Prompt
from vlmprobe.inputs.prompt_format import PromptOptions
from vlmprobe.probe.local_parts import LocalParts

if TYPE_CHECKING:
    from vlmprobe.probe.sample import Samples
    from vlmprobe.results.grouped import YesNo

__all__ = ["DerivedMethods"]


class DerivedMethods(LocalParts):
    """Yes or no, by :meth:`Probe.score`, and samples, by :meth:`Probe.generate`."""

    generate: Any
    score: Any

    def yes_no(
        self,
        question: Prompt,
        image: Any = None,
        *,
        yes: Sequence[str] = (),
        no: Sequence[str] = (),
        **prompt: Unpack[PromptOptions],
    ) -> YesNo:
        """Probabilities of yes and no as the answer, each summed over its spellings.

        Args:
            question, image: as in :meth:`generate`.
            yes, no: spellings of the two answers; the usual English ones if empty.
            **prompt: :class:`~vlmprobe.PromptOptions`.

        Raises:
            MessageError: for spellings that collide, or that the tokenizer cannot encode; others as in :meth:`score`.
        """
        from vlmprobe.probe.request import candidate_groups
        from vlmprobe.results.grouped import NO, YES, YesNo, grouped

        groups = candidate_groups({"yes": yes or YES, "no": no or NO})
        scores = self.score(question, [*groups["yes"], *groups["no"]], image=image, **prompt)
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
