"""Draw the plots and write the figures of the pages on asking, candidates, ranking, heads and decoding.

``python tools/docs/draw_asking.py``, or with page names: ``python tools/docs/draw_asking.py heads``. Everything is
measured on the embedded demo model and held-out handwriting. Takes a few minutes.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from draw_confidence import DOCS, save, write

import vlmprobe
from vlmprobe.analysis import calibration, heads, plots, yes_no
from vlmprobe.analysis.decoding import ImageContrast
from vlmprobe.demo.drawing import COLOURS
from vlmprobe.demo.handwriting import DIGITS
from vlmprobe.demo.scenes import Scene, article, held_out
from vlmprobe.results.result import Result

DESCRIBE = "Describe the picture."
write = partial(write, script="draw_asking")


def main(pages: list[str]) -> None:
    """Draw and write the named pages; all if none is named."""
    mpl.use("Agg")
    torch.set_num_threads(1)
    probe = vlmprobe.load("demo", device="cpu")
    for page in pages or list(PAGES):
        PAGES[page](probe)


QUESTIONS: dict[str, Any] = {
    "same": "Are the two digits the same?",
    "left digit": ("Which digit is on the left?", list(DIGITS)),
    "left colour": ("What colour is the digit on the left?", list(COLOURS)),
    "right digit": ("Which digit is on the right?", list(DIGITS)),
    "right colour": ("What colour is the digit on the right?", list(COLOURS)),
}


def draw_ask(probe: Any) -> None:
    """Five questions about the least clear of 200 hasty scenes; how many are decided at two thresholds, and right."""
    scenes = list(held_out(200, strength=2.0))
    answers = [probe.ask(QUESTIONS, scene.picture) for scene in scenes]
    right = [
        {
            "same": "yes" if scene.digits[0] == scene.digits[1] else "no",
            "left digit": DIGITS[scene.digits[0]],
            "left colour": scene.colours[0],
            "right digit": DIGITS[scene.digits[1]],
            "right colour": scene.colours[1],
        }
        for scene in scenes
    ]
    sure = [min(float(each.probabilities.max()) for each in asked.values()) for asked in answers]
    save("ask", answers[int(np.argmin(sure))].plot)
    scenes[int(np.argmin(sure))].picture.save(DOCS / "img" / "ask-scene.png")
    lines = ["| threshold | answers that are not unsure | of these right |", "|---|---|---|"]
    for threshold in (0.01, 0.9, 0.99):
        found = [
            said == gold[name]
            for asked, gold in zip(answers, right, strict=True)
            for name, said in asked.at(threshold).items()
            if said != "unsure"
        ]
        named = "none" if threshold < 0.1 else f"{threshold:g}"
        lines.append(f"| {named} | {len(found)} of {len(answers) * len(QUESTIONS)} | {np.mean(found):.1%} |")
    write("ask", "figures", lines)


def unsure(probe: Any, scenes: list[Scene]) -> tuple[Scene, Result, int]:
    """The description with the least confident token (the first one aside), and the position of that token."""
    requests = [vlmprobe.Request(DESCRIBE, scene.picture) for scene in scenes]
    found = list(probe.generate_many(requests, batch_size=64, progress=False))
    least = [float(each.output.logprobs[1:].min()) for each in found]
    place = int(np.argmin(least))
    return scenes[place], found[place], 1 + int(found[place].output.logprobs[1:].argmin())


def draw_candidates(probe: Any) -> None:
    """Choices of a low-confidence answer, its branches, and the yes/no poll."""
    scenes = list(held_out(400))
    scene, result, step = unsure(probe, scenes[:200])
    save("choices", lambda: result.top(4).plot())
    lines = ["| | answer | probability of the answer |", "|---|---|---|", row("as generated", result)]
    for token in result.output.top_ids[step, 1:3].tolist():
        branch = probe.branch(result, step, token, image=scene.picture, prompt=False)
        lines.append(row(f"from {branch.output.tokens[step].strip()!r} at step {step}", branch))
    write("candidates", "branches", lines)
    asked = [(each, qa) for each in scenes for qa in each.questions if qa.kind in ("exists", "same")]
    requests = [vlmprobe.Request(qa.question, each.picture) for each, qa in asked]
    right = [qa.answer for _, qa in asked]
    kinds = [{"exists": "is there a ...?", "same": "are they the same?"}[qa.kind] for _, qa in asked]
    sure = list(yes_no.yes_no_many(probe, requests, progress=False))
    read = list(probe.generate_many(requests, batch_size=64, prompt=False, progress=False))
    lines = [
        "| questions | answers | accuracy | precision | recall | F1 | yes rate | AUROC |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, answers in (("probabilities", sure), ("generated, parsed as in POPE", read)):
        for kind, each in yes_no.reports(answers, right, kinds).items():
            figures = [f"{value:.3f}" if value == value else "" for value in each.metrics().values()]
            lines.append(f"| {each.count}, {kind} | {name} | {' | '.join(figures)} |")
    write("candidates", "poll", lines)


def row(name: str, result: Result) -> str:
    """A row of the table of branches."""
    return f"| {name} | {result.text} | {result.confidence:.3f} |"


def draw_rank(probe: Any) -> None:
    """Images ranked by one query, and how well ten queries rank a hundred images."""
    from sklearn.metrics import average_precision_score

    scenes = list(held_out(100, seed=5))
    prompt = "{document}Is there {query}?"
    shown = probe.rank("a seven", [scene.picture for scene in scenes[:8]], template=prompt, progress=False)
    save("rank", shown.plot, colours=256)
    found = []
    for digit, word in enumerate(DIGITS):
        ranking = probe.rank(
            f"{article(word)} {word}", [scene.picture for scene in scenes], template=prompt, progress=False
        )
        holds = np.array([digit in scene.digits for scene in scenes])
        found.append((average_precision_score(holds, ranking.margins), holds.mean()))
    precision, chance = np.mean(found, axis=0)
    write(
        "rank",
        "figures",
        [
            f"Ten queries (`a zero` to `a nine`) over {len(scenes)} images: mean average precision {precision:.3f}; "
            f"a random order has {chance:.3f}."
        ],
    )


def draw_heads(probe: Any) -> None:
    """What is linearly decodable from the state before each word of the description."""
    count, fit = 700, 450
    scenes = list(held_out(count, seed=7))
    words = len(probe.generate(DESCRIBE, scenes[0].picture, prompt=False).output)
    requests = [vlmprobe.Request(DESCRIBE, scene.picture) for scene in scenes]
    found = list(probe.generate_many(requests, batch_size=64, keep="hidden", prompt=False, progress=False))
    kept = [place for place, each in enumerate(found) if len(each.output) == words]
    first, rest = kept[:fit], kept[fit:]
    facts = {
        "left colour": [scene.colours[0] for scene in scenes],
        "left digit": [scene.digits[0] for scene in scenes],
        "right colour": [scene.colours[1] for scene in scenes],
        "right digit": [scene.digits[1] for scene in scenes],
    }
    curves: dict[str, list[float]] = {name: [] for name in facts}
    for step in range(words):
        states = {
            name: heads.states([found[each] for each in at], step) for name, at in (("fit", first), ("test", rest))
        }
        for name, labels in facts.items():
            head = heads.fit_probe(states["fit"], [labels[each] for each in first], strength=3.0)
            said = head.predict(states["test"])
            curves[name].append(float(np.mean(said == np.array([str(labels[each]) for each in rest]))))

    def draw() -> Any:
        ax = plots.axes(None, size=(7.2, 3.4))
        for place, (name, accuracy) in enumerate(curves.items()):
            line = plots.MARKERS[place] + plots.LINES[place]
            ax.plot(range(words), accuracy, line, color=plots.COLOURS[place], label=name, markersize=5)
        tokens = [
            "a",
            "COLOUR",
            "DIGIT",
            "on",
            "the",
            "left",
            "and",
            "a",
            "COLOUR",
            "DIGIT",
            "on",
            "the",
            "right",
            "end",
        ]
        ax.set_xticks(range(words), tokens, rotation=45, ha="right", rotation_mode="anchor", fontsize="small")
        ax.set(ylim=(0, 1.03), xlabel="word that is drawn from the state", ylabel="accuracy of a linear probe")
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize="small", handlelength=2.6)
        return ax

    save("heads", draw)
    at = {name: accuracy[0] for name, accuracy in curves.items()}
    listed = ", ".join(f"{name} {value:.0%}" for name, value in at.items())
    write(
        "heads",
        "figures",
        [f"At the end of the prompt: {listed}. {len(first)} scenes for fitting, {len(rest)} for evaluation."],
    )


def draw_decoding(probe: Any) -> None:
    """Effect of contrast on the probabilities of a low-confidence step and on accuracy; where a stream would stop."""
    scenes = list(held_out(200))
    scene, result, step = unsure(probe, scenes)
    before = result.output.ids[:step].tolist()
    alphas = (0.0, 0.5, 1.0)
    rows = {alpha: contrasted(probe, scene, before, alpha) for alpha in alphas}
    tops = result.output.top_ids[step, :5].tolist()
    names = [text.strip() for text in result.output.top_tokens[step][:5]]
    hatches = ("", "//", "..")

    def draw_contrast() -> Any:
        ax = plots.axes(None, size=(5.6, 3.2))
        for place, alpha in enumerate(alphas):
            at = np.arange(5) + 0.27 * (place - 1)
            share = np.exp(rows[alpha][tops])
            ax.bar(
                at, share, width=0.25, color=plots.COLOURS[place], hatch=hatches[place], label=f"alpha {alpha:g}",
                edgecolor=ax.get_facecolor(),
            )  # fmt: skip
        ax.set_xticks(range(5), names, parse_math=False)
        ax.set(ylabel="probability of the next word", ylim=(0, 1))
        ax.legend(frameon=False, fontsize="small", handlelength=2.6)
        return ax

    save("contrast-decoding", draw_contrast)

    def draw_stream() -> Any:
        ax = plots.axes(None, size=(6.6, 3.0))
        sure = result.output.confidence
        below = int(np.flatnonzero(sure < 0.6)[0])
        ax.axhline(0.6, color=plots.COLOURS[1], linestyle="--", linewidth=1.2)
        ax.plot(range(below + 1), sure[: below + 1], "o-", color=plots.COLOURS[0], markersize=6)
        ax.plot(range(below, len(sure)), sure[below:], "o:", color=plots.COLOURS[0], alpha=0.45, markersize=5)
        ax.annotate("stops here", (below, sure[below]), (12, -4), textcoords="offset points", fontsize="small")
        ticks = [token.strip() for token in result.output.tokens]
        ax.set_xticks(range(len(ticks)), ticks, rotation=45, ha="right", rotation_mode="anchor", fontsize="small",
                      parse_math=False)  # fmt: skip
        ax.set(ylim=(0, 1.06), ylabel="confidence")
        return ax

    save("stream", draw_stream)
    lines = ["| alpha | whole descriptions right | mean probability of the answer, raw |", "|---|---|---|"]
    for alpha in alphas:
        answers = []
        for each in scenes[:100]:
            strategy = ImageContrast(probe, DESCRIBE, each.picture, alpha=alpha)
            answers.append(probe.generate(DESCRIBE, each.picture, prompt=False, logits_processor=[strategy]))
        right = calibration.correctness(answers, [each.description for each in scenes[:100]])
        sure = np.mean([answer.confidence for answer in answers])
        lines.append(f"| {alpha:g} | {right.mean():.0%} | {sure:.3f} |")
    true = DIGITS[scene.digits[0] if step < len(result.output) // 2 else scene.digits[1]]
    told = f"The digit that is described there is {article(true)} {true}. Over 100 descriptions:"
    write("decoding", "figures", [told, "", *lines])


def contrasted(probe: Any, scene: Scene, before: list[int], alpha: float) -> np.ndarray:
    """Log-probabilities [V] of the next token after ``before``, under the contrast."""
    from vlmprobe.inputs.messages import Conversation

    conversation = Conversation.build(DESCRIBE, scene.picture)
    prompt = probe.engine.prompt_ids(conversation).tolist()
    raw = probe.engine.second_prompt(conversation).logits(before)
    scores = ImageContrast(probe, DESCRIBE, scene.picture, alpha=alpha)(torch.tensor([prompt + before]), raw[None])
    return np.asarray(torch.log_softmax(scores[0].double(), dim=-1))


PAGES = {
    "ask": draw_ask,
    "candidates": draw_candidates,
    "rank": draw_rank,
    "heads": draw_heads,
    "decoding": draw_decoding,
}

if __name__ == "__main__":
    main(sys.argv[1:])
