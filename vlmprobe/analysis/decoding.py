"""A decoding strategy built on the probe: visual contrastive decoding, as a transformers ``LogitsProcessor``.

Leng et al. 2024, "Mitigating Object Hallucinations in Large Vision-Language Models through Visual Contrastive
Decoding" (CVPR): the logits with a distorted image are subtracted from those with the real one, among the tokens that
the real image makes plausible (equations 3 and 4):

    (1 + alpha) logits(real) - alpha logits(distorted),  where p(real) >= beta max p(real), else -infinity

The class below is also an example of a custom strategy: a processor gets the ids so far and the scores of the next
token, and may query the model in between. Raw numbers of the result stay raw; its column ``scores`` holds the
log-probabilities after the processor.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from vlmprobe.analysis.image_variants import diffused, exchanged, variant
from vlmprobe.engines.base import GivesPromptIds, ReadsSecondPrompt, require
from vlmprobe.errors import CapabilityError, GenerationOptionError
from vlmprobe.inputs.messages import Conversation, Prompt

if TYPE_CHECKING:
    from vlmprobe.engines.local.second_prompt import SecondPrompt
    from vlmprobe.probe import Probe

__all__ = ["ImageContrast"]


class ImageContrast(LogitsProcessor):
    """Visual contrastive decoding of one question. ::

        strategy = ImageContrast(probe, question, image)
        result = probe.generate(question, image=image, logits_processor=[strategy])

    The distorted image is encoded once and its prompt prefilled once per answer; every token then costs one extra step.
    An instance may serve several answers in sequence; each thread needs its own.
    """

    def __init__(
        self,
        probe: Probe,
        question: Prompt,
        /,
        image: Any = None,
        *,
        against: Any = "diffused",
        alpha: float = 1.0,
        beta: float = 0.1,
        step: int = 500,
        seed: int = 0,
    ) -> None:
        """Prepare the contrast; nothing runs yet.

        Args:
            probe: that will generate.
            question, image: the same as in the call of ``generate``, which refuses others.
            against: what replaces the images: ``"diffused"`` (the paper's noise), another variant of
                :mod:`vlmprobe.analysis.image_variants`, ``"none"``, or an image.
            alpha: weight of the contrast; 0 leaves only the cut-off by ``beta``.
            beta: tokens below this share of the likeliest token's probability are ruled out; above 0, at most 1.
            step: of the diffusion, 0 to 999.
            seed: of the noise.

        Raises:
            GenerationOptionError: for an invalid ``alpha`` or ``beta``.
            CapabilityError: without an image, or for an engine without logits processors.
        """
        if not (isinstance(alpha, (int, float)) and math.isfinite(alpha) and alpha >= 0):
            raise GenerationOptionError(f"alpha must be a number of at least 0, not {alpha!r}")
        if not (isinstance(beta, (int, float)) and 0 < beta <= 1):
            raise GenerationOptionError(f"beta must be a number above 0 and at most 1, not {beta!r}")
        conversation = probe.conversation(question, image)
        if not conversation.images:
            raise CapabilityError("There is no image to contrast: pass image=, or messages with an image in them.")
        images = {
            place: diffused(each, step, seed) if against == "diffused" else variant(each, against)
            for place, each in enumerate(conversation.images)
        }
        self.alpha, self.beta = float(alpha), float(beta)
        self._second: SecondPrompt = require(probe.engine, ReadsSecondPrompt).second_prompt(
            exchanged(conversation, images)
        )
        self._prompt = torch.tensor(require(probe.engine, GivesPromptIds).prompt_ids(conversation))  # [S]
        self._images = [part.digest for part in conversation.image_parts]

    def require_conversation(self, conversation: Conversation) -> None:
        """Called by the engine before it generates; the ids in :meth:`__call__` do not tell images apart.

        Raises:
            CapabilityError: for other images.
        """
        if [part.digest for part in conversation.image_parts] != self._images:
            raise CapabilityError("This ImageContrast was made for other images: make one for each question.")

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Contrasted scores [1, V] for the next token after ``input_ids`` [1, S + t].

        Raises:
            CapabilityError: for several sequences at once (beams, a batch), or a prompt of another question.
        """
        if len(input_ids) != 1:
            raise CapabilityError("ImageContrast follows one answer at a time: generate without beams.")
        ids, length = input_ids[0].cpu(), len(self._prompt)
        if not torch.equal(ids[:length], self._prompt):
            raise CapabilityError("This ImageContrast was made for another question: make one for each.")
        distorted = self._second.logits(ids[length:].tolist()).to(scores)
        contrasted = (1 + self.alpha) * scores - self.alpha * distorted
        implausible = scores < scores.max(dim=-1, keepdim=True).values + math.log(self.beta)
        return contrasted.masked_fill(implausible, -math.inf)
