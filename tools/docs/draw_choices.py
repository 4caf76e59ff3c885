"""Draw the plot and write the figures on prediction sets (page on gating) and of the page on priors.

``python tools/docs/draw_choices.py``. Everything is measured on the embedded demo model and held-out handwriting, more
distorted than it was trained on. Takes a few minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
from draw_confidence import save, write

import vlmprobe
from vlmprobe.analysis import conformal, priors
from vlmprobe.demo.handwriting import DIGITS
from vlmprobe.demo.scenes import Scene, held_out
from vlmprobe.results.result import Scores

SCENES = 600
STRENGTH = 3.0
METHODS = {"`lac`": {}, "`aps`": {"method": "aps"}, "`aps`, randomised": {"method": "aps", "randomised": True}}
SAME, LEFT = "Are the two digits the same?", "Which digit is on the left?"
write = partial(write, script="draw_choices")


def main() -> None:
    """Draw and write everything."""
    mpl.use("Agg")
    probe = vlmprobe.load("demo", device="cpu")
    scenes = list(held_out(SCENES, strength=STRENGTH, same=0.5))
    answers = {LEFT: asked(probe, scenes, LEFT, DIGITS), SAME: asked(probe, scenes, SAME, ("yes", "no"))}
    labels = {
        LEFT: [DIGITS[scene.digits[0]] for scene in scenes],
        SAME: ["yes" if scene.digits[0] == scene.digits[1] else "no" for scene in scenes],
    }
    draw_sets(answers[LEFT], labels[LEFT])
    rows = [
        "| question | prior taken off | accuracy | its favourite | answers that are it (true) |",
        "|---|---|---|---|---|",
    ]
    for question, found in answers.items():
        rows += of_priors(probe, scenes[0], question, found, labels[question])
    write("priors", "figures", rows)


def asked(probe: Any, scenes: list[Scene], question: str, candidates: tuple[str, ...]) -> list[Scores]:
    """The scored answers about each scene."""
    requests = [vlmprobe.Request(question, scene.picture) for scene in scenes]
    return list(probe.score_many(requests, candidates=list(candidates), progress=False))


def draw_sets(answers: list[Scores], labels: list[str]) -> None:
    """Sets from one half, on the other; and the mean coverage over random splits."""
    half = len(answers) // 2
    known, new = (answers[:half], labels[:half]), (answers[half:], labels[half:])
    right = np.mean([each.best == label for each, label in zip(*new, strict=True)])
    low, high = conformal.prediction_sets(*known, 0.1).likely_coverage()
    lines = [
        f"{half} known answers, {half} new ones, of which {right:.1%} have the right digit as their likeliest. With "
        f"{half} known answers the coverage at 90% lies between {low:.1%} and {high:.1%} in 95% of draws, and a share "
        f"of {half} new ones varies, too; averaged over splits it is what is promised (last column, with its standard "
        "error):",
        "",
        "| method | promised | sets that hold the right digit | candidates on average | one candidate | empty "
        "| held, mean of 1,000 splits |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, options in METHODS.items():
        every = conformal.prediction_sets(answers, labels, 0.5, **options)
        ranked = np.array([place_score(every, each, label) for each, label in zip(answers, labels, strict=True)])
        for alpha in (0.1, 0.05):
            sets = conformal.prediction_sets(*known, alpha, **options)
            sizes = np.array([len(sets(each)) for each in new[0]])
            mean, error = split(ranked, sets)
            lines.append(
                f"| {name} | {1 - alpha:.0%} | {sets.coverage(*new):.1%} | {sizes.mean():.2f} | "
                f"{(sizes == 1).mean():.1%} | {(sizes == 0).mean():.1%} | {mean:.2%} ± {error:.2%} |"
            )
    write("gating", "sets", lines)
    shown = conformal.prediction_sets(*known, 0.1)
    save("prediction-sets", lambda: shown.plot(*new))


def place_score(sets: conformal.PredictionSets, answer: Scores, label: str) -> float:
    """The nonconformity of the right candidate: that of the only known answer at any alpha."""
    single = conformal.prediction_sets([answer], [label], 0.5, method=sets.method, randomised=sets.randomised)
    return float(single.scores[0])


def split(scores: np.ndarray, sets: conformal.PredictionSets) -> tuple[float, float]:
    """Mean coverage of one half with the threshold of the other, over a thousand splits, and its standard error."""
    random, half, held = np.random.default_rng(1), len(scores) // 2, []
    for _ in range(1000):
        order = random.permutation(len(scores))
        known = conformal.PredictionSets(np.sort(scores[order[:half]]), sets.alpha, sets.method, sets.randomised)
        held.append((scores[order[half:]] <= known.threshold).mean())
    return float(np.mean(held)), float(np.std(held) / np.sqrt(len(held)))


def of_priors(probe: Any, scene: Scene, question: str, answers: list[Scores], labels: list[str]) -> Iterator[str]:
    """Accuracy, and how often the candidate that the prior favours is the answer, without each prior."""
    blank = partial(priors.blank_answers, probe, question, answers[0].candidates, scene.picture)
    found: dict[str, priors.Prior | None] = {
        "-": None,
        "of a grey image": priors.from_blanks(blank(against=["grey"])),
        "of a grey image and of no image": priors.from_blanks(blank(against=["grey", "none"])),
        "of the batch": priors.from_batch(answers),
    }
    for name, prior in found.items():
        best = [each.best if prior is None else prior(each).best for each in answers]
        right = np.mean([said == label for said, label in zip(best, labels, strict=True)])
        start = f"| {question} | {name} | {right:.1%} |"
        if prior is None:
            favoured = found["of a grey image"]
            assert favoured is not None
            top = favoured.candidates[int(favoured.probabilities.argmax())]
            yield f"{start} - | {top}: {best.count(top) / len(best):.1%} ({labels.count(top) / len(labels):.1%}) |"
            continue
        top = prior.candidates[int(prior.probabilities.argmax())]
        yield (
            f"{start} {top} {prior.probabilities.max():.3f} | "
            f"{top}: {best.count(top) / len(best):.1%} ({labels.count(top) / len(labels):.1%}) |"
        )


if __name__ == "__main__":
    main()
