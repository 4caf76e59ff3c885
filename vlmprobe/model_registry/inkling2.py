"""Inkling 2: the head reads a mix of hidden states from several depths, not only the last layer's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vlmprobe.adapter import Adapter

__all__ = ["Inkling2", "Inkling2Loop"]


class Inkling2(Adapter):
    """Inkling 2: the head reads a mix of hidden states from several depths, not only the last layer's.

    The attention over hidden states at block boundaries, after the last decoder layer, counts as one more layer.
    """

    model_types = ("inkling2",)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, then the module that mixes their hidden states."""
        decoder = self.outer.get_decoder()
        return nn.ModuleList([*decoder.layers, decoder.final_input])

    @property
    def final_norm(self) -> nn.Module:
        """From the mixed states, float32 in every model, to the input of the head."""
        decoder = self.outer.get_decoder()
        return _Rounded(decoder.norm, decoder.embed_tokens.weight.dtype)


class Inkling2Loop(Inkling2):
    """Inkling 2 with a loop: some of the layers run several times, and each pass counts as a layer."""

    model_types = ("inkling2_loop",)

    @property
    def layers(self) -> nn.ModuleList:
        """The layers in execution order, those of the loop once per pass, then the module that mixes their states."""
        decoder = self.outer.get_decoder()
        start, end = decoder.config.loop_layer_index_start, decoder.config.loop_layer_index_end
        inside = decoder.layers[start:end]
        # From the second pass on, a call passes an offset for its keys: after those of the layers and earlier passes.
        after = [len(decoder.layers) - start + done * len(inside) for done in range(decoder.config.loop_num_passes - 1)]
        passes = [_Pass(layer, offset) for offset in (0, *after) for layer in inside]
        return nn.ModuleList([*decoder.layers[:start], *passes, *decoder.layers[end:], decoder.final_input])


class _Rounded(nn.Module):
    """A norm, followed by the decoder's cast to the dtype of the embeddings."""

    def __init__(self, norm: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm, self.dtype = norm, dtype

    def forward(self, states: Tensor) -> Tensor:
        return self.norm(states).to(self.dtype)


class _Pass(nn.Module):
    """One pass through a layer of the loop, identified by the argument ``cache_offset`` of its call."""

    def __init__(self, layer: nn.Module, offset: int) -> None:
        super().__init__()
        self.layer, self.offset = layer, offset

    def register_forward_hook(self, hook: Callable[..., Any], **options: Any) -> Any:
        """Call ``hook`` after this pass only, not after the layer's other passes."""
        return self._register(self.layer.register_forward_hook, hook, **options)

    def register_forward_pre_hook(self, hook: Callable[..., Any], **options: Any) -> Any:
        """Call ``hook`` before this pass only, not before the layer's other passes."""
        return self._register(self.layer.register_forward_pre_hook, hook, **options)

    def _register(
        self, register: Callable[..., Any], hook: Callable[..., Any], *, with_kwargs: bool = False, **options: Any
    ) -> Any:
        def of_this_pass(layer: nn.Module, args: Any, given: dict[str, Any], *output: Any) -> Any:
            if given.get("cache_offset", 0) != self.offset:
                return None
            return hook(layer, args, given, *output) if with_kwargs else hook(layer, args, *output)

        return register(of_this_pass, with_kwargs=True, **options)
