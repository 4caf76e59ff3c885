"""How an answer begins that a model goes on with: an opened thought, or a whole thought that it has written."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NOTHING", "Begun"]


@dataclass(frozen=True)
class Begun:
    """The beginning of an answer, after the prompt.

    ``opened`` is text that is tokenised together with the prompt, as a chat template's own would be; ``ids`` are tokens
    after it, taken as they are, because a model has drawn them. ``text`` is that of both.
    """

    opened: str = ""
    ids: tuple[int, ...] = ()
    text: str = ""

    @classmethod
    def of_text(cls, text: str) -> Begun:
        """A beginning that is tokenised together with the prompt."""
        return cls(text, (), text)

    def __bool__(self) -> bool:
        return bool(self.opened or self.ids)


NOTHING = Begun()
