"""The report of a run: what its pages say, what cannot be said in them, and which folders it replaces."""

from __future__ import annotations

import html
import json
import re
import sys

import numpy as np
import pytest
from run_engine import oracle

import vlmprobe
from vlmprobe.analysis import calibration
from vlmprobe.analysis.paired import paired_metrics
from vlmprobe.demo import sample_images
from vlmprobe.display import view
from vlmprobe.errors import ResultError, RunError
from vlmprobe.runs import report as report_module

IMAGES = sample_images()
OWNING = "</script><script>document.title='owned'</script>\u2028"
COLUMN = "<b>kind</b>"


def questions(count=12):
    """Rows about bundled images, the right answer from their names; hostile ones, and one whose image is gone."""
    rows = []
    for place in range(count):
        image = IMAGES[place % len(IMAGES)].name
        row = {"id": f"r{place}", "image": image, "question": f"Is there a two? ({place})", "candidates": ["yes", "no"]}
        rows.append(
            {**row, "answer": "yes" if "two" in image else "no", COLUMN: "<i>even" if place % 2 == 0 else "odd"}
        )
    rows[3] |= {"id": "../x", "question": OWNING + rows[3]["question"]}
    rows[4] |= {"image": "<img src=x>.png"}
    rows[7] |= {"answer": "no"}  # a label that is wrong
    return rows


@pytest.fixture(scope="module")
def probe():
    return vlmprobe.load("demo")


@pytest.fixture(scope="module")
def answered(probe, tmp_path_factory):
    """A run of twelve rows."""
    folder = tmp_path_factory.mktemp("runs") / "answers"
    vlmprobe.run(probe, questions(), out=folder, root=IMAGES[0].parent, max_new_tokens=4, progress=False)
    return vlmprobe.open_run(folder)


@pytest.fixture(scope="module")
def other(answered):
    """Another run over the same rows, by an engine of made-up numbers: its answers differ in some."""
    folder = answered.folder.parent / "other"
    vlmprobe.run(oracle()[0], questions(), out=folder, root=IMAGES[0].parent, max_new_tokens=4, progress=False)
    return vlmprobe.open_run(folder)


@pytest.fixture(scope="module")
def written(answered, other):
    """The folder of its report, with the other run beside it."""
    return answered.report(answered.folder.parent / "report", against=other).parent


def read(folder, name="index.html"):
    return (folder / name).read_text(encoding="utf-8")


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def rows_of(folder):
    """The rows of the table, from its scripts."""
    found = []
    for number in range(len(list(folder.glob("rows-*.js")))):
        script = read(folder, f"rows-{number}.js")
        head = f"vlmprobeRows({number}, "
        assert script.startswith(head)
        assert script.endswith(");\n")
        assert not set(script) & set("<>&\u2028\u2029")
        found += json.loads(script.removeprefix(head).removesuffix(");\n"))
    return found


def test_the_figures_are_those_of_the_table(answered, written):
    table = answered.to_pandas()
    ok = table[table.status == "ok"]
    right = (ok.best == ok.answer).to_numpy()
    sure = np.array([np.exp(max(each)) / np.exp(each).sum() for each in map(np.array, ok.candidate_logprobs)])
    told = text_of(read(written))
    for part in (
        f"rows {len(table)} failed 1 with a right answer {len(ok)} right {right.sum()} accuracy {right.mean():.3f}",
        f"mean confidence {sure.mean():.3f}",
        f"ECE {calibration.ece(sure, right):.3f}",
        f"the area below the curve is {calibration.risk_coverage(sure, right).area:.3f}",
    ):
        assert part in told
    rows = rows_of(written)
    assert [row[0] for row in rows] == list(range(12))
    assert [row[1] for row in rows] == table.id.tolist()
    assert [row[6] for row in rows] == [
        2 if s != "ok" else int(a == b) for s, a, b in zip(table.status, table.best, table.answer, strict=True)
    ]
    assert np.allclose([row[5] for row in rows if row[6] != 2], sure, atol=1e-6)
    assert rows[4][3].startswith("ImageNotFoundError: ")


def test_by_column(answered, written):
    table = answered.to_pandas()
    ok = table[table.status == "ok"]
    told = text_of(read(written))
    for value, group in table.groupby(COLUMN):
        judged = ok[ok[COLUMN] == value]
        accuracy = (judged.best == judged.answer).mean()
        assert f"{value} {len(group)} {(group.status != 'ok').sum()} {accuracy:.1%}" in told


