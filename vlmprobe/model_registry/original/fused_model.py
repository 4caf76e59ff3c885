"""A language model that reads image features in place of placeholder embeddings, shared by the original families.

The inner model fuses features into the embeddings and runs a stock transformers language model; the outer one
applies the LM head. A family supplies its vision side through :meth:`FusedModel.image_features`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from vlmprobe.adapter.kv_cache import cache_name, cache_of
from vlmprobe.adapter.rope import rope_switch
from vlmprobe.model_registry.original.quantised import check_savable, stored_quantisation

__all__ = ["FusedConfig", "FusedForConditionalGeneration", "FusedModel", "FusedOutput", "positions_of"]

IMAGE_INPUTS = ("pixel_values", "tgt_sizes", "owners")  # one row for each slice, not for each sequence


class FusedConfig(PreTrainedConfig):
    """Configuration of a fused model: that of its language model and of its vision side.

    Saved, it is the checkpoint's own again: ``config.json`` in the original format, and the other files that are read.
    """

    text_config: Any = None  # configuration of a stock language model
    vision_config: Any = None
    image_token_id: int | None = None  # at the positions of images in a prompt
    tie_word_embeddings: bool = False
    original: Any = None  # the checkpoint's JSON files by name; None for a model that was not loaded from one

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As upstream, in the original format; ``vocab_size`` and the type of the weights are those of the model."""
        check_savable(self.to_dict().get("quantization_config"))
        super().save_pretrained(save_directory, *args, **kwargs)
        for name, held in (self.original or {}).items():
            text = json.dumps(self._brought_up(held) if name == "config.json" else held, indent=2, ensure_ascii=False)
            (Path(save_directory) / name).write_text(text + "\n", encoding="utf-8")

    def _brought_up(self, held: Mapping[str, Any]) -> dict[str, Any]:
        changed: dict[str, Any] = {"torch_dtype": str(self.dtype).removeprefix("torch.")} if self.dtype else {}
        if (told := self.to_dict().get("quantization_config")) and not stored_quantisation(held):
            changed["quantization_config"] = told  # quantised when it was loaded
        if "vocab_size" in held:  # other parts may have a vocabulary of their own (audio)
            return {**held, **changed, "vocab_size": self.text_config.vocab_size}
        for name, value in held.items():
            if isinstance(value, Mapping) and "vocab_size" in value:  # of the language model
                changed[name] = {**value, "vocab_size": self.text_config.vocab_size}
        return {**held, **changed}


@dataclass
class FusedOutput(ModelOutput):
    """Logits [N, kept, V]; the cache is added under the name that the language model uses."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def positions_of(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position ids [N, S] that count attended tokens only; a masked token has position 1, as in the originals."""
    positions = attention_mask.long().cumsum(-1) - 1
    return positions.masked_fill(attention_mask == 0, 1)


