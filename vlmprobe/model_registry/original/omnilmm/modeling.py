"""OmniLMM: EVA02 vision tower, resampler and Mistral."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from vlmprobe.model_registry.original.fused_model import FusedConfig, FusedForConditionalGeneration, FusedModel
from vlmprobe.model_registry.original.resampler import GridResampler
from vlmprobe.model_registry.original.timm_towers import build_tower

__all__ = ["OmniLMMConfig", "OmniLMMForConditionalGeneration", "OmniLMMModel"]


class OmniLMMConfig(FusedConfig):
    """Sizes of the components."""

    model_type = "omnilmm"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig, "vision_config": PreTrainedConfig}

    num_query: int = 64
    image_size: int = 448


class OmniLMMModel(FusedModel):
    """The backbone."""

    config_class = OmniLMMConfig

    def __init__(self, config: OmniLMMConfig) -> None:
        super().__init__(config)
        self.vision_tower = build_tower(config.vision_config)
        self.resampler = GridResampler(
            config.num_query, config.text_config.hidden_size, config.vision_config.hidden_size, adaptive=False
        )
        self.post_init()

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features [P, Q, H] of P square images [P, 3, image_size, image_size]."""
        encoded = self.vision_tower(pixel_values)[:, 1:]  # without the class token
        side = -(-self.config.image_size // self.config.vision_config.patch_size)
        return self.resampler(encoded, (side, side))

    def _init_weights(self, module: nn.Module) -> None:
        """As upstream; EVA's keys have a bias that is zero by definition and stored in no checkpoint."""
        super()._init_weights(module)
        if isinstance(bias := getattr(module, "k_bias", None), torch.Tensor):
            nn.init.zeros_(bias)


class OmniLMMForConditionalGeneration(FusedForConditionalGeneration):
    """OmniLMM with its LM head."""

    config_class = OmniLMMConfig
    backbone_class = OmniLMMModel
