"""``data_frame``: the one place that imports pandas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlmprobe.errors import MissingExtraError

if TYPE_CHECKING:
    from pandas import DataFrame
else:
    DataFrame = Any

__all__ = ["DataFrame", "data_frame"]


def data_frame(data: Any, **options: Any) -> DataFrame:
    """A ``pandas.DataFrame``.

    Args:
        data: columns by name, or rows.
        **options: of ``pandas.DataFrame``, such as ``columns`` and ``index``.

    Raises:
        MissingExtraError: if pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise MissingExtraError("pandas", "pandas") from error
    return pandas.DataFrame(data, **options)
