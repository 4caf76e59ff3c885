"""What adapters of original checkpoint formats share: loading, and where images are encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from vlmprobe.adapter import Adapter

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vlmprobe.model_registry.original.fused_model import FusedConfig, FusedForConditionalGeneration

__all__ = ["OriginalAdapter", "Parts"]


@dataclass(frozen=True)
class Parts:
    """What a checkpoint folder gives before its weights are read."""

    model_class: type[FusedForConditionalGeneration]
    config: FusedConfig  # translated from config.json
    conversions: Sequence[Any]  # transformers' WeightRenaming and WeightConverter, to the names of ``model_class``
    processor: Any
    end_ids: list[int]  # that end an answer
    pad_id: int | None


class OriginalAdapter(Adapter):
    """A family in its original checkpoint format: a fused model, loaded strictly and without the checkpoint's code."""

    @classmethod
    def parts(cls, folder: Path, config: Mapping[str, Any], options: dict[str, Any]) -> Parts:
        """Everything but the weights.

        Args:
            folder: the checkpoint.
            config: its ``config.json`` as read.
            options: further arguments of ``load``; those that the family takes are removed.

        Raises:
            CheckpointError: a file is missing, or a field has an unknown value.
        """
        raise NotImplementedError

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
        from vlmprobe.model_registry.original.checkpoint import load_weights, local_folder

        folder = local_folder(checkpoint, revision=revision, options=options)
        parts = cls.parts(folder, config, options)
        model = load_weights(
            parts.model_class,
            folder,
            parts.config,
            conversions=parts.conversions,
            dtype=dtype,
            device_map=device_map,
            **options,
        )
        model.generation_config.eos_token_id = parts.end_ids
        model.generation_config.pad_token_id = parts.pad_id
        return cls(model, parts.processor)

    @property
    def image_encoder(self) -> tuple[nn.Module, str]:
        """The vision tower, with the projector or resampler."""
        return self.backbone, "image_features"
