"""InternVL 1.1 to 3.5 in its original format (``InternVLChatModel``, ``model_type: internvl_chat``)."""

from __future__ import annotations

from vlmprobe.model_registry.original.internvl2.adapter import InternVL2

__all__ = ["InternVL2"]
