"""``AskWidget``: ask a model in a notebook, watch its answer come, and continue from another token."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import traitlets

from vlmprobe.display.widget import AnswerWidget, document_of, pictures
from vlmprobe.errors import ResultError
from vlmprobe.results.document import token_rows
from vlmprobe.results.result import Result

__all__ = ["AskWidget"]


class AskWidget(AnswerWidget):
    """A box to ask a question in, and the answer below it.

    Asked in the browser, the model runs in a thread of its own, so that other cells can run. ``results`` holds every
    answer that is shown or can be gone back to, ``result`` the one that is shown. ``error`` says why the last question
    had no answer.
    """

    question = traitlets.Unicode().tag(sync=True)
    busy = traitlets.Bool(False).tag(sync=True)
    earlier = traitlets.Int(0).tag(sync=True)  # answers before the one that is shown
    error = traitlets.Unicode().tag(sync=True)

    def __init__(
        self, probe: Any, image: Any = None, question: str = "", *, lang: str | None = None, **options: Any
    ) -> None:
        """Make the box.

        Args:
            probe: the :class:`Probe` that answers.
            image: as in :meth:`Probe.generate`; it is part of every question.
            question: what the box holds at first.
            lang: "en" or "zh"; by default the browser's language.
            options: of :meth:`Probe.stream`, and of :meth:`Probe.branch`.

        Raises:
            ImageError: for an image that cannot be read.
        """
        self._probe, self._options = probe, options
        self._image = list(probe.conversation(question or "?", image).images)  # read once, and now
        self._turn, self._stopping = threading.Lock(), threading.Event()
        self.results: list[Result] = []
        super().__init__(lang=lang, asks=True, question=question, document=self._nothing())
        self.on_msg(self._hear)

    @property
    def result(self) -> Result | None:
        """The answer that is shown, or None."""
        return self.results[-1] if self.results else None

    def ask(self, question: str) -> Result:
        """Ask, show the tokens as they come, and return the answer.

        Args:
            question: as in :meth:`Probe.generate`.

        Raises:
            ResultError: while another question is being answered.
            VlmprobeError: as :meth:`Probe.stream`.
        """
        return self._alone(lambda: self._answer(question))

    def branch(self, position: int, token: int | str) -> Result:
        """Keep the answer up to a position, put another token there, and continue: :meth:`Probe.branch`.

        Raises:
            ResultError: without an answer, and while another question is being answered.
            VlmprobeError: as :meth:`Probe.branch`.
        """
        return self._alone(lambda: self._branched(position, token))

    def back(self) -> None:
        """Show the answer before this one.

        Raises:
            ResultError: while a question is being answered.
        """
        self._alone(self._forget_last)

    def stop(self) -> None:
        """Stop the answer at its next token."""
        self._stopping.set()

    def _alone(self, work: Callable[[], Any]) -> Any:
        """Do one thing at a time, and say in the widget what went wrong."""
        if not self._turn.acquire(blocking=False):
            raise ResultError("Another question is being answered: wait for it, or stop it.")
        try:
            self._stopping.clear()
            self.busy, self.error = True, ""
            self.select(None)
            return work()
        except Exception as error:
            self.error = str(error) or type(error).__name__
            self._show()
            raise
        finally:
            self.busy = False
            self._turn.release()

    def _answer(self, question: str) -> Result:
        self.question = question
        self.document = self._nothing(question)
        with self._probe.stream(question, self._image, **self._options) as stream:
            for table in stream:
                rows = token_rows(table)
                self.document["output"].extend(rows)  # for a view that opens now
                self.send({"rows": rows})
                if self._stopping.is_set():
                    break
        return self._kept(stream.result)

    def _branched(self, position: int, token: int | str) -> Result:
        result = self.result
        if result is None:
            raise ResultError("There is no answer to branch from: ask first.")
        question = str(result.meta.get("question", ""))
        self._show_beginning(position, token)
        return self._kept(
            self._probe.branch(result, position, token, question=question, image=self._image, **self._options)
        )

    def _show_beginning(self, position: int, token: int | str) -> None:
        """What is known of a branch before it is generated: the tokens that are kept, and the one put in their place."""
        rows = self.document["output"]
        if not 0 <= position < len(rows):
            return
        chosen = [each for each in rows[position]["alternatives"] if token in (each["id"], each["token"])]
        begun = [rows[position] | each | {"confidence": math.exp(each["logprob"]), "rank": None} for each in chosen[:1]]
        self.document = {**self._nothing(self.question), "output": rows[:position] + begun}

    def _nothing(self, question: str = "") -> dict[str, Any]:
        """The document of an answer that has not begun."""
        return {"question": question, "output": [], "images": pictures(self._image)}

    def _kept(self, result: Result) -> Result:
        self.results.append(result)
        self._show()
        return result

    def _forget_last(self) -> None:
        if len(self.results) > 1:
            self.results.pop()
            self._show()

    def _show(self) -> None:
        """Show the last answer, or none."""
        self.earlier = max(0, len(self.results) - 1)
        if self.result is None:
            self.document = self._nothing()
        else:
            self.document = document_of(self.result) | {"images": pictures(self._image)}
            self.question = str(self.result.meta.get("question") or "")

    def _hear(self, _: Any, message: Any, __: Any) -> None:
        """What the browser asks for; it waits for nothing, so that the notebook goes on."""
        if not isinstance(message, Mapping):
            return
        if message.get("do") == "stop":
            self.stop()
            return
        work = self._work_of(message)
        if work is not None and not self.busy:
            threading.Thread(target=_quietly, args=(work,), name="vlmprobe-widget", daemon=True).start()

    def _work_of(self, message: Mapping[str, Any]) -> Callable[[], Any] | None:
        question, index = message.get("question"), message.get("index")
        if message.get("do") == "ask" and isinstance(question, str) and question.strip():
            return lambda: self.ask(question)
        if message.get("do") == "back":
            return self.back
        token = next((each for each in (message.get("id"), message.get("token")) if each is not None), None)
        if message.get("do") == "branch" and type(index) is int and isinstance(token, (int, str)):
            return lambda: self.branch(index, token)
        return None


def _quietly(work: Callable[[], Any]) -> None:
    """Work in a thread; what goes wrong is told in the widget."""
    try:
        work()
    except Exception:  # noqa: BLE001 - ``error`` holds it
        return