def test_against_another_run(answered, other, written):
    mine, theirs = answered.to_pandas(), other.to_pandas()
    assert mine.key.tolist() == theirs.key.tolist()
    both = (mine.status == "ok") & (theirs.status == "ok")
    differ = both & (mine.best != theirs.best)
    flipped = both & ((mine.best == mine.answer) != (theirs.best == mine.answer))
    assert 0 < differ.sum() < both.sum()
    rows = rows_of(written)
    assert [bool(row[9]) for row in rows] == differ.tolist()
    assert [bool(row[10]) for row in rows] == flipped.tolist()
    told = text_of(read(written))
    assert f"asked {len(mine)} of these rows, and both answered {both.sum()}. {differ.sum()} answers differ" in told
    right = [(each.best[both] == mine.answer[both]).to_numpy() for each in (theirs, mine)]
    sure = [
        np.array([np.exp(max(row)) / np.exp(row).sum() for row in map(np.array, each.candidate_logprobs[both])])
        for each in (theirs, mine)
    ]
    metrics, test = paired_metrics(tuple(sure), tuple(right))
    assert f"Here {test.only_b}, there {test.only_a} of these; McNemar's exact test: p {test.p:.3f}" in told
    accuracy = metrics["accuracy"]
    assert f"accuracy {accuracy.a:.3f} {accuracy.b:.3f} {accuracy.difference.value:+.3f}" in told


def test_without_scikit_learn_there_are_figures_without_intervals(answered, written, tmp_path, monkeypatch):
    """It ended with an error after the folder was half written."""
    monkeypatch.setitem(sys.modules, "sklearn", None)
    told = text_of(read(answered.report(tmp_path / "report").parent))
    tiles = re.search(r"accuracy (\S+) mean confidence (\S+) ECE (\S+) AURC (\S+) Intervals need scikit-learn", told)
    with_intervals = text_of(read(written))
    for name, value in zip(("accuracy", "mean confidence", "ECE", "AURC"), tiles.groups(), strict=True):
        assert f"{name} {value} " in with_intervals
    assert "95% interval, from resampled rows" not in told


def test_an_error_in_the_figures_leaves_an_earlier_report(answered, tmp_path, monkeypatch):
    out = answered.report(tmp_path / "report").parent
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(calibration, "reliability", lambda *_: 1 / 0)
    for folder in (out, tmp_path / "new"):
        with pytest.raises(ZeroDivisionError):
            answered.report(folder)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_a_single_labelled_row_has_figures(tmp_path):
    vlmprobe.run(oracle()[0], [{"question": "Which?", "answer": "red"}], out=tmp_path / "run", progress=False)
    told = text_of(read(vlmprobe.open_run(tmp_path / "run").report(tmp_path / "report").parent))
    assert re.search(r"with a right answer 1 right [01] accuracy [01]\.000 mean confidence", told)
    assert "Intervals need scikit-learn, and two rows with a right answer." in told


def test_pages_of_rows(answered, written):
    pages = sorted(written.glob("row-*.html"))
    assert len(pages) == 12, "all of them are few enough"
    page = text_of(read(written, "row-0.html"))
    result = answered.result("r0")
    for part in ("Row 0", "Is there a two? (0)", "candidate", "label no", "right", "the other run", "key"):
        assert part in page
    for each in view.rows(result.output)[0].alternatives:
        assert f"{each.label} {view.percent(each.probability)}" in page
    assert (written / "image-0-0.jpg").read_bytes()[:3] == b"\xff\xd8\xff"
    lost = read(written, "row-4.html")
    assert "<img" not in lost
    assert "&lt;img src=x&gt;.png could not be read when it was asked about." in lost
    assert "ImageNotFoundError" in lost


def test_hostile_texts_are_only_texts(written):
    names = {path.name for path in written.iterdir()} - {".vlmprobe-report"}
    assert all(report_module.OWN.fullmatch(name) for name in names)
    assert not list(written.parent.glob("x*"))
    for path in written.glob("*.html"):
        page = path.read_text(encoding="utf-8")
        assert "document.title='owned'</script>" not in page
        assert "<i>even" not in page
        assert COLUMN not in page
        assert len(re.findall("<script", page)) == 1
        assert "default-src 'none'" in page
        assert not re.findall(r"(?:src|href)=\"(?!index\.html|row-\d+\.html|image-\d|report\.|keys\.js)", page)
    assert rows_of(written)[3][1] == "../x"


