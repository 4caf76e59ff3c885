"""InternVL2 and InternVL2.5 in their original format (``InternVLChatModel``, ``model_type: internvl_chat``)."""

from __future__ import annotations

from vlmprobe.model_registry.original.internvl2.adapter import InternVL2

__all__ = ["InternVL2"]
