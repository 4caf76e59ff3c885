"""``Failure``: takes the place of the result of a request that failed; saved as JSON beside the others' results."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from vlmprobe import errors
from vlmprobe.errors import ResultError, VlmprobeError
from vlmprobe.inputs.messages import Prompt
from vlmprobe.results.layouts import require_readable
from vlmprobe.results.replacing import replacing

__all__ = ["ENDING", "Failure", "load_failure", "save_failure", "where_of"]

FORMAT = 1  # version of the saved layout
ENDING = ".failure.json"


@dataclass(frozen=True, eq=False)
class Failure:
    """Takes the place of a failed request's result, with ``on_error="keep"``."""

    error: Exception  # its message names the request; a model's own exception has a note that does
    question: Prompt | None = None
    id: Any = None  # of the request, None if it has none
    row: int | None = None  # place among the requests, from 0
    meta: dict[str, Any] = field(default_factory=dict)  # of the model and the request: id and further columns

    def __getattr__(self, name: str) -> NoReturn:
        """Only for what it lacks, such as ``text``: the message says what it is."""
        if name.startswith("_"):  # pickle, copy and displays ask for these
            raise AttributeError(name)
        error = vars(self).get("error")
        raise AttributeError(
            f"a Failure has no {name!r}: its request failed ({type(error).__name__}: {error}). Leave failures "
            "out with isinstance(each, vlmprobe.Failure), or generate without on_error='keep'."
        )

    def __repr__(self) -> str:
        told = f"{type(self.error).__name__}: {' '.join(str(self.error).split())}"
        if self.row is not None and not isinstance(self.error, VlmprobeError):
            told = f"{where_of(self.row, self.id)}: {told}"
        return f"Failure({told if len(told) <= 120 else told[:117] + '...'})"


def where_of(row: int, id: Any = None, what: str = "request") -> str:
    """A request by its row, and its id if it has one: ``request 3 (id 'x')``."""
    return f"{what} {row}" if id is None else f"{what} {row} (id {id!r})"


def save_failure(failure: Failure, path: Path) -> Path:
    """Write a failure as JSON: the class and the message of its error, its id, row and meta, and its question if that
    is text."""
    document = {
        "format": FORMAT,
        "type": "Failure",
        "error": type(failure.error).__name__,
        "message": str(failure.error),
        "question": failure.question if isinstance(failure.question, str) else None,
        "id": failure.id,
        "row": failure.row,
        "meta": failure.meta,
    }
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")
    return path


def load_failure(path: Path) -> Failure:
    """Load what :func:`save_failure` wrote. Its error is of vlmprobe; the message names a class from elsewhere.

    Raises:
        ResultError: for a file that holds no failure, or one of a later vlmprobe.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        layout = held["format"]
        if layout == FORMAT:
            kind, message = str(held["error"]), str(held["message"])
            made = Failure(_error(kind, message), held["question"], held["id"], held["row"], dict(held["meta"]))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ResultError(f"{path} is not a failure that vlmprobe saved ({type(error).__name__}: {error}).") from error
    require_readable(path, layout, FORMAT)
    return made


def _error(kind: str, message: str) -> Exception:
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, VlmprobeError) and known is not errors.MissingExtraError:
        return known(message)
    return VlmprobeError(f"{kind}: {message}")
