"""Text of any script in plots: a font that has it, or a box and one warning; matplotlib itself warns of nothing."""

from __future__ import annotations

import warnings

import matplotlib as mpl
import pytest

mpl.use("Agg")

from matplotlib import pyplot
from matplotlib.font_manager import fontManager
from render_cases import make_table, scores

from vlmprobe.display.plots import fonts, style
from vlmprobe.errors import VlmprobeWarning

HAN, HINDI, ARABIC, TIGER = "猫", "क", "قطة", "🐯"


@pytest.fixture(autouse=True)
def anew():
    fonts._told.clear()
    yield
    pyplot.close("all")


@pytest.fixture
def machine(monkeypatch):
    """A machine with these fonts and the characters of each."""

    def install(**characters):
        held = {name.replace("_", " "): frozenset(map(ord, text)) for name, text in characters.items()}
        found = [type("Font", (), {"name": name}) for name in held]
        monkeypatch.setattr(fontManager, "ttflist", found)
        monkeypatch.setattr(fonts, "_characters", lambda name, count: held.get(name, frozenset()))
        fonts._other.cache_clear()

    yield install
    fonts._other.cache_clear()


def test_fonts_of_other_scripts_follow_those_of_the_style(machine):
    machine(serif="é", SimHei=HAN, Noto_Sans_CJK_SC=HAN, Comic_Sans=HAN + HINDI, Noto_Color_Emoji=TIGER)
    before = dict(mpl.rcParams)
    with mpl.rc_context({"font.family": ["serif"]}):
        assert style.verbatim("a é")["family"] == ["serif"]
        assert style.verbatim(HAN)["family"] == ["serif", "Noto Sans CJK SC"]
        assert style.verbatim("a", HAN + HINDI)["family"] == ["serif", "Noto Sans CJK SC", "Comic Sans"]
        assert style.drawable(HAN + HINDI) == HAN + HINDI
    assert dict(mpl.rcParams) == before


def test_a_missing_font_is_named_once_and_a_box_stands_for_each_character(machine):
    machine(serif="é", Last_Resort=HAN, Noto_Color_Emoji=TIGER)
    with mpl.rc_context({"font.family": ["serif"]}), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert style.drawable(f"a{HAN}犬 {HINDI}{TIGER}é") == "a□□ □□é"
        assert style.drawable(HAN) == "□"
        assert style.drawable("é\u200d␀") == "é□"
        assert style.verbatim("□")["family"] == ["serif"]
    assert {each.category for each in told} == {VlmprobeWarning}
    messages = [str(each.message) for each in told]
    assert len(messages) == 3
    for message, name in zip(messages, ("Noto Sans CJK", "Noto Sans Devanagari", "Noto Emoji"), strict=True):
        assert f'"{name}"' in message
    assert HAN in messages[0]
    assert "U+732B" in messages[0]


@pytest.mark.parametrize(
    ("character", "font"),
    [("あ", "Noto Sans CJK"), ("한", "Noto Sans CJK"), ("ไ", "Noto Sans Thai"), ("⏿", "Noto Sans Symbols 2")],
)
def test_the_font_to_install_is_that_of_the_script(character, font):
    assert fonts._helpful(character) == font


def test_matplotlib_warns_of_no_glyph():
    texts = [HAN, "あ", "한", HINDI, ARABIC, TIGER, "👩\u200d🔬", "❤\ufe0f", "ไทย", "\x00", "𠮷"]
    table = make_table([(text, 0.5, [(other, 0.2)]) for text, other in zip(texts, reversed(texts), strict=True)])
    named = {text: [0.05] for text in texts}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", VlmprobeWarning)
        drawn = [
            table.plot(),
            make_table([(text, 0.5, []) for text in texts * 9]).plot(),
            table.top(2).plot(),
            scores(named, question="".join(texts)).plot(),
        ]
        for ax in drawn:
            ax.figure.canvas.draw()
    assert drawn[0].get_xticklabels()[4].get_text() == ARABIC  # matplotlib's own font has it


def test_a_font_of_the_machine_is_used_where_that_of_the_style_lacks_a_character():
    assert "DejaVu Sans" not in style.verbatim(ARABIC)["family"]
    with mpl.rc_context({"font.family": ["cmr10"]}):
        assert style.verbatim(ARABIC)["family"] == ["cmr10", "DejaVu Sans"]
    assert fonts._characters("no such font", 0) == frozenset()


def test_names_in_a_legend_are_text_too():
    _, ax = pyplot.subplots()
    ax.plot([0, 1], label=f"$x_1$ {HINDI}")
    with pytest.warns(VlmprobeWarning, match="Devanagari"):
        style.legend(ax)
    (name,) = ax.get_legend().get_texts()
    assert name.get_text() == "$x_1$ □"
    ax.figure.canvas.draw()
    assert not name.get_parse_math()