class FusedPreTrainedModel(PreTrainedModel):
    """What transformers' loader must know about the inner and the outer model."""

    base_model_prefix = "model"
    input_modalities = ["image", "text"]  # noqa: RUF012 - declared so upstream, as are those below
    supports_gradient_checkpointing = True
    _no_split_modules = [  # noqa: RUF012
        "AdaptiveResampler",
        "GridResampler",
        "Eva",
        "VisionTransformer",
        "InternViT",
        "NavitTower",
    ]
    _skip_keys_device_placement = ["cache", "past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True


class FusedModel(FusedPreTrainedModel):
    """The backbone: embeddings with image features inserted, then the language model."""

    def __init__(self, config: FusedConfig) -> None:
        super().__init__(config)
        self.language_model = self.build_language_model(config)

    def build_language_model(self, config: FusedConfig) -> Any:
        """The language model without its head; it has ``embed_tokens``, ``layers`` and ``norm``."""
        return AutoModel.from_config(config.text_config)

    def image_features(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Features of all images, as rows [rows, H] or [P, Q, H], in the order of the images.

        The arguments are those that ``image_inputs`` of the adapter gives: ``pixel_values`` [P, ...] and, if there are
        any, ``tgt_sizes`` [P, 2] and ``owners`` [P].
        """
        raise NotImplementedError(f"{type(self).__name__} must override image_features() to encode images.")

    def positions(self, attention_mask: torch.Tensor, image_index: torch.Tensor | None) -> torch.Tensor:
        """Position ids [N, S] of a whole sequence: here they count attended tokens. ``image_index`` is [N, S]."""
        return positions_of(attention_mask)

    def language_inputs(self, image_index: torch.Tensor | None, length: int) -> dict[str, Any]:
        """Further arguments of the language model, such as which of the last ``length`` positions are images."""
        return {}

    def embed(self, input_ids: torch.Tensor | None) -> torch.Tensor:
        """Embeddings [N, S, H] of token ids."""
        return self.language_model.embed_tokens(input_ids)

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings."""
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        self.language_model.embed_tokens = value

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        tgt_sizes: torch.Tensor | None = None,
        owners: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the backbone and return the language model's own output.

        Args:
            input_ids: [N, S].
            pixel_values: [P, ...], the slices of all prompts.
            image_index: [N, past + S]: 0 for text, i + 1 for row i of the features. The same row may be used in several
                sequences (beams). Positions after its end are text.
            tgt_sizes: [P, 2], rows and columns of patches of each slice.
            owners: [P], the prompt that each slice belongs to.
            attention_mask: [N, past + S]; positions count attended tokens. None: all are attended.
            position_ids: [N, S], to override those derived from the mask.
            inputs_embeds: [N, S, H] instead of ``input_ids``.
            **kwargs: for the language model, including the cache.

        Raises:
            ValueError: if the number of image positions is not that of the feature rows.
        """
        embeds = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        length = embeds.shape[1]
        if pixel_values is not None and image_index is not None:
            given = {"tgt_sizes": tgt_sizes, "owners": owners}
            features = self.image_features(
                pixel_values.to(embeds.dtype), **{name: value for name, value in given.items() if value is not None}
            )
            rows = features.flatten(0, -2)
            if (taken := int(image_index.max())) != len(rows):
                raise ValueError(f"{taken} image positions for {len(rows)} rows of image features")
            embeds = _fuse(embeds, rows.to(embeds), image_index[:, -length:])
        if attention_mask is None or attention_mask.ndim == 2:
            whole = attention_mask
            if whole is None:
                cache = kwargs.get(cache_name(self.language_model.forward))
                whole = _ones(embeds, length + (cache.get_seq_length() if cache is not None else 0))
            if image_index is not None:
                image_index = nn.functional.pad(image_index, (0, whole.shape[1] - image_index.shape[1]))
            if position_ids is None:
                position_ids = self.positions(whole, image_index)[:, -length:]
        return self.language_model(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **self.language_inputs(image_index, length),
            **kwargs,
        )


class FusedForConditionalGeneration(FusedPreTrainedModel, GenerationMixin):
    """The whole model. A subclass names the class of its backbone.

    Attributes:
        runs_anew: whether ``generate`` runs the sequence anew where RoPE factors change with its length, as the code of
            Phi-3.5 does, or keeps the keys in the cache.
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012
    backbone_class: type[FusedModel]
    runs_anew = False

    def __init__(self, config: FusedConfig) -> None:
        super().__init__(config)
        text = config.text_config
        self.model = self.backbone_class(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def enter_head(self, hidden: torch.Tensor) -> torch.Tensor:
        """The input of the head: the last hidden states, unless a family scales them."""
        return hidden

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The LM head."""
        return self.lm_head

    def get_decoder(self) -> nn.Module:
        """The language model without its head."""
        return self.model.language_model

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        tgt_sizes: torch.Tensor | None = None,
        owners: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> FusedOutput:
        """Logits [N, kept, V]; arguments as in :meth:`FusedModel.forward`, the rest as in transformers.

        They are named one by one, since ``generate`` rejects inputs that this signature does not name.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_index=image_index,
            tgt_sizes=tgt_sizes,
            owners=owners,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(self.enter_head(outputs.last_hidden_state[:, kept]))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])
        output = FusedOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
        if (cache := cache_of(outputs)) is not None:
            output[cache_name(self.model.language_model.forward)] = cache
        return output

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, *args: Any, cache: Any = None, past_key_values: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As upstream; images are passed only at prefill, and positions count attended tokens.

        A cache has both of its names in the signature, by which ``generate`` knows what it may be given.
        """
        given = {"cache": cache, "past_key_values": past_key_values}
        kwargs |= {name: value for name, value in given.items() if value is not None}
        images = {name: kwargs.pop(name, None) for name in (*IMAGE_INPUTS, "image_index")}
        if anew := self._begins_anew(input_ids.shape[1], kwargs.get(name := cache_name(self.forward))):
            kwargs |= {name: None, "next_sequence_length": None}
        upstream: Any = super()
        inputs = upstream.prepare_inputs_for_generation(input_ids, *args, **kwargs)
        embeds, attention_mask = inputs.get("inputs_embeds"), kwargs.get("attention_mask")
        length = (inputs["input_ids"] if embeds is None else embeds).shape[1]
        if (index := images.pop("image_index")) is not None:
            inputs["image_index"] = index = nn.functional.pad(index, (0, input_ids.shape[1] - index.shape[1]))
            if anew or kwargs.get("is_first_iteration", False) or not kwargs.get("use_cache", True):  # prefill
                inputs |= images
        if attention_mask is None:  # upstream drops a mask of ones
            attention_mask = torch.ones_like(input_ids)
        if attention_mask.ndim == 2:
            inputs["position_ids"] = self.model.positions(attention_mask, index)[:, -length:]
        return inputs

    def _begins_anew(self, length: int, cache: Any) -> bool:
        limit = rope_switch(self.config) if self.runs_anew and cache is not None else None
        return limit is not None and 0 < cache.get_seq_length() <= limit < length

    def _expand_inputs_for_generation(self, *args: Any, **model_kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """As upstream, but slices are not repeated: ``image_index`` points every beam to the same features."""
        images = {name: model_kwargs.pop(name) for name in IMAGE_INPUTS if name in model_kwargs}
        upstream: Any = super()
        input_ids, expanded = upstream._expand_inputs_for_generation(*args, **model_kwargs)
        return input_ids, {**expanded, **images}


def _ones(embeds: torch.Tensor, length: int) -> torch.Tensor:
    return torch.ones(len(embeds), length, dtype=torch.long, device=embeds.device)


def _fuse(embeds: torch.Tensor, features: torch.Tensor, image_index: torch.Tensor) -> torch.Tensor:
    index = image_index.to(embeds.device).unsqueeze(-1)
    return torch.where(index > 0, features[(index.squeeze(-1) - 1).clamp(min=0)], embeds)
