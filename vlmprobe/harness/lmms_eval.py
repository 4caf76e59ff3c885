"""A probe as a model of lmms-eval, which finds it by the entry point ``lmms_eval.models``: ``--model vlmprobe``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from vlmprobe.errors import CapabilityError, MissingExtraError
from vlmprobe.harness.asking import answers, batches, log_likelihoods, opened, pictures, with_pictures
from vlmprobe.probe import Probe
from vlmprobe.probe.failure import naming

try:
    from lmms_eval.api.instance import GenerationResult
    from lmms_eval.api.model import lmms
    from lmms_eval.models.registry_v2 import ModelManifest
except ImportError as error:
    raise MissingExtraError("lmms-eval", "lmms-eval") from error

__all__ = ["LMMsEvalChatProbe", "LMMsEvalProbe", "LogLikelihood", "manifest"]

MOST = 1024  # new tokens where a task does not say; that of most of lmms-eval's own models
UNHEEDED = "\n\n"  # the stop string that lmms-eval gives every task which names none; its own models leave it out
OF_OTHERS = "image_aspect_ratio"  # a generation option of tasks that only LLaVA's own code reads


def manifest() -> ModelManifest:
    """For the entry point: chat messages by default, and prompts with ``--force_simple``."""
    where = f"{__name__}.{{}}"
    return ModelManifest(
        "vlmprobe",
        simple_class_path=where.format(LMMsEvalProbe.__name__),
        chat_class_path=where.format(LMMsEvalChatProbe.__name__),
    )


class LogLikelihood(tuple[float, bool], GenerationResult):
    """A log-probability in nats, and whether the text is greedy: the pair that lmms-eval documents.

    lmms-eval 0.7 makes a text of a bare pair before it scores it, and hands on what a ``GenerationResult`` holds. Its
    cache is kept from storing the pair, for its key has no images.
    """

    def __init__(self, pair: tuple[float, bool]) -> None:
        pass

    @property
    def text(self) -> LogLikelihood:
        """The pair."""
        return self

    def strip(self) -> str:
        """Asked by the cache, which does not store what is empty without white space."""
        return ""


class LMMsEvalProbe(lmms):
    """Asks a probe the requests of lmms-eval: a context, its images where it has ``<image>``, or before it."""

    def __init__(
        self,
        pretrained: str | Probe,
        batch_size: int | str = "auto",
        device: str | None = None,
        out: str | None = None,
        **options: Any,
    ) -> None:
        """``pretrained`` is a model as on vlmprobe's command line, a URL too, or a probe; the rest as in ``opened``.

        ``out`` is a folder to keep answers in, with the numbers of their tokens.
        """
        super().__init__()
        self.probe = opened(pretrained, device, options)
        self.batch_size = batches(batch_size)
        self.out = out

    def loglikelihood(self, requests: Sequence[Any]) -> list[LogLikelihood]:
        """Of each continuation: its log-probability in nats, that of ``probe.score``, and whether it is greedy."""
        wanted = []
        for request in requests:
            context, text, to_visual, *document = request.args
            count_likelihoods(to_visual.__self__)
            wanted.append(((context, *document), text(self._document(*document)) if callable(text) else text))
        found = dict(log_likelihoods(self.probe, wanted, lambda n: self._row(n, requests[n]), self.batch_size))
        return [LogLikelihood(found[place]) for place in range(len(requests))]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to each request, up to the first of its stop strings but a blank line."""
        wanted = [self._options(request) for request in requests]
        found = dict(answers(self.probe, wanted, lambda n: self._row(n, requests[n]), self.batch_size, MOST, self.out))
        return [found[place] for place in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused."""
        raise CapabilityError("vlmprobe answers one round (generate_until), not generate_until_multi_round")

    def _document(self, doc_id: int, task: str, split: str) -> Any:
        return self.task_dict[task][split][doc_id]

    def _options(self, request: Any) -> Mapping[str, Any]:
        (given,) = (each for each in request.args[1:3] if isinstance(each, Mapping))
        until = given.get("until") or []
        until = [stop for stop in ([until] if isinstance(until, str) else until) if stop != UNHEEDED]
        return {**{name: value for name, value in given.items() if name != OF_OTHERS}, "until": until}

    def _row(self, place: int, request: Any) -> Mapping[str, Any]:
        """The prompt of a request as a row of ``generate_many``."""
        context, _, to_visual, *document = request.args
        name = f"{request.task_name}/{request.doc_id}"
        with naming(place, name):
            images = pictures(to_visual(self._document(*document)))
            if images and to_visual.__self__.config.num_fewshot:
                raise CapabilityError(
                    "lmms-eval gives no images for examples of a few-shot prompt: use --num_fewshot 0"
                )
            messages = [{"role": "user", "content": context}]
            return {"question": with_pictures(messages, images, first=True), "id": name}


class LMMsEvalChatProbe(LMMsEvalProbe):
    """Asks a probe the chat messages of tasks of lmms-eval, in which images stand where the task puts them."""

    is_simple = False

    def _row(self, place: int, request: Any) -> Mapping[str, Any]:
        context, to_messages, _, *document = request.args
        name = f"{request.task_name}/{request.doc_id}"
        with naming(place, name):
            read = self._document(*document)
            messages = [{**each, "content": [_part(part) for part in each["content"]]} for each in to_messages(read)]
            texts = [part["text"] for each in messages for part in each["content"] if part["type"] == "text"]
            task = getattr(to_messages, "__self__", None)  # an agentic round has a function of its own
            if task is not None and context not in (*texts, task.doc_to_text(read)):
                raise CapabilityError(
                    "lmms-eval put examples, a description or a system instruction into the context of this task, and "
                    "not into the messages that it gives to chat models: use --force_simple"
                )
            return {"question": messages, "id": name}


def _part(given: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a message of lmms-eval as one of vlmprobe's, which refuses video and audio by name."""
    if given["type"] != "image":
        return dict(given)
    (image,) = pictures(given["url"])
    return {"type": "image", "image": image}


def count_likelihoods(task: Any) -> None:
    """Let a task of choices take the likeliest one.

    lmms-eval's own scoring takes the least number, as of losses, which its models return as log-likelihoods. Where it
    is seen to do so, :class:`LogLikelihood` is turned around for it, and nothing else. A task that scores its choices
    itself gets what is documented.
    """
    if task.OUTPUT_TYPE != "multiple_choice" or task.config.process_results or "process_results" in vars(task):
        return
    twin = copy.copy(task)
    twin.doc_to_choice, twin.multiple_input = lambda _: ["a", "b"], 0
    twin.doc_to_target, twin.multiple_target = lambda _: 0, 0
    twin._metric_fn_list = {"acc": None}
    scored = inspect.unwrap(type(task).process_results)(twin, {}, [(-1.0, True), (-2.0, False)])
    if scored["acc"] == 1:
        return
    own = task.process_results

    def process_results(doc: Any, results: Sequence[Any], **more: Any) -> Any:
        return own(doc, [(-each[0], each[1]) if isinstance(each, LogLikelihood) else each for each in results], **more)

    task.process_results = process_results
