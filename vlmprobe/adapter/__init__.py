"""The adapter contract: what vlmprobe must know about one family of models."""

from vlmprobe.adapter.contract import Adapter, Capabilities, Continuation, EncodedPrompt, Encoding
from vlmprobe.inputs.image_spans import ImageSpan

__all__ = ["Adapter", "Capabilities", "Continuation", "EncodedPrompt", "Encoding", "ImageSpan"]
