"""GOT-OCR 2.0: reads one picture, or its pages, and nothing without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmprobe.adapter import Adapter, Capabilities

__all__ = ["GotOcr2"]


class GotOcr2(Adapter):
    """The processor takes pictures that come in a chat for pages of one document, and must be told so."""

    model_types = ("got_ocr2",)

    capabilities = Capabilities(several_images=False, text_only=False)
    processor_options: Mapping[str, Any] = {"multi_page": True}
