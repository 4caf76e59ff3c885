"""A probe as a model of lm-eval: ``--model vlmprobe`` of its command line, ``python -m vlmprobe.harness.lm_eval``."""

from __future__ import annotations

import json
import runpy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vlmprobe.cli.open_model import is_server
from vlmprobe.errors import CapabilityError, MissingExtraError
from vlmprobe.harness.asking import answers, batches, log_likelihoods, opened, pictures, with_pictures
from vlmprobe.probe import Probe
from vlmprobe.probe.failure import naming

try:
    from lm_eval import models  # noqa: F401 - registers the models of lm-eval, beside which this one comes
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise MissingExtraError("lm-eval", "lm-eval") from error

__all__ = ["Chat", "LMEvalProbe", "main"]

UNASKED = "cuda:0"  # the device that lm-eval hands over where its user names none
MOST = 256  # new tokens where a task does not say; that of lm-eval's own models


class Chat(str):
    """Chat messages as the text, JSON, that lm-eval hands from ``apply_chat_template`` to the model."""


class LMEvalProbe(LM):
    """Asks a probe the requests of lm-eval, with images wherever a task writes ``<image>``.

    With ``--apply_chat_template`` prompts are messages, written by the model's own template, once. Without it they are
    raw prompts, as lm-eval means them.
    """

    MULTIMODAL = True

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
        if device == UNASKED and (is_server(str(pretrained)) or not torch.cuda.is_available()):
            device = None
        self.probe = opened(pretrained, device, options)
        self.batch_size = batches(batch_size)
        self.out = out

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each continuation: its log-probability in nats, that of ``probe.score``, and whether it is greedy."""
        wanted = [(_prompt(request), request.args[1]) for request in requests]
        found: dict[int, Any] = {}
        for place, value in log_likelihoods(self.probe, wanted, lambda n: _row(n, requests[n]), self.batch_size):
            found[place] = value
            self.cache_hook.add_partial("loglikelihood", requests[place].args, value)
        return [found[place] for place in range(len(requests))]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The answer to each request, up to the first of its stop strings."""
        wanted = [request.args[1] for request in requests]
        found: dict[int, str] = {}
        for place, text in answers(self.probe, wanted, lambda n: _row(n, requests[n]), self.batch_size, MOST, self.out):
            found[place] = text
            self.cache_hook.add_partial("generate_until", requests[place].args, text)
        return [found[place] for place in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Refused: a probe scores what follows a prompt."""
        raise CapabilityError("vlmprobe scores answers to prompts, not whole documents (loglikelihood_rolling)")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> Chat:
        """The messages; the last one is continued if it is the assistant's."""
        return Chat(json.dumps(chat_history, ensure_ascii=False))

    def chat_template(self, chat_template: bool | str = False) -> str:
        """What lm-eval records of the template: nothing, for every result of the probe has its own.

        Raises:
            CapabilityError: for one that is named, which would not be used.
        """
        if isinstance(chat_template, str):
            raise CapabilityError(
                f"--apply_chat_template {chat_template}: give the text or the file of another template as "
                "--model_args chat_template=, and leave out its name here."
            )
        return ""

    @property
    def tokenizer_name(self) -> str:
        """Tells cached prompts from those of other models; as messages they are alike for all models."""
        return "vlmprobe"

    def get_model_info(self) -> dict[str, Any]:
        """For the results of lm-eval: model, revision, engine, dtype and versions."""
        return {"vlmprobe": dict(self.probe.meta)}


def _prompt(request: Any) -> tuple[Any, ...]:
    """What tells the prompt of a request from others: its text, and which images are held for it."""
    context, _, *more = request.args
    visual = more[0].get("visual") if more else None
    listed = visual if isinstance(visual, (list, tuple)) else [visual]
    return (type(context), context, *map(id, listed))


def _row(place: int, request: Any) -> Mapping[str, Any]:
    """The prompt of a request as a row of ``generate_many``."""
    context, _, *more = request.args
    name = f"{request.task_name}/{request.doc_id}"
    with naming(place, name):
        extra = dict(more[0]) if more else {}
        images = pictures(extra.pop("visual", None))
        if extra:
            raise CapabilityError(f"vlmprobe reads text and images, not {', '.join(extra)}")
        is_chat = isinstance(context, Chat)
        messages = json.loads(context) if is_chat else [{"role": "user", "content": context}]
        row = {"question": with_pictures(messages, images), "id": name}
        return row if is_chat else {**row, "raw_prompt": True}


def main() -> None:
    """The command line of lm-eval, ``python -m lm_eval``, which then knows ``--model vlmprobe``."""
    runpy.run_module("lm_eval", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    from vlmprobe.harness import lm_eval  # the module of that name registers the model, by which it can be pickled

    lm_eval.main()
else:
    register_model("vlmprobe")(LMEvalProbe)
