"""``data_frame``: the one place that imports pandas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlmprobe.errors import MissingExtraError

if TYPE_CHECKING:
    from pandas import DataFrame
else:
    DataFrame = Any

__all__ = ["DataFrame", "data_frame", "stacked"]


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


def stacked(name: str, frames: dict[str, DataFrame]) -> DataFrame:
    """Frames one below the other, with a first column ``name`` of their keys; NaN where one lacks a column."""
    import pandas  # there: the frames are made of it

    return pandas.concat(frames, names=[name]).reset_index(level=0).reset_index(drop=True)
