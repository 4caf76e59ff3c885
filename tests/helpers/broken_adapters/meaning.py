"""Numbers that mean something else: C3, C9, C10."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from broken_adapters.case import Rewriting, broken

# C3


@broken("C3")
class Bits(Rewriting):
    def rewrite(self, result, options):
        tables = {
            side: replace(table, logprobs=(table.logprobs / np.log(2)).astype(np.float32))
            for side in ("prompt", "output")
            if (table := getattr(result, side)) is not None
        }
        return replace(result, **tables)


@broken("C3")
class ProbabilitiesOfTheAlternatives(Rewriting):
    def rewrite(self, result, options):
        output = result.output
        known = np.log(np.exp(output.top_logprobs).sum(axis=-1))
        return replace(
            result,
            output=replace(
                output,
                logprobs=output.logprobs - known,
                logsumexp=output.logsumexp + known,
                top_logprobs=output.top_logprobs - known[:, None],
            ),
        )


@broken("C3")
class Normaliser(Rewriting):
    """Right log-probabilities beside a logsumexp that does not belong to the rows."""

    def rewrite(self, result, options):
        return replace(result, output=replace(result.output, logsumexp=result.output.logsumexp + np.float32(0.01)))


@broken("C3")
class LogprobsSwapped(Rewriting):
    """Each token has another's log-probability, so that their sum is right."""

    def rewrite(self, result, options):
        return replace(result, output=replace(result.output, logprobs=result.output.logprobs[::-1].copy()))


# C9


@broken("C9")
class AfterTemperature(Rewriting):
    def rewrite(self, result, options):
        temperature = options.generation.get("temperature")
        if temperature is None or result.output.logits is None:
            return result
        return replace(result, output=replace(result.output, logits=result.output.logits / np.float32(temperature)))


@broken("C9")
class AfterPenalty(Rewriting):
    def rewrite(self, result, options):
        penalty = options.generation.get("repetition_penalty")
        if penalty is None:
            return result
        return replace(result, output=replace(result.output, logprobs=result.output.logprobs * np.float32(penalty)))


@broken("C9")
class PromptAfterTemperature(Rewriting):
    def rewrite(self, result, options):
        temperature = options.generation.get("temperature")
        if temperature is None or result.prompt is None:
            return result
        logprobs = result.prompt.logprobs / np.float32(temperature)
        return replace(result, prompt=replace(result.prompt, logprobs=logprobs))


# C10


@broken("C10")
class LikeliestForSampled(Rewriting):
    def rewrite(self, result, options):
        if not options.generation.get("do_sample"):
            return result
        return replace(result, output=replace(result.output, ids=result.output.top_ids[:, 0].copy()))


@broken("C10")
class OtherBeamsNumbers(Rewriting):
    def rewrite(self, result, options):
        if (options.generation.get("num_beams") or 1) == 1:
            return result
        return replace(result, output=replace(result.output, logprobs=result.output.logprobs[::-1].copy()))


@broken("C10")
class NumbersOfTheLikeliest(Rewriting):
    """The right tokens, with the log-probabilities of those that were likelier."""

    def rewrite(self, result, options):
        if options.generation.get("temperature") != 1.5:
            return result
        return replace(result, output=replace(result.output, logprobs=result.output.top_logprobs[:, 0].copy()))


@broken("C10")
class ScoresNotKept(Rewriting):
    def rewrite(self, result, options):
        return replace(result, output=replace(result.output, scores=None))


@broken("C10")
class ScoresBeforeTemperature(Rewriting):
    def rewrite(self, result, options):
        scores = None if result.output.scores is None else result.output.logprobs
        return replace(result, output=replace(result.output, scores=scores))
