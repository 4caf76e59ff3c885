"""InternVL2 on transformers' InternVL: only what the original computes in another way stands here."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Cache
from transformers.models.internvl.modeling_internvl import (
    InternVLCausalLMOutputWithPast,
    InternVLForConditionalGeneration,
    InternVLModel,
    InternVLModelOutputWithPast,
    InternVLPreTrainedModel,
    InternVLVisionEmbeddings,
)

from vlmprobe.model_registry.internvl2.configuration import InternVL2Config

__all__ = ["InternVL2ForConditionalGeneration", "InternVL2Model"]


class InternVL2VisionEmbeddings(InternVLVisionEmbeddings):
    """Position embeddings are resized in float32, whatever the type of the weights."""

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Position embeddings [1, 1 + patches, D] of a picture of ``height`` x ``width`` pixels, CLS first."""
        held = self.position_embeddings
        side = round((held.shape[1] - 1) ** 0.5)
        patch: Any = self.patch_size
        rows, columns = height // patch[0], width // patch[1]
        if (rows, columns) == (side, side):
            return held
        grid = held[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
        grid = nn.functional.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([held[:, :1], grid.flatten(2).transpose(1, 2).to(held.dtype)], dim=1)


class InternVL2Model(InternVLModel):
    """Vision tower, projector and language model, without the head."""

    config: InternVL2Config

    def __init__(self, config: InternVL2Config) -> None:
        super().__init__(config)
        vision: Any = config.vision_config
        self.vision_tower.embeddings = InternVL2VisionEmbeddings(vision)
        for module in self.vision_tower.modules():
            for name in ("q_norm", "k_norm"):  # transformers' class fixes their epsilon
                if isinstance(norm := getattr(module, name, None), nn.Module) and hasattr(norm, "variance_epsilon"):
                    norm.variance_epsilon = vision.layer_norm_eps

    def pixel_shuffle(self, vision_features: torch.Tensor, scale_factor: float = 0.5) -> torch.Tensor:
        """Neighbouring patches as one position: [N, W, H, C] to [N, W * scale, H * scale, C / scale**2]."""
        shuffled = super().pixel_shuffle(vision_features, scale_factor)
        # v1 leaves the axes swapped: the projector of such a checkpoint learnt the transposed picture
        return shuffled if self.config.ps_version == "v2" else shuffled.transpose(1, 2).contiguous()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> InternVLModelOutputWithPast:
        """Hidden states of the language model [N, S, H].

        Args:
            input_ids: [N, S].
            pixel_values: [tiles, 3, size, size], the tiles of all images of all rows in order.
            attention_mask: [N, S (and the cache)].
            position_ids: [N, S].
            past_key_values: cache of the positions before.
            inputs_embeds: [N, S, H] instead of ids, image features already in place.
            mm_token_type_ids: [N, S], 1 where an image feature goes. Without it every image placeholder is one.
                A placeholder that the model wrote itself is an ordinary token, so the two may differ.
            mm_encoder_outputs: what ``get_image_features`` returned, instead of pixels.
            **kwargs: of the language model.
        """
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        seen = (mm_encoder_outputs or {}).get("image")
        if seen is None and pixel_values is not None:
            seen = self.get_image_features(pixel_values=pixel_values, return_dict=True)
        features = None
        if seen is not None:
            features = seen.pooler_output.to(inputs_embeds.device, inputs_embeds.dtype)
            places: Any = mm_token_type_ids
            places = input_ids == self.config.image_token_id if places is None else places == 1
            if int(places.sum()) != features.shape[0] * features.shape[1]:
                raise ValueError(
                    f"{int(places.sum())} image positions for {features.shape[0]} tiles of {features.shape[1]} features"
                )
            inputs_embeds = inputs_embeds.masked_scatter(places.unsqueeze(-1).to(inputs_embeds.device), features)
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return InternVLModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=features,
        )


class InternVL2ForConditionalGeneration(InternVLForConditionalGeneration):
    """InternVL2 with its head."""

    config: InternVL2Config

    def __init__(self, config: InternVL2Config) -> None:
        InternVLPreTrainedModel.__init__(self, config)  # the parent would build transformers' own model first
        self.model = InternVL2Model(config)
        language: Any = config.text_config
        self.lm_head = nn.Linear(language.hidden_size, language.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> InternVLCausalLMOutputWithPast:
        """Logits [N, kept, V]; see :meth:`InternVL2Model.forward` for the inputs."""
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_token_type_ids=mm_token_type_ids,
            mm_encoder_outputs=mm_encoder_outputs,
            labels=labels,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
