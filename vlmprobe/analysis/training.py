"""Track confidence during fine-tuning: a callback for ``transformers.Trainer``.

>>> callback = ProbeCallback([Request("What colour is the ball?", image, id="ball")], answers=["red"])
>>> trainer = callback.attach(Trainer(model, arguments, ..., processing_class=processor))
>>> trainer.train()
>>> callback.history[-1]["probe/accuracy"]
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import Trainer, TrainerCallback

from vlmprobe.analysis import calibration, uncertainty
from vlmprobe.analysis.confidences import confidences, correctness, normal_text
from vlmprobe.engines.option_checks import greedy_by_default
from vlmprobe.errors import ResultError, near
from vlmprobe.probe import Probe
from vlmprobe.probe.load import wrap
from vlmprobe.probe.request import Requests
from vlmprobe.probe.tables import rows_of
from vlmprobe.results.result import Result

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

__all__ = ["EVENTS", "ProbeCallback"]

EVENTS = ("begin", "step", "epoch", "evaluate", "end")
SHARES = ("confidence", "accuracy", "auroc", "ece", "brier")  # the logged numbers that lie between 0 and 1
MEASURES = ("mean_logprob", "perplexity", "mean_entropy", "min_margin")


class ProbeCallback(TrainerCallback):
    """Runs a fixed set of questions during training, greedily, and logs confidence and correctness.

    Always logged, under ``probe/``: ``confidence`` (mean over the answers) and the chosen measures (means likewise).
    With known answers: ``accuracy``, ``brier``, ``ece`` (in ten bins; noisy below a few hundred questions), and
    ``auroc`` if there are both right and wrong answers. Further, the results of custom ``probes``.

    The model runs in evaluation mode, without gradients, and every module's mode is restored; greedy decoding draws no
    random numbers. In distributed training only the first process runs the questions; a model whose parameters are
    sharded over processes (FSDP, ZeRO-3) is not supported.
    """

    def __init__(
        self,
        questions: Requests,
        answers: Sequence[str | Iterable[str]] | None = None,
        *,
        on: Collection[str] = ("begin", "evaluate", "end"),
        every: int | None = None,
        measures: Collection[str] = MEASURES,
        probes: Mapping[str, Callable[[Probe], float]] | None = None,
        by: str | Callable[[Result], float] = "sequence",
        normal: Callable[[str], str] = normal_text,
        processor: Any = None,
        adapter: str | None = None,
        prefix: str = "probe",
        **generation: Any,
    ) -> None:
        """Configure what to run and when.

        Args:
            questions: the fixed set, as for :meth:`Probe.generate_many`.
            answers: the expected text of each, or several; None logs no correctness.
            on: when to run: ``"begin"`` and ``"end"`` of training, each ``"epoch"``, whenever the trainer evaluates.
            every: also run after each such number of steps.
            measures: names of :data:`vlmprobe.analysis.uncertainty.MEASURES` to log the mean of.
            probes: further metrics by name: functions of the probe, such as
                ``{"says_yes": lambda probe: float(probe.score(question, ["yes", "no"]).probabilities[0])}``.
            by: confidence measure, as in :func:`vlmprobe.analysis.confidences.confidences`.
            normal: text normalisation, as in :func:`vlmprobe.analysis.confidences.correctness`.
            processor: of the model; the trainer's ``processing_class`` if None.
            adapter: name of the adapter, as in :func:`vlmprobe.wrap`.
            prefix: of the names of the logged numbers.
            **generation: as in :meth:`Probe.generate`; greedy unless told otherwise.
        """
        questions = list(rows_of(questions, "ProbeCallback")[0])
        if not questions:
            raise ResultError("questions is empty: give at least one to run during training")
        if answers is not None and len(answers) != len(questions):
            raise ResultError(f"{len(answers)} answers do not match {len(questions)} questions")
        for each in on:
            if each not in EVENTS:
                raise ResultError(f"on must be among {', '.join(EVENTS)}, not {each!r}.{near(str(each), EVENTS)}")
        for each in measures:
            if each not in uncertainty.MEASURES:
                raise ResultError(f"There is no measure {each!r}.{near(each, uncertainty.MEASURES)}")
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise ResultError(f"every must be an integer of at least 1, not {every!r}")
        if answers is not None:
            calibration.auroc([0, 1], [False, True])  # a missing package fails now and not in the middle of training
        self.questions = questions
        self.answers = None if answers is None else list(answers)
        self.on = frozenset(on)
        self.every = every
        self.measures = tuple(measures)
        self.probes = dict(probes or {})
        self.by = by
        self.normal = normal
        self.processor = processor
        self.adapter = adapter
        self.prefix = prefix
        self.generation = greedy_by_default(generation)
        self.history: list[dict[str, float]] = []  # what was logged, with "step"
        self._trainer: Trainer | None = None
        self._asked_at = -1  # the last step at which the questions ran

    def attach(self, trainer: Trainer) -> Trainer:
        """Add the callback to a trainer and log to its loggers; otherwise only ``history`` is filled."""
        self._trainer = trainer
        trainer.add_callback(self)
        return trainer

    def plot(self, ax: Any = None, *, names: Sequence[str] = ()) -> Any:
        """Logged numbers over training steps, as lines. Returns the axes.

        Args:
            ax: axes to draw on.
            names: of the numbers, without their prefix; those of confidence and correctness (0 to 1) if empty.

        Raises:
            ResultError: before anything was logged, or for a name that was not.
        """
        from vlmprobe.display.plots.training import draw_history

        if not self.history:
            raise ResultError("Nothing has been logged yet: train first.")
        start = len(self.prefix) + 1
        logged = list(dict.fromkeys(name[start:] for each in self.history for name in each if name != "step"))
        for name in names:
            if name not in logged:
                raise ResultError(f"{name!r} was not logged.{near(name, logged)}")
        values = {
            name: np.array([each.get(f"{self.prefix}/{name}", np.nan) for each in self.history], dtype=np.float64)
            for name in names or [name for name in SHARES if name in logged]
        }
        return draw_history(np.array([each["step"] for each in self.history]), values, ax)

    def ask(self, model: Any, processor: Any) -> dict[str, float]:
        """Run the questions now and return the numbers, without their prefix."""
        probe = wrap(model, processor, adapter=self.adapter)
        results = list(probe.generate_many(self.questions, progress=False, prompt=False, **self.generation))
        sure = confidences(results, self.by)
        numbers = {"confidence": float(sure.mean())}
        for name in self.measures:
            numbers[name] = float(np.mean([uncertainty.MEASURES[name](result) for result in results]))
        if self.answers is not None:
            right = correctness(results, self.answers, self.normal)
            numbers |= {"accuracy": float(right.mean()), **_calibrated(sure, right)}
        return numbers | {name: float(ask(probe)) for name, ask in self.probes.items()}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Run before the first step."""
        self._event("begin", state, control, kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Run after every ``every`` steps."""
        if self.every and state.global_step % self.every == 0:
            self._log(state, control, kwargs)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Run after an epoch."""
        self._event("epoch", state, control, kwargs)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Run when the trainer evaluates."""
        self._event("evaluate", state, control, kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Run after the last step."""
        self._event("end", state, control, kwargs)

    def _event(self, name: str, state: TrainerState, control: TrainerControl, kwargs: Mapping[str, Any]) -> None:
        if name in self.on:
            self._log(state, control, kwargs)

    def _log(self, state: TrainerState, control: TrainerControl, kwargs: Mapping[str, Any]) -> None:
        if not state.is_world_process_zero or state.global_step == self._asked_at:
            return  # the weights have not changed since
        processor = self.processor if self.processor is not None else kwargs.get("processing_class")
        if processor is None:
            raise ResultError(
                "The trainer has no processor: give processing_class= to it, or processor= to the callback."
            )
        self._asked_at = state.global_step
        numbers = {f"{self.prefix}/{name}": value for name, value in self.ask(kwargs["model"], processor).items()}
        self.history.append({"step": state.global_step, **numbers})
        if self._trainer is not None:
            due = control.should_log
            self._trainer.log(dict(numbers))
            control.should_log = due  # logging clears it, and the trainer's own loss would not be logged


def _calibrated(sure: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Calibration metrics; those that need both right and wrong answers are left out without them."""
    if not ((sure >= 0) & (sure <= 1)).all():
        return {}  # a custom confidence that is not a probability
    numbers = {"brier": float(np.mean((sure - right) ** 2)), "ece": calibration.ece(sure, right, bins=10)}
    if 0 < right.sum() < len(right):
        numbers["auroc"] = calibration.auroc(sure, right)
    return numbers
