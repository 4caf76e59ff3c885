"""The adapter contract: what vlmprobe must know about one family of models.

:class:`Adapter` does everything for a model that follows the conventions of transformers
(``AutoModelForImageTextToText`` and ``AutoProcessor`` with a chat template). A family that departs from
them overrides the method where it departs, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from vlmprobe.adapter.begun import unbegun, with_begun
from vlmprobe.adapter.encoding import Capabilities, Continuation, EncodedPrompt, Encoding, is_along
from vlmprobe.adapter.loading import load_native, remember_loader
from vlmprobe.adapter.prompts import Prompts
from vlmprobe.adapter.rope import rope_switch
from vlmprobe.adapter.template_order import drops_system, moves_images, text_before_image
from vlmprobe.adapter.text_ends import TextEnds, continued, held_at_end
from vlmprobe.errors import AdapterError, CapabilityError, MessageError, VlmprobeError
from vlmprobe.inputs.image_spans import ImageSpan, divide_runs, placeholder_runs, require_images, require_no_placeholder
from vlmprobe.inputs.messages import Conversation, ImagePart, Message

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

__all__ = [
    "Adapter",
    "Capabilities",
    "Continuation",
    "EncodedPrompt",
    "Encoding",
    "ImageSpan",
]

# How many ids at the end of a prompt are those of a text, and what continues that text: how many of these ids a
# further text merges with, and the ids from there on.
_End: TypeAlias = tuple[int, Callable[[str], tuple[int, tuple[int, ...]]]]


class Adapter(Prompts):
    """One family of models: how to load and encode, and where the modules of the network are.

    The defaults work for any model that follows transformers' conventions. A subclass declares which checkpoints it
    handles and overrides what its family does differently.

    Attributes:
        name: the name of its entry point.
        model_types: every ``model_type`` of config.json that it handles; if that is not specific enough, override
            :meth:`handles`.
        generic: a generic adapter is tried only if no other handles the checkpoint.
        capabilities: what the family supports; an instance may narrow it.
        processor_options: arguments that the processor needs besides the conversation.
        peft: the PEFT model around the model, if ``wrap`` was given one; else None.
        resizers: what can resize the images, if the caller has a choice; the argument ``resize`` of ``load`` and
            ``wrap`` then sets ``resize``, one of them.
    """

    name: ClassVar[str] = ""
    model_types: ClassVar[tuple[str, ...]] = ()
    generic: ClassVar[bool] = False
    capabilities: Capabilities = Capabilities()
    processor_options: Mapping[str, Any] = MappingProxyType({})
    peft: Any = None
    resizers: ClassVar[tuple[str, ...]] = ()
    resize: str = ""
    _text_ends: TextEnds | None = None
    _ends_of: tuple[EncodedPrompt, TextEnds | None, list[_End | None]] | None = None

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model  # a transformers PreTrainedModel with GenerationMixin
        self.processor = processor
        if (limit := rope_switch(getattr(model, "config", None))) is not None:
            self.capabilities = replace(self.capabilities, prefix_limit=limit)

    # -- which checkpoints, and how to load them ---------------------------------------------------

    @classmethod
    def handles(cls, config: Mapping[str, Any]) -> bool:
        """Whether this adapter handles a checkpoint with this ``config.json``. Runs no code of the checkpoint.

        Raises:
            NotImplementedError: if the class neither lists ``model_types`` nor overrides this.
        """
        if not cls.model_types or isinstance(cls.model_types, str):  # "in" would find "qwen" in a string "qwen2_vl"
            raise NotImplementedError(
                f"{cls.__name__} must say which checkpoints it handles: model_types = ('its_model_type',)."
            )
        return config.get("model_type") in cls.model_types

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        *,
        config: Mapping[str, Any],
        dtype: torch.dtype | str = "auto",
        device_map: Any = "cpu",
        revision: str | None = None,
        **options: Any,
    ) -> Adapter:
        """Load the model and its processor, in evaluation mode, onto ``device_map``.

        Args:
            checkpoint: a local folder or a hub id.
            config: the checkpoint's parsed ``config.json``.
            dtype: a torch dtype, or ``"auto"`` for the one the checkpoint was saved in.
            device_map: as in ``from_pretrained``: a device such as ``"cpu"``, ``"auto"``, or a map.
            revision: commit, branch or tag of a hub checkpoint.
            **options: further arguments of ``from_pretrained``; ``ignore_weights``: how the names of weights begin
                that may stay unread.

        Raises:
            CheckpointError: if weights are missing, do not fit the configuration, or are read by nothing.
        """
        model, processor = load_native(checkpoint, dtype=dtype, device_map=device_map, revision=revision, **options)
        remember_loader(model, cls)
        return cls(model, processor)

    # -- the conversation as model inputs ----------------------------------------------------------

    def encode(self, conversations: Sequence[Conversation]) -> Encoding:
        """The conversations as one left-padded batch of model inputs, on the CPU.

        Raises:
            CapabilityError: if the chat template or the processor does not support what the conversations contain.
            MessageError: for a text that contains an image placeholder of the model.
        """
        if self._text_ends is not None:
            self._text_ends.forget()  # the tokenizer may be changed between two calls
        written = self.placeholders()
        asked, conversations = conversations, unbegun(conversations)
        for conversation in conversations:
            self.check(conversation)
            if not conversation.format.raw_prompt:  # whose text may hold them
                require_no_placeholder(conversation, written)
        texts = self.render(conversations)
        try:
            inputs = self.process(conversations)
        except ValueError as error:
            if isinstance(error, VlmprobeError):
                raise
            bare = "" if conversations[0].images else ", which has no image"
            raise CapabilityError(
                f"The processor of {self.model.config.model_type} refuses this conversation{bare}: {error}"
            ) from error
        prompts = []
        rows = zip(inputs["input_ids"].numpy(), inputs["attention_mask"].bool().numpy(), strict=True)
        for row, (conversation, (padded, mask)) in enumerate(zip(conversations, rows, strict=True)):
            ids = padded[mask]
            require_images(placeholder_runs(ids, self.image_ids), conversation, written)
            prompts.append(EncodedPrompt(ids, self.spans(ids, conversation), texts[row]))
        return with_begun(self, Encoding(dict(inputs), tuple(prompts)), asked)

    def check(self, conversation: Conversation) -> None:
        """Reject conversations that the family does not support, before anything runs."""
        count = len(conversation.images)
        if not count and not self.capabilities.text_only:
            raise CapabilityError(f"{self.name} needs an image in every conversation: pass image=.")
        if count > 1 and not self.capabilities.several_images:
            raise CapabilityError(f"{self.name} takes one image per conversation, got {count}.")
        if conversation.messages[0].role == "system" and (
            not self.capabilities.system or drops_system(self, conversation.format)
        ):
            raise CapabilityError(
                f"{self.name} takes no system message: put the instruction into the first user message."
            )
        for place, message in enumerate(conversation.messages):
            options = {key for part in message.parts if isinstance(part, ImagePart) for key in part.options}
            if unknown := options - self.image_options:
                raise CapabilityError(
                    f"Message {place}: {self.name} does not support the image option {', '.join(sorted(unknown))}; "
                    f"supported: {', '.join(sorted(self.image_options)) or 'none'}."
                )
        self.check_format(conversation)

    @property
    def image_options(self) -> frozenset[str]:
        """Keys that an image part may have besides its image, such as ``max_pixels``."""
        return frozenset()

    def facts(self, conversation: Conversation | None = None) -> dict[str, Any]:
        """What ``meta`` says of how conversations become model inputs: of this one, or of most if None.

        ``images_first``: that images were put before the text of their message, where the caller had them after it.
        """
        if conversation is None or not text_before_image(conversation):
            return {}
        return (
            {"images_first": True} if self.capabilities.images_first or moves_images(self, conversation.format) else {}
        )

    # -- where the images are ----------------------------------------------------------------------

    @property
    def image_ids(self) -> frozenset[int]:
        """The placeholder ids whose positions the model fills with image features."""
        config = self.model.config
        found = [getattr(config, name, None) for name in ("image_token_id", "image_token_index")]
        return frozenset(each for each in found if isinstance(each, int))

    def spans(self, ids: np.ndarray, conversation: Conversation) -> tuple[ImageSpan, ...]:
        """The runs of image positions in a prompt, assigned to the images.

        Raises:
            AdapterError: if the positions cannot be divided among the images.
        """
        runs = placeholder_runs(ids, self.image_ids)
        images = conversation.images
        if images and self.image_ids and not runs:
            raise AdapterError(f"{self.name}: the prompt has no image placeholder: the chat template drops the image.")
        if len(images) <= 1 or len(runs) == len(images):
            sizes = [stop - start for start, stop in runs] if len(runs) == len(images) else [len(ids)]
        else:
            sizes = [self._positions_of(part, conversation) for part in conversation.image_parts]
            total = sum(stop - start for start, stop in runs)
            if sum(sizes) != total:
                raise AdapterError(
                    f"{self.name}: the prompt has {total} image positions, the images alone give {sizes}; "
                    "the adapter must say which position belongs to which image."
                )
        return divide_runs(runs, sizes)

    def _positions_of(self, part: ImagePart, conversation: Conversation) -> int:
        alone = Conversation((Message("user", (part,)),), conversation.format)
        return sum(
            stop - start
            for start, stop in placeholder_runs(self.process([alone])["input_ids"][0].numpy(), self.image_ids)
        )

    # -- continuing a prompt -----------------------------------------------------------------------

    def tokenize(self, text: str) -> list[int]:
        """Ids of a rendered prompt, placeholders not expanded; special tokens are added unless it begins with BOS."""
        begin = getattr(self.tokenizer, "bos_token", None)
        plain = not (begin and text.startswith(begin))
        return list(self.tokenizer(text, add_special_tokens=plain)["input_ids"])

    def continuation(self, prompt: EncodedPrompt, text: str) -> Continuation:
        """The ids of ``text`` directly after the prompt, tokenised together with it.

        The prompt's text is the rendered template or, if the processor adds text after it, the decoded prompt ids.

        Raises:
            AdapterError: if neither reproduces the ids at the end of the prompt.
            MessageError: for a text that contains an image placeholder of the model.
        """
        for held, with_text in self._ends(prompt):
            merged, ids = with_text(text)
            if merged < held:
                self.require_answer(ids)
                return Continuation(len(prompt.ids) - merged, ids)
        raise AdapterError(f"{self.name}: {text!r} cannot be tokenised together with the end of the prompt.")

    def _ends(self, prompt: EncodedPrompt) -> Iterator[_End]:
        """Texts that end as the prompt does, the shortest first; kept for other candidates of this prompt."""
        ends = self.text_ends
        held = self._ends_of  # which another thread may replace
        if held is None or held[0] is not prompt or held[1] is not ends:
            held = self._ends_of = prompt, ends, []
        known = held[2]
        for place, make in enumerate((self._cut_end, self._whole_text, self._decoded_end)):
            if place == len(known):
                known.append(make(prompt))
            if (end := known[place]) is not None:
                yield end

    def _cut_end(self, prompt: EncodedPrompt) -> _End | None:
        ends = self.text_ends
        start = None if ends is None else ends.start(prompt.text, prompt.ids.tolist())
        if ends is None or start is None:
            return None
        end = prompt.text[start:]
        return held_at_end(prompt.ids, ends.ids(end)), partial(ends.continued, end)

    def _whole_text(self, prompt: EncodedPrompt) -> _End:
        return self._end_of(prompt, prompt.text)

    def _decoded_end(self, prompt: EncodedPrompt) -> _End:
        after_images = prompt.ids[prompt.spans[-1].stop if prompt.spans else 0 :].tolist()
        text = self.tokenizer.decode(after_images, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return self._end_of(prompt, str(text))

    def _end_of(self, prompt: EncodedPrompt, text: str) -> _End:
        alone = self.tokenize(text)
        return held_at_end(prompt.ids, alone), lambda more: continued(alone, self.tokenize(text + more))

    @property
    def text_ends(self) -> TextEnds | None:
        """What tokenises the ends of prompts by themselves; None where :meth:`tokenize` is overridden."""
        if type(self).tokenize is not Adapter.tokenize:
            return None
        if self._text_ends is None or not self._text_ends.fits(self.tokenizer):
            self._text_ends = TextEnds(self.tokenizer)
        return self._text_ends

    def require_answer(self, ids: Iterable[int]) -> None:
        """Reject ids of an answer that hold an image placeholder, for which the model would expect an image.

        Raises:
            MessageError: it names the placeholder.
        """
        if held := sorted(self.image_ids.intersection(map(int, ids))):
            names = ", ".join(map(str, self.tokenizer.convert_ids_to_tokens(held)))
            raise MessageError(
                f"The answer contains {names} (id {', '.join(map(str, held))}), an image placeholder of this model, "
                "and an answer holds no image: leave it out, or write it differently."
            )

    def extend(self, inputs: Mapping[str, Any], ids: torch.Tensor, drop: int = 0) -> dict[str, Any]:
        """Model inputs for each prompt without its last ``drop`` positions, followed by ``ids`` [N, T].

        Every input of shape [N, S] is extended. New positions are attended to and are text: masks are padded with
        ones, type ids with zeros.
        """
        import torch

        length = inputs["input_ids"].shape[1]
        grown = dict(inputs)
        for key, value in inputs.items():
            if is_along(inputs, key) and value.dim() == 2:
                fill = ids.to(value) if key == "input_ids" else value.new_full(ids.shape, int(key.endswith("mask")))
                grown[key] = torch.cat([value[:, : length - drop], fill], dim=1)
        return grown

    def continue_from(self, inputs: Mapping[str, Any], ids: torch.Tensor) -> dict[str, Any]:
        """Arguments of ``forward``, besides the cache, that continue one prefilled prompt with each of ``ids`` [C, n].

        Called right after the prefill of ``inputs``, so state that the model keeps (rope deltas) is that prompt's.
        """
        return {"input_ids": ids}

    # -- where the parts of the network are --------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """The tokenizer: ``decode``, ``convert_ids_to_tokens``, ``all_special_ids``."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def outer(self) -> Any:
        """The module whose ``forward`` runs the backbone, then the head: usually the model itself."""
        return self.model

    @property
    def backbone(self) -> nn.Module:
        """The child of ``outer`` whose ``last_hidden_state`` [N, S, H] the outer ``forward`` passes to the head."""
        backbone = self.outer.base_model
        if backbone is self.outer:
            raise AdapterError(
                f"{self.name}: {type(self.outer).__name__} has no backbone module; the adapter must name it."
            )
        return backbone

    @property
    def head(self) -> nn.Module:
        """The LM head, a module from [.., H] to [.., V]."""
        return self.outer.get_output_embeddings()

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers of the language model, in order."""
        return self.outer.get_decoder().layers

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last decoder layer, whose output enters the head."""
        return self.outer.get_decoder().norm

    @property
    def image_encoder(self) -> tuple[nn.Module, str] | None:
        """A module, and the name of its method or submodule that encodes images, and nothing else, into features.

        The features are cached within a call and in a session, keyed on the arguments. None if there is no such
        callable: images are then encoded in every call, which is recorded in ``meta``.
        """
        holders = (each for each in (self.backbone, self.model) if hasattr(each, "get_image_features"))
        return next(((each, "get_image_features") for each in holders), None)

    @property
    def batch_arguments(self) -> frozenset[str]:
        """Arguments of :attr:`image_encoder` that only say which conversation of the batch an image belongs to."""
        return frozenset()

    @property
    def end_ids(self) -> frozenset[int]:
        """The ids that end an answer, from the model's generation config."""
        ends = self.model.generation_config.eos_token_id
        return frozenset([] if ends is None else [ends] if isinstance(ends, int) else ends)
