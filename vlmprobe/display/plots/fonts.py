"""Fonts for text in any script: those of the style, and others of this machine for characters that these lack."""

from __future__ import annotations

import unicodedata
import warnings
from functools import cache, lru_cache
from typing import Any

from vlmprobe.display.plots.import_matplotlib import matplotlib
from vlmprobe.errors import VlmprobeWarning

__all__ = ["MISSING", "drawable", "families"]

MISSING = "□"  # stands for a character that no font has
# Tried before the other fonts of a machine. The first are for Chinese, Japanese and Korean; there may be several.
FONTS = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "SimHei", "Noto Sans CJK JP", "Hiragino Sans", "Yu Gothic"),
    *("IPAexGothic", "Noto Sans CJK KR", "Apple SD Gothic Neo", "Malgun Gothic", "Arial Unicode MS"),
    *("DejaVu Sans", "Noto Sans Arabic", "Noto Sans Devanagari", "Nirmala UI", "Noto Emoji", "Segoe UI Emoji"),
)
# Fonts of placeholders, and fonts of coloured bitmaps, which matplotlib cannot draw.
USELESS = ("Last Resort", "LastResort", "Adobe Blank", "Color Emoji")
CJK = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH")  # first words of their names
_told: set[str] = set()  # fonts that a warning of this process has named


def families(text: str) -> list[str]:
    """The fonts of the style in use, followed by those that the other characters of a text need."""
    style = _style()
    others = [_other(character, style, _count()) for character in _unusual(text)]
    return [*style, *dict.fromkeys(each for each in others if each)]


def drawable(text: str) -> str:
    """The text, with a box for every character that no font has.

    Warns once in a process of each font that is missing. An invisible character that no font has is left out.
    """
    style = _style()
    for character in _unusual(text):
        if _other(character, style, _count()) is None:
            invisible = unicodedata.category(character) in ("Cf", "Mn")
            text = text.replace(character, "" if invisible else MISSING)
            if not invisible and not "\u2400" <= character <= "\u243f":  # those name control characters
                _warn(character)
    return text


def _style() -> tuple[str, ...]:
    return tuple(matplotlib().rcParams["font.family"])


def _count() -> int:
    """How many fonts there are; another number after one was added."""
    return len(matplotlib("font_manager").fontManager.ttflist)


def _unusual(text: str) -> list[str]:
    """The characters beyond ASCII, each once, in the order of the text."""
    return [] if text.isascii() else [each for each in dict.fromkeys(text) if not each.isascii()]


@lru_cache(maxsize=20_000)
def _other(character: str, style: tuple[str, ...], count: int) -> str | None:
    """The name of a font that has a character; empty if one of the style has it, None if there is none."""
    if any(ord(character) in _characters(name, count) for name in style):
        return ""
    names = {font.name for font in matplotlib("font_manager").fontManager.ttflist}
    known = [name for name in FONTS if name in names]
    rest = sorted(name for name in names - set(known) if not name.startswith(".") and not _is_useless(name))
    return next((name for name in (*known, *rest) if ord(character) in _characters(name, count)), None)


@cache
def _characters(name: str, count: int) -> frozenset[int]:
    """The code points that a font, or that of a generic family, has glyphs for; none if it cannot be read."""
    manager: Any = matplotlib("font_manager")
    faces = [font for font in manager.fontManager.ttflist if font.name == name]
    faces.sort(key=lambda font: (font.style != "normal", font.weight not in (400, "normal", "regular")))
    try:
        file = (
            faces[0].fname
            if faces
            else manager.findfont(manager.FontProperties(family=[name]), fallback_to_default=False)
        )
        return frozenset(manager.get_font(file).get_charmap())
    except (ValueError, RuntimeError, OSError):
        return frozenset()


def _is_useless(name: str) -> bool:
    return any(each in name for each in USELESS)


def _warn(character: str) -> None:
    """Warn that a font is missing, once for each font that would help."""
    font = _helpful(character)
    if font in _told:
        return
    _told.add(font)
    warnings.warn(
        f"No installed font has {character!r} (U+{ord(character):04X}): plots show {MISSING} for it and its like. "
        f'Install one that has it, such as "{font}", and delete the fontlist-*.json in matplotlib.get_cachedir(); or '
        "pass its file to matplotlib.font_manager.fontManager.addfont.",
        VlmprobeWarning,
        stacklevel=3,
    )


def _helpful(character: str) -> str:
    """The name of a free font that has a character."""
    script = unicodedata.name(character, "SYMBOL").split()[0]
    if script.startswith(CJK):
        return "Noto Sans CJK"
    if unicodedata.category(character)[0] in "LMN":
        return f"Noto Sans {script.title()}"
    return "Noto Emoji" if ord(character) >= 0x1F000 else "Noto Sans Symbols 2"
