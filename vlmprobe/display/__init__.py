"""Display of results: HTML for Jupyter and reports, ``rich`` renderables for terminals.

Everything that a model or a checkpoint wrote is shown as text, never interpreted: HTML is escaped by the
templates, terminal output is built from plain :class:`rich.text.Text`, and control characters become visible.
"""

from vlmprobe.display.html import fragment, page, table_html
from vlmprobe.display.terminal import rich_view, table_rich

__all__ = ["fragment", "page", "rich_view", "table_html", "table_rich"]
