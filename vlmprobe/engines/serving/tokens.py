"""What the client knows of the model's tokens: texts of ids, image positions, the rendered prompt."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmprobe.errors import AdapterError, CapabilityError, CheckpointError, EngineResponseError
from vlmprobe.inputs.image_spans import ImageSpan, divide_runs, placeholder_runs
from vlmprobe.inputs.messages import Conversation
from vlmprobe.results.detokenize import Detokenizer

if TYPE_CHECKING:
    from vlmprobe.adapter import Adapter
    from vlmprobe.engines.serving.rows import Row

__all__ = ["Tokens"]

PADDED = 4096  # ids that a head may have beyond the tokenizer's, where only the tokenizer is known
NEEDED = "pass processor= (the model's folder, hub id or processor) to vlmprobe.connect"


class Tokens:
    """The client's view of the vocabulary; without a processor, little is known.

    Attributes:
        detokenizer: of the model's tokenizer, or None.
        image_ids: ids of image placeholders, as far as they are known.
    """

    def __init__(self, adapter: Adapter | None = None, image_ids: Collection[int] = ()) -> None:
        self.adapter = adapter
        self.detokenizer = Detokenizer(adapter.tokenizer) if adapter is not None else None
        self.image_ids = frozenset(image_ids) or (adapter.image_ids if adapter is not None else frozenset())

    @classmethod
    def of(cls, processor: Any, image_ids: Collection[int] = ()) -> Tokens:
        """From what ``vlmprobe.connect`` takes as ``processor``.

        Args:
            processor: None, a folder or hub id, a processor or tokenizer, or a local :class:`vlmprobe.Probe` of the
                same model.
            image_ids: ids of image placeholders, if the processor does not declare them.
        """
        if processor is None:
            return cls(None, image_ids)
        if isinstance(processor, (str, os.PathLike)):
            return cls(_reader(processor), image_ids)
        engine = getattr(processor, "engine", None)
        if engine is not None:
            if not hasattr(engine, "adapter"):
                raise CapabilityError("A probe given as processor= must come from vlmprobe.load or wrap.")
            return cls(engine.adapter, image_ids)
        if not callable(getattr(processor, "decode", None)) and not hasattr(processor, "tokenizer"):
            raise TypeError(f"processor= is a folder, a hub id, a processor or a probe, not {type(processor).__name__}")
        return cls(_wrapped(processor), image_ids)

    @cached_property
    def vocabulary(self) -> int | None:
        """Exclusive upper bound on the model's ids; None without a processor."""
        if self.adapter is None:
            return None
        # A head may be wider than the tokenizer, and a placeholder's id may be beyond the head.
        known = self._declared or len(self.adapter.tokenizer) + PADDED
        return max(known, len(self.adapter.tokenizer), *(each + 1 for each in self.image_ids))

    @cached_property
    def listable(self) -> int | None:
        """How many tokens the model's head has at least; None without a processor."""
        return None if self.adapter is None else self._declared or len(self.adapter.tokenizer)

    @property
    def _declared(self) -> int | None:
        """The width of the head, where the checkpoint's configuration is known."""
        assert self.adapter is not None
        config = self.adapter.model.config
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        return getattr(text, "vocab_size", None)

    def require_ids(self, rows: Iterable[Row], where: str) -> None:
        """Raise :class:`EngineResponseError` for an id outside the model's vocabulary."""
        limit = self.vocabulary
        if limit is None:
            return
        for row in rows:
            for each in (row.id, *(other.id for other in row.top)):
                if each is not None and each >= limit:
                    raise EngineResponseError(
                        f"{where} holds the token id {each}, but the model of processor= has only ids below "
                        f"{limit}: is it the served model's?"
                    )

    def spans(self, ids: np.ndarray, conversation: Conversation, where: str) -> tuple[ImageSpan, ...]:
        """The runs of image positions in a prompt of ids [S], split by image.

        Raises:
            EngineResponseError: if the prompt does not hold the images.
            CapabilityError: if the placeholders are unknown.
        """
        images = len(conversation.images)
        if not images:
            return ()
        if not self.image_ids:
            raise CapabilityError(f"The image positions of the prompt are not known: {NEEDED}, or image_ids=.")
        runs = placeholder_runs(ids, self.image_ids)
        if len(runs) < 1:
            raise EngineResponseError(
                f"{where}: the prompt of {len(ids)} ids does not hold the image. Did the server ignore it, or is "
                "processor= of another model?"
            )
        if self.adapter is not None and self.adapter.image_ids:
            try:
                return self.adapter.spans(ids, conversation)
            except AdapterError as error:
                raise EngineResponseError(f"{where}: {error}") from error
        if images == 1:
            return divide_runs(runs, [len(ids)])
        if len(runs) != images:
            raise CapabilityError(f"The prompt has {len(runs)} runs of image positions for {images} images: {NEEDED}.")
        return divide_runs(runs, [stop - start for start, stop in runs])

    def need(self, what: str) -> Adapter:
        """The adapter, or an error that says what it is needed for."""
        if self.adapter is None:
            raise CapabilityError(f"{what} needs the model's tokenizer and template: {NEEDED}.")
        return self.adapter


def _reader(checkpoint: str | os.PathLike[str]) -> Adapter:
    """The adapter of a checkpoint, without its weights."""
    from transformers import AutoConfig, AutoProcessor

    from vlmprobe.adapter import Adapter
    from vlmprobe.model_registry import registry

    name = os.path.expanduser(os.fspath(checkpoint))
    if name == "demo":
        from vlmprobe.demo import checkpoint as bundled

        name = str(bundled())
    config = registry.read_config(name)
    found = registry.find(config, checkpoint=name)
    if found.load.__func__ is not Adapter.load.__func__:  # type: ignore[attr-defined]
        raise CapabilityError(
            f"{name} is in an original format, which is read together with its weights: pass "
            "processor=vlmprobe.load(...) of it."
        )
    try:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
        outer = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, LookupError) as error:
        raise CheckpointError(f"The processor of {name} cannot be loaded: {error}") from error
    return found(SimpleNamespace(config=outer), processor)


def _wrapped(processor: Any) -> Adapter:
    """A processor as an adapter of a model that follows transformers' conventions."""
    from vlmprobe.adapter import Adapter

    tokenizer = getattr(processor, "tokenizer", processor)
    found = getattr(processor, "image_token_id", None)
    if not isinstance(found, int) and isinstance(getattr(processor, "image_token", None), str):
        found = tokenizer.convert_tokens_to_ids(processor.image_token)
    name = getattr(tokenizer, "name_or_path", "")
    config = SimpleNamespace(image_token_id=found, name_or_path=name, model_type=type(processor).__name__)
    return Adapter(SimpleNamespace(config=config), processor)
