"""GOT-OCR 2.0: exactly one image per conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmprobe.adapter import Adapter, Capabilities

__all__ = ["GotOcr2"]


class GotOcr2(Adapter):
    """The processor treats images of a chat as pages of one document, and needs ``multi_page`` for that."""

    model_types = ("got_ocr2",)

    capabilities = Capabilities(several_images=False, text_only=False)
    processor_options: Mapping[str, Any] = {"multi_page": True}
