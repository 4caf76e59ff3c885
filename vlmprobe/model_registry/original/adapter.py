"""The base of adapters for models whose code ships with the checkpoint: their weights, prompts and pixels as they are.

A family says five things: the class that its weights go into, what their names become in it, what its ``config.json``
means, how its code writes a prompt, and how it prepares an image. The rest is here and in :class:`FusedModel`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from vlmprobe.adapter import Adapter, Capabilities, Continuation, EncodedPrompt, Encoding, ImageSpan
from vlmprobe.adapter.begun import with_begun
from vlmprobe.errors import CapabilityError, CheckpointError, MessageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vlmprobe.inputs.messages import Conversation, ImagePart
    from vlmprobe.model_registry.original.fused_inputs import ImageTiles
    from vlmprobe.model_registry.original.fused_model import FusedConfig, FusedForConditionalGeneration

__all__ = ["OriginalAdapter", "OriginalProcessor"]


class OriginalProcessor:
    """What a checkpoint needs besides its model: the tokenizer, and files that say how images are prepared.

    Args:
        tokenizer: of the checkpoint.
        config: its ``config.json`` as read.
        preprocessor: its ``preprocessor_config.json`` as read; empty if it has none.
    """

    def __init__(self, tokenizer: Any, config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.preprocessor = preprocessor


class OriginalAdapter(Adapter):
    """A family in its original checkpoint format: a fused model, loaded strictly and without the checkpoint's code.

    Attributes:
        weight_names: regular expressions of names in the checkpoint, and what replaces them in ``model_class``; applied
            in this order, each at most once to a name. One group may be referred to as ``\\1``.
        unused_weights: prefixes of weights that the checkpoint holds for what the model here leaves out (speech, say).
        image_token: the token that stands at each position of an image in a prompt.
        image_tag: a regular expression, without groups, of what ``prompt`` writes before each image. It is not part of
            the prompt; the pieces between images are tokenised one by one. Empty: the prompt is tokenised as a whole.
        end_tokens: the tokens that end an answer; if there are none, the tokenizer's ``eos_token`` does.
        hidden_id: a token id that the original code masks from attention wherever it occurs.
    """

    weight_names: ClassVar[Mapping[str, str]] = {}
    unused_weights: ClassVar[tuple[str, ...]] = ()
    image_token: ClassVar[str] = ""
    image_tag: ClassVar[str] = ""
    end_tokens: ClassVar[tuple[str, ...]] = ()
    hidden_id: int | None = None
    capabilities = Capabilities(mixed_images=True)

    # -- what a family says ------------------------------------------------------------------------

    @classmethod
    def model_class(cls) -> type[FusedForConditionalGeneration]:
        """The class that the weights are loaded into. Import it here, so that installing the adapter loads no torch."""
        raise NotImplementedError(f"{cls.__name__} must override model_class() to name the class for its weights.")

    @classmethod
    def translate(cls, config: Mapping[str, Any], folder: Path) -> FusedConfig:
        """The configuration of ``model_class``.

        Args:
            config: the checkpoint's ``config.json`` as read.
            folder: the checkpoint, for what other files or the shapes of weights tell.

        Raises:
            CheckpointError: for a field that is missing or has an unknown value.
        """
        raise NotImplementedError(f"{cls.__name__} must override translate() to read config.json.")

    def prompt(self, conversation: Conversation, images: Sequence[ImageTiles]) -> str:
        """The text that the original code tokenises, up to where the model continues.

        Args:
            conversation: the messages; ``conversation.continues`` if the last one is an answer to be continued.
            images: those of the conversation, in order. ``image_token`` stands once for each of their positions.

        Raises:
            MessageError: for a conversation that the original code cannot express.
        """
        raise NotImplementedError(f"{type(self).__name__} must override prompt() to write a conversation.")

    def pixels(self, image: ImagePart) -> ImageTiles:
        """An image as the model receives it, and how many positions it takes. ``image.image`` is in RGB."""
        raise NotImplementedError(f"{type(self).__name__} must override pixels() to prepare an image.")

    # -- what some families do otherwise -----------------------------------------------------------

    @classmethod
    def read_tokenizer(cls, folder: Path, config: Mapping[str, Any]) -> Any:
        """The tokenizer of a checkpoint folder."""
        from vlmprobe.model_registry.original.tokenizer import original_tokenizer

        return original_tokenizer(folder)

    @classmethod
    def conversions(cls) -> Sequence[Any]:
        """``weight_names`` for transformers; a family whose weights are laid out otherwise adds converters."""
        from transformers.core_model_loading import WeightRenaming

        return [WeightRenaming(source, target) for source, target in cls.weight_names.items()]

    @classmethod
    def read_processor(
        cls, folder: Path, config: Mapping[str, Any], tokenizer: Any, translated: FusedConfig, options: dict[str, Any]
    ) -> Any:
        """What :attr:`processor` will be; it has a ``tokenizer``.

        Args:
            folder: the checkpoint.
            config: its ``config.json`` as read.
            tokenizer: from :meth:`read_tokenizer`.
            translated: from :meth:`translate`.
            options: further arguments of ``load``; those that the family takes must be removed.
        """
        from vlmprobe.model_registry.original.checkpoint import PREPROCESSOR, read_json

        held = folder / PREPROCESSOR
        return OriginalProcessor(tokenizer, config, read_json(held) if held.is_file() else {})

    def image_places(self, ids: np.ndarray, images: Sequence[ImageTiles]) -> tuple[ImageSpan, ...]:
        """The spans of the images' positions in a prompt, those of ``image_token``.

        Raises:
            MessageError: the prompt has another number of them, since a text contains the token.
        """
        places = np.flatnonzero(np.isin(ids, sorted(self.image_ids))) if images else ids[:0]
        if len(places) != sum(sum(image.positions) for image in images):
            raise MessageError(
                f"The text contains {self.image_token}, this model's image placeholder: leave it out, and pass images "
                "as image parts."
            )
        spans, done = [], 0
        for place, image in enumerate(images):
            for tile, count in enumerate(image.positions):
                start, last = int(places[done]), int(places[done + count - 1])
                if last != start + count - 1:
                    raise MessageError(
                        f"Image {place} is interrupted in the prompt: the adapter {self.name!r} must give a number of "
                        "positions for each run of them."
                    )
                spans.append(ImageSpan(place, tile, start, last + 1))
                done += count
        return tuple(spans)

    def image_inputs(self, images: Sequence[Sequence[ImageTiles]]) -> dict[str, Any]:
        """Arguments of ``image_features`` for the images of each conversation of a batch.

        ``pixel_values`` [P, ...] of all P tiles and, if they have sizes, ``tgt_sizes`` [P, 2].
        """
        import torch

        from vlmprobe.model_registry.original.fused_inputs import stack

        together = [image for each in images for image in each]
        sizes = [size for image in together for size in image.sizes]
        return {"pixel_values": stack(together)} | ({"tgt_sizes": torch.tensor(sizes)} if sizes else {})

    def tokenize(self, text: str) -> list[int]:
        """Ids of a whole prompt, with the special tokens that the tokenizer adds: once, or to each piece of it."""
        if not self.image_tag:
            return list(self.tokenizer(text)["input_ids"])
        first, *others = re.split(f"(?:{self.image_tag})((?:{re.escape(self.image_token)})*)", text)
        ids = list(self.tokenizer(first)["input_ids"])
        for positions, piece in zip(others[::2], others[1::2], strict=True):
            ids += [self.model.config.image_token_id] * positions.count(self.image_token)
            ids += self.tokenizer(piece)["input_ids"]
        return ids

    @property
    def prompt_variables(self) -> frozenset[str]:
        """What ``chat_template_kwargs`` may hold: the arguments of the prompt that the original code takes."""
        return frozenset()

    # -- what is the same for all ------------------------------------------------------------------

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
    ) -> Self:
        """Load an original checkpoint, safetensors or ``.bin``; see :meth:`vlmprobe.adapter.Adapter.load`.

        Raises:
            CheckpointError: a file or weight is missing or does not fit, or a field has an unknown value.
        """
        from vlmprobe.model_registry.original.checkpoint import PREPROCESSOR, load_weights, local_folder, read_json
        from vlmprobe.model_registry.original.tokenizer import token_id

        folder = local_folder(checkpoint, revision=revision, options=options)
        try:
            translated = cls.translate(config, folder)
        except KeyError as error:
            raise CheckpointError(f"config.json lacks {error}, which the adapter {cls.__name__} reads.") from error
        tokenizer = cls.read_tokenizer(folder, config)
        if cls.image_token:
            translated.image_token_id = token_id(tokenizer, cls.image_token)
        processor = cls.read_processor(folder, config, tokenizer, translated, options)
        held = {"config.json": dict(config)}
        if (file := folder / PREPROCESSOR).is_file():
            held[PREPROCESSOR] = read_json(file)
        translated.original = cls.to_save(held, processor)
        model = load_weights(
            cls.model_class(),
            folder,
            translated,
            conversions=cls.conversions(),
            dtype=dtype,
            device_map=device_map,
            ignore_unexpected=cls.unused_weights,
            **options,
        )
        made = cls(model, processor)
        ends = made.answer_ends
        model.generation_config.eos_token_id = [token_id(tokenizer, each) for each in ends]
        model.generation_config.pad_token_id = made.pad_id
        return made

    @classmethod
    def to_save(cls, files: dict[str, dict[str, Any]], processor: Any) -> dict[str, dict[str, Any]]:
        """The JSON files that ``save_pretrained`` writes: those of the checkpoint."""
        return files

    def facts(self, conversation: Conversation | None = None) -> dict[str, Any]:
        """As in the base class; ``unused_weights``, if there are any, are the parts that the model here leaves out."""
        unused = {"unused_weights": list(self.unused_weights)} if self.unused_weights else {}
        return super().facts(conversation) | unused

    @property
    def answer_ends(self) -> Sequence[str]:
        """The tokens that end an answer in the original code."""
        return self.end_tokens or (self.tokenizer.eos_token,)

    @property
    def pad_id(self) -> int:
        """The id for left padding, which is masked."""
        return self.tokenizer.pad_token_id or 0

    def check_format(self, conversation: Conversation) -> None:
        """Reject what the original code does not write into a prompt.

        Raises:
            CapabilityError: it names what would be dropped.
        """
        told = conversation.format.told
        unread = sorted(set(told.pop("chat_template_kwargs", ())) - self.prompt_variables)
        unread += [name for name in told if name != "continue_final_message"]
        for message in conversation.messages:
            unread += [*message.further, *(["messages of role 'tool'"] if message.role == "tool" else [])]
        if unread:
            may = ", ".join(sorted(self.prompt_variables))
            reads = f"; chat_template_kwargs may hold {may}" if may else ""
            raise CapabilityError(
                f"{self.name} writes a prompt as its original code does, which reads no {', '.join(unread)}: leave "
                f"it out{reads}."
            )

    def encode(self, conversations: Sequence[Conversation]) -> Encoding:
        """The conversations as one left-padded batch of model inputs, on the CPU.

        Besides ids and mask ``image_index`` [N, S] (0 for text, else one more than the row of the features) and what
        :meth:`image_inputs` gives.
        """
        from vlmprobe.model_registry.original.fused_inputs import sequence_inputs

        prompts, images = [], []
        for conversation in conversations:
            self.check(conversation)
            seen = [self.pixels(part) for part in conversation.image_parts]
            text = self.prompt(conversation, seen)
            if self.image_tag and len(tags := re.findall(self.image_tag, text)) != len(seen):
                raise MessageError(
                    f"There are {len(tags)} image tags ({', '.join(tags)}) for {len(seen)} images: leave them out of "
                    "the text, and pass images as image parts."
                )
            ids = np.asarray(self.tokenize(text), dtype=np.int64)
            prompts.append(EncodedPrompt(ids, self.image_places(ids, seen), text))
            images.append(seen)
        inputs: dict[str, Any] = sequence_inputs(prompts, pad_id=self.pad_id, hidden_id=self.hidden_id)
        encoding = Encoding(inputs | (self.image_inputs(images) if any(images) else {}), tuple(prompts))
        return with_begun(self, encoding, conversations)

    def continuation(self, prompt: EncodedPrompt, text: str) -> Continuation:
        """The ids of ``text`` directly after the prompt, tokenised together with it."""
        if prompt.spans and self.image_token:
            # One placeholder replaces thousands: each is a separate token and does not affect what follows.
            runs = f"(?:{re.escape(self.image_token)})+"
            prompt = replace(prompt, text=re.sub(runs, self.image_token, prompt.text))
        return super().continuation(prompt, text)

    def continue_from(self, inputs: Mapping[str, Any], ids: torch.Tensor) -> dict[str, Any]:
        """As in the base class; with the mask and the image positions of the prompt, which positions may depend on."""
        held = {name: inputs[name] for name in ("input_ids", "attention_mask", "image_index") if name in inputs}
        grown = self.extend({name: each.expand(len(ids), -1) for name, each in held.items()}, ids)
        return {**grown, "input_ids": ids}

    @property
    def pixel_step(self) -> tuple[Any, str]:
        """:meth:`pixels` of the adapter itself."""
        return self, "pixels"

    @property
    def image_encoder(self) -> tuple[nn.Module, str]:
        """The vision tower, with the projector or resampler."""
        return self.backbone, "image_features"