def test_labels_by_id(answered, tmp_path):
    table = answered.to_pandas()
    flip = {"yes": "no", "no": "yes"}
    lines = [{"id": id, "answer": flip[answer]} for id, answer in zip(table.id, table.answer, strict=True)]
    data = tmp_path / "labels.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    before = [row[6] for row in rows_of(answered.report(tmp_path / "before").parent)]
    after = answered.report(tmp_path / "after", answers=data).parent
    assert [row[6] for row in rows_of(after)] == [{0: 1, 1: 0, 2: 2}[verdict] for verdict in before]
    assert "12 rows have their right answer from other labels" in text_of(read(after))
    one = answered.report(tmp_path / "one", answers={"r0": flip[table.answer[0]]}).parent
    assert [row[6] for row in rows_of(one)] == [1 - before[0], *before[1:]]
    several = answered.report(tmp_path / "several", answers=[{"id": "r0", "answer": ["yes", "No"]}]).parent
    assert [row[6] for row in rows_of(several)] == [1, *before[1:]], "the others keep their one answer"
    for wrong, told in (
        ({"unknown": "yes"}, "none of the 1 ids"),
        ([{"id": "r0"}], "no 'answer'"),
        ([{"id": "r0", "answer": "yes"}, {"id": "r0", "answer": "no"}], "another answer for the id 'r0'"),
    ):
        with pytest.raises(ResultError, match=told):
            answered.report(tmp_path / "wrong", answers=wrong)
    assert not (tmp_path / "wrong").exists()


def test_only_folders_that_a_report_made_are_replaced(answered, tmp_path):
    kept = tmp_path / "mine"
    kept.mkdir()
    (kept / "index.html").write_text("mine", encoding="utf-8")
    for folder in (kept, answered.folder, kept / "index.html"):
        with pytest.raises(ResultError, match=r"no report made|is no folder"):
            answered.report(folder)
    assert [path.name for path in kept.iterdir()] == ["index.html"]
    assert read(kept) == "mine"

    out = answered.report(tmp_path / "report").parent
    (out / "notes.txt").write_text("kept", encoding="utf-8")
    (out / "row-99.html").write_text("of an earlier report", encoding="utf-8")
    outside = tmp_path / "outside.js"
    outside.write_text("outside", encoding="utf-8")
    (out / "rows-0.js").unlink()
    (out / "rows-0.js").symlink_to(outside)
    answered.report(out)
    assert read(out, "notes.txt") == "kept"
    assert not (out / "row-99.html").exists()
    assert not (out / "rows-0.js").is_symlink()
    assert outside.read_text(encoding="utf-8") == "outside"


def test_a_run_without_labels(tmp_path):
    rows = [{"question": f"Question {place}?"} for place in range(60)]
    vlmprobe.run(oracle()[0], rows, out=tmp_path / "run", progress=False)
    out = vlmprobe.open_run(tmp_path / "run").report(tmp_path / "report").parent
    told = text_of(read(out))
    assert "No row has a right answer to compare with" in told
    assert "Least confident 50" in told
    sure = vlmprobe.open_run(tmp_path / "run").to_pandas().confidence
    pages = {int(path.stem.partition("-")[2]) for path in out.glob("row-*.html")}
    assert pages == set(sure.nsmallest(50).index)


def test_the_table_comes_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(report_module, "PIECE", 7)
    rows = [{"question": f"Question {place}?"} for place in range(20)]
    vlmprobe.run(oracle()[0], rows, out=tmp_path / "run", progress=False)
    out = vlmprobe.open_run(tmp_path / "run").report(tmp_path / "report").parent
    assert len(list(out.glob("rows-*.js"))) == 3
    assert [row[2] for row in rows_of(out)] == [row["question"] for row in rows]
    config = json.loads(html.unescape(re.search(r'data-config="([^"]*)"', read(out))[1]))
    assert config == {"pieces": 3, "rows": 20, "judged": False, "against": False}


def test_images_that_are_gone_or_changed_are_said_in_words(probe, tmp_path):
    rows = []
    for place, image in enumerate(IMAGES[:3]):
        (tmp_path / f"{place}.png").write_bytes(image.read_bytes())
        rows.append({"image": f"{place}.png", "question": "Is there a two?"})
    vlmprobe.run(probe, rows, out=tmp_path / "run", root=tmp_path, max_new_tokens=2, progress=False)
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").write_bytes(IMAGES[3].read_bytes())
    out = vlmprobe.open_run(tmp_path / "run").report(tmp_path / "report", root=tmp_path).parent
    assert (out / "image-0-0.jpg").exists()
    for place in (1, 2):
        assert not (out / f"image-{place}-0.jpg").exists()
        assert f"{place}.png is not there any more, or has another content now." in text_of(
            read(out, f"row-{place}.html")
        )


def test_what_is_not_there(answered, tmp_path):
    with pytest.raises(RunError):
        answered.report(tmp_path / "report", against=tmp_path / "gone")
    vlmprobe.run(oracle()[0], [], out=tmp_path / "empty", progress=False)
    with pytest.raises(ResultError, match="no rows yet"):
        vlmprobe.open_run(tmp_path / "empty").report(tmp_path / "report")
    vlmprobe.run(oracle()[0], [{"question": "Another?"}], out=tmp_path / "others", progress=False)
    with pytest.raises(ResultError, match="none of the questions"):
        answered.report(tmp_path / "report", against=tmp_path / "others")
    assert not (tmp_path / "report").exists()
