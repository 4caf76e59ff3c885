"""Draw the plots and write the figures of the pages on confidence: ``python tools/docs/draw_confidence.py``.

Everything is measured on the embedded demo model and held-out handwriting. Takes a few minutes.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot
from PIL import Image, ImageDraw

import vlmprobe
from vlmprobe.analysis import calibration, detection, distillation, gating, plots, recalibration, uncertainty
from vlmprobe.demo.scenes import Scene, held_out
from vlmprobe.results.result import Result

DOCS = Path(__file__).resolve().parents[2] / "docs"
SCENES = 600
ACCURACY, ERRORS = 0.95, 0.05  # guaranteed for accepted answers
HASTY = 2.0  # distortion strength: beyond the training range, where the model is overconfident
HARD = ("describe", "digit", "exists")  # the kinds of questions that it does not always answer correctly


def main() -> None:
    """Draw and write everything."""
    mpl.use("Agg")
    probe = vlmprobe.load("demo", device="cpu")
    scenes = list(held_out(SCENES))
    _, results, right = answers(probe, scenes)
    sure = calibration.confidences(results, by="sequence")
    draw_uncertainty(results, right, sure)
    hasty_asked, hastily, hasty_right = answers(probe, list(held_out(SCENES, strength=HASTY)))
    draw_sampling(probe, hasty_asked, hastily, hasty_right)
    draw_calibration({"as written": (results, right), "hasty": (hastily, hasty_right)})
    draw_detection(probe, scenes[:100])
    draw_export(probe, scenes[:40])
    draw_training(scenes[:60])


def answers(probe: Any, scenes: list[Scene]) -> tuple[list[vlmprobe.Request], list[Result], np.ndarray]:
    """The questions of the hard kinds, their answers, and which are right."""
    chosen = [(scene, qa) for scene in scenes for qa in scene.questions if qa.kind in HARD]
    asked = [vlmprobe.Request(qa.question, scene.picture) for scene, qa in chosen]
    results = list(probe.generate_many(asked, batch_size=64, prompt=False, progress=False))
    return asked, results, calibration.correctness(results, [qa.answer for _, qa in chosen])


def draw_uncertainty(results: list[Result], right: np.ndarray, sure: np.ndarray) -> None:
    """The least confident wrong sentence, token by token."""
    wrong = [place for place in np.flatnonzero(~right) if len(results[place].output) > 6]
    result = results[min(wrong, key=lambda each: sure[each])]
    save("tokens", lambda: plots.tokens(result))
    said = [f"| `{name}` | {value:.3f} |" for name, value in uncertainty.summary(result).items()]
    write("uncertainty", "summary", [f"> {result.text}", "", "| measure | value |", "|---|---|", *said])


def draw_sampling(probe: Any, asked: list[vlmprobe.Request], results: list[Result], right: np.ndarray) -> None:
    """Semantic entropy of right and wrong answers about one digit."""
    digits = [place for place, each in enumerate(asked) if str(each.question).startswith("Which digit")]
    bad = [place for place in digits if not right[place]][:40]
    good = [place for place in digits if right[place]][:40]
    entropy: dict[str, list[float]] = {}
    for name, places in (("right", good), ("wrong", bad)):
        drawn = [probe.sample(asked[place].question, asked[place].image, n=10) for place in places]
        entropy[f"answered {name}"] = [each.semantic_entropy() for each in drawn]
    save("semantic-entropy", lambda: plots.scores(entropy, label="semantic entropy of ten sampled answers (nats)"))
    area = detection.detection(entropy["answered right"], entropy["answered wrong"]).auroc
    write("sampling", "figures", [f"{len(good)} right and {len(bad)} wrong answers: AUROC {area}."])


def draw_calibration(asked: dict[str, tuple[list[Result], np.ndarray]]) -> None:
    """Reliability before and after, risk-coverage with a threshold; fitted on one half, evaluated on the other."""
    sure = {name: calibration.confidences(results, by="sequence") for name, (results, _) in asked.items()}
    right = {name: correct for name, (_, correct) in asked.items()}
    fit = np.arange(len(sure["hasty"])) < len(sure["hasty"]) // 2  # by scene, so that no image is in both halves
    known, new = (sure["hasty"][fit], right["hasty"][fit]), sure["hasty"][~fit]
    test = {
        "as written": sure["as written"][~fit],
        "hasty": new,
        "hasty, temperature": recalibration.fit_temperature(*known)(new),
        "hasty, Platt": recalibration.fit_platt(*known)(new),
        "hasty, isotonic": recalibration.fit_isotonic(*known)(new),
    }
    outcome = {name: right[name.partition(",")[0]][~fit] for name in test}
    rows = ["| writing, map | accuracy | ECE | adaptive ECE | Brier | AUROC | AURC |", "|---|---|---|---|---|---|---|"]
    for name, values in test.items():
        found = calibration.report(values, outcome[name])
        figures = " | ".join(f"{found[each]:.4f}" for each in ("ece", "adaptive_ece", "brier", "auroc", "aurc"))
        rows.append(f"| {name} | {outcome[name].mean():.1%} | {figures} |")
    rows += ["", f"{int((~fit).sum())} answers per row; maps fitted on {int(fit.sum())} others."]
    write("calibration", "figures", rows)
    shown = {name: calibration.reliability(test[name], outcome[name], 10) for name in ("hasty", "hasty, Platt")}
    save("reliability", lambda: plots.reliability_diagram(shown))
    threshold = gating.accept_for_accuracy(*known, ACCURACY)
    curve = calibration.risk_coverage(new, outcome["hasty"])
    save("risk-coverage", lambda: plots.risk_coverage(curve, threshold))
    kept = new >= threshold.value
    write(
        "gating",
        "figures",
        [
            f"> {threshold}",
            "",
            f"On the other {len(new)} answers {kept.mean():.1%} reach it, and {outcome['hasty'][kept].mean():.2%} of "
            f"those are right (of all {len(new)}: {outcome['hasty'].mean():.2%}).",
            "",
            *splits(sure["hasty"], right["hasty"]),
        ],
    )


def splits(sure: np.ndarray, right: np.ndarray) -> Iterator[str]:
    """The guarantees over a thousand random splits of the answers."""
    random, broken, given, passed = np.random.default_rng(1), 0, 0, []
    for _ in range(1000):
        order = random.permutation(len(sure))
        fit, rest = order[: len(sure) // 2], order[len(sure) // 2 :]
        errors = gating.accept_for_errors(sure[fit], right[fit], ERRORS)
        passed.append((~right[rest] & (sure[rest] >= errors.value)).mean())
        try:
            accuracy = gating.accept_for_accuracy(sure[fit], right[fit], ACCURACY)
        except calibration.CalibrationError:
            continue
        given += 1
        broken += right[sure >= accuracy.value].mean() < ACCURACY
    yield "| guarantee | over 1,000 random splits |"
    yield "|---|---|"
    yield (
        f"| `accept_for_accuracy({ACCURACY}, delta=0.05)` | found in {given}; accuracy of what reaches it, over all "
        f"answers, below {ACCURACY} in {broken} ({broken / 1000:.1%}; guaranteed: at most 5%) |"
    )
    error = np.std(passed) / np.sqrt(len(passed))
    yield (
        f"| `accept_for_errors({ERRORS})` | accepted and wrong in the other half: {np.mean(passed):.2%} on average, "
        f"standard error {error:.2%} (guaranteed: at most {ERRORS:.0%}) |"
    )


def draw_detection(probe: Any, scenes: list[Scene]) -> None:
    """The scores on scenes, noise, shapes that are not digits, and scenes with inverted brightness."""
    random = np.random.default_rng(2)
    images = {
        "handwriting": [scene.picture for scene in scenes],
        "noise": [Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in scenes],
        "shapes": [shapes(random) for _ in scenes],
        "inverted": [Image.eval(scene.picture.convert("RGB"), lambda value: 255 - value) for scene in scenes],
    }
    results = {
        name: list(
            probe.generate_many(
                [vlmprobe.Request("Describe the picture.", image) for image in group],
                batch_size=64,
                prompt=False,
                progress=False,
            )
        )
        for name, group in images.items()
    }
    values = {name: [detection.entropy(each, "max") for each in group] for name, group in results.items()}
    save("detection", lambda: plots.scores(values, label="largest entropy of a step (nats)"))
    rows = ["| unusual input | score | AUROC | false positive rate at 95% recall |", "|---|---|---|---|"]
    for name in list(images)[1:]:
        found = detection.evaluate(results["handwriting"], results[name], "max", resamples=300)
        rows += [f"| {name} | `{score}` | {each.auroc} | {each.fpr95:.0%} |" for score, each in found.items()]
    write("detection", "figures", rows)


def shapes(random: np.random.Generator) -> Image.Image:
    """A coloured ellipse and a rectangle where the digits would be."""
    image = Image.new("RGB", (64, 64), "black")
    pen = ImageDraw.Draw(image)
    for left, draw in ((6, pen.ellipse), (36, pen.rectangle)):
        size, top = random.integers(12, 22), random.integers(14, 30)
        draw((left, top, left + size, top + size), fill=tuple(random.integers(80, 256, 3).tolist()))
    return image


def draw_export(probe: Any, scenes: list[Scene]) -> None:
    """How much of the divergence of a student from its teacher the top-k captures."""
    teacher = [
        probe.generate("Describe the picture.", scene.picture, keep="logits", prompt=False).output for scene in scenes
    ]
    noise = torch.Generator().manual_seed(0)
    students = [torch.tensor(table.logits) + torch.randn(table.logits.shape, generator=noise) for table in teacher]
    width = teacher[0].logits.shape[1]
    sizes = sorted({int(each) for each in np.geomspace(1, width, 16)})
    kept = [
        np.mean(
            [
                distillation.kl_divergence(distillation.targets_of(table, top), student).item()
                for table, student in zip(teacher, students, strict=True)
            ]
        )
        for top in sizes
    ]

    def draw() -> Any:
        ax = plots.axes(None, size=(5.0, 3.2))
        ax.plot(sizes, 100 * np.array(kept) / kept[-1], "o-", color=plots.COLOURS[0])
        ax.set_xscale("log")
        ax.set_xticks([1, 3, 10, 30, 100, 300], ["1", "3", "10", "30", "100", "300"])
        ax.set(ylim=(0, 105), xlabel="K, tokens kept of each row", ylabel="divergence seen (%)")
        return ax

    save("top-k", draw)


def draw_training(scenes: list[Scene]) -> None:
    """Fine-tune the demo model on twelve sentences and evaluate it on unseen scenes."""
    from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments

    from vlmprobe.analysis.training import ProbeCallback
    from vlmprobe.demo import checkpoint

    torch.manual_seed(0)
    processor = AutoProcessor.from_pretrained(checkpoint())
    model = AutoModelForImageTextToText.from_pretrained(checkpoint(), dtype="float32")
    end = processor.tokenizer.eos_token_id
    rows = []
    for scene in scenes[:12]:
        question = [{"type": "image", "image": scene.picture}, {"type": "text", "text": "Describe the picture."}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": question}],
            tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
        )  # fmt: skip
        answer = [*processor.tokenizer.encode(scene.description), end]
        ids = torch.cat([prompt["input_ids"], torch.tensor([answer])], dim=1)
        labels = torch.full_like(ids, -100)
        labels[0, -len(answer) :] = torch.tensor(answer)
        rows.append(
            {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "pixel_values": prompt["pixel_values"],
                "labels": labels,
            }
        )
    unseen = [vlmprobe.Request("Describe the picture.", scene.picture) for scene in scenes[12:]]
    callback = ProbeCallback(unseen, [scene.description for scene in scenes[12:]], on=("begin", "end"), every=10)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=1, learning_rate=4e-4, max_steps=150, report_to=[],
            lr_scheduler_type="constant", save_strategy="no", use_cpu=True, remove_unused_columns=False,
            disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        trainer = Trainer(
            model, arguments, train_dataset=rows, processing_class=processor, data_collator=lambda batch: batch[0]
        )
        trainer.add_callback(callback)
        trainer.train()
    steps = [each["step"] for each in callback.history]

    def draw() -> Any:
        ax = plots.axes(None, size=(5.2, 3.2))
        for place, name in enumerate(("confidence", "accuracy")):
            line = plots.MARKERS[place] + plots.LINES[place]
            values = [each[f"probe/{name}"] for each in callback.history]
            ax.plot(steps, values, line, color=plots.COLOURS[place], label=name, markersize=5)
        ax.set(ylim=(0, 1.03), xlabel="step", ylabel="48 unseen scenes")
        ax.legend(frameon=False, fontsize="small")
        return ax

    save("training", draw)


def save(name: str, draw: Callable[[], Any], colours: int = 64) -> None:
    """Draw for a light and a dark background, as small PNG files with ``colours`` colours."""
    for style, suffix in (("default", ""), ("dark_background", "-dark")):
        with pyplot.style.context(style):
            figure = draw().figure
            if suffix:
                figure.set_facecolor("#0d1117")
                for ax in figure.axes:
                    ax.set_facecolor("#0d1117")
            path = DOCS / "img" / f"{name}{suffix}.png"
            path.parent.mkdir(exist_ok=True)
            figure.savefig(path, dpi=110)
            pyplot.close(figure)
        # A plot has few colours: a palette makes the file a third of the size.
        Image.open(path).convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)


def write(page: str, part: str, lines: list[str], script: str = "draw_confidence") -> None:
    """Replace the lines between the markers of a part of a page, which name the generating script."""
    path = DOCS / "use" / f"{page}.md"
    text = path.read_text(encoding="utf-8")
    begin = f"<!-- {part}, written by tools/docs/{script}.py -->"
    block = re.compile(re.escape(begin) + r"\n.*?<!-- end -->", re.DOTALL)
    if not block.search(text):
        raise ValueError(f"{path} has no part {part}")
    written = "\n".join([begin, "", *lines, "", "<!-- end -->"])
    path.write_text(block.sub(lambda _: written, text), encoding="utf-8")


if __name__ == "__main__":
    main()
