"""Saved answers on the page: listed, searched, opened with their images, and whether one can go on from them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from page_client import QUESTION, UNSURE, Page
from PIL import Image

import vlmprobe
from vlmprobe.demo import sample_images
from vlmprobe.errors import ResultError
from vlmprobe.page.saved import open_saved


@pytest.fixture(scope="module")
def answers(demo, tmp_path_factory):
    """A folder of a plain answer, a typed one, one to a large image, one of another model, and one after a system
    message."""
    plain = demo.generate(QUESTION, UNSURE)
    large = tmp_path_factory.mktemp("large") / "large.png"
    Image.open(UNSURE).resize((1024, 1024)).save(large)
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    saved = [
        plain,
        demo.ask("Is there a nine?", UNSURE),
        demo.generate(QUESTION, large),
        replace(plain, meta={**plain.meta, "model": "other"}),
        demo.generate(system, UNSURE),
    ]
    folder = tmp_path_factory.mktemp("saved") / "answers"
    vlmprobe.save_results(saved, folder)
    return folder, saved


def test_a_folder_of_results(answers, demo):
    folder, saved = answers
    with Page(demo, open_saved(folder)) as page:
        assert page.client.get("api/about").json()["saved"]
        listed = page.client.get("api/saved").json()
        assert (listed["name"], listed["count"]) == ("answers", 5)
        assert [row["answer"] for row in listed["rows"]] == [
            each.best if each is saved[1] else each.text for each in saved
        ]
        assert listed["rows"][0]["confidence"] == pytest.approx(saved[0].confidence)
        found = page.client.get("api/saved?find=is+there&order=confidence").json()
        assert [row["place"] for row in found["rows"]] == [1]
        by_confidence = page.client.get("api/saved?order=confidence").json()["rows"]
        assert by_confidence == sorted(listed["rows"], key=lambda row: row["confidence"])
        assert page.client.get("api/saved?start=4").json()["rows"] == listed["rows"][4:]
        opened = [page.client.get(f"api/saved/{place}").json() for place in range(5)]
        assert [bool(each["why"]) for each in opened] == [False, False, True, True, True]
        assert "downscaled" in opened[2]["why"]
        assert "other" in opened[3]["why"]
        assert "system message" in opened[4]["why"]
        assert opened[0]["document"]["text"] == saved[0].text
        assert opened[0]["images"][0]["key"] == page.image()  # the very image
        branched = page.result(images=[opened[0]["images"][0]["key"]], begin=[73, 326, 299])
        assert branched["document"]["text"] == demo.branch(saved[0], 2, 299).text
        keys = [each["key"] for each in opened]
        assert page.client.post("api/share", json={"keys": keys}).text.count("<article>") == 5
        for wrong in ("api/saved/5", "api/saved?order=x", "api/saved?start=-1", "api/saved?start=" + "9" * 30):
            assert page.client.get(wrong).status_code == 404


def test_one_result_and_nothing(answers, tmp_path):
    folder, _ = answers
    (file,) = folder.glob("000000*")
    assert len(open_saved(file).rows) == 1
    with pytest.raises(ResultError):
        open_saved(tmp_path / "nothing")


def test_without_saved_answers_there_is_no_list(page):
    assert page.client.get("api/about").json()["saved"] is False
    assert page.client.get("api/saved").status_code == 404
    assert page.client.get("api/saved/0").status_code == 404


def test_a_run(demo, tmp_path):
    pytest.importorskip("pyarrow")
    rows = [{"id": path.stem, "question": QUESTION, "image": path.name} for path in sample_images()[3:]]
    rows.append({"id": "bad", "question": QUESTION, "image": "missing.png"})
    for path in sample_images()[3:]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    vlmprobe.run(demo, rows, out=tmp_path / "run", root=tmp_path, progress=False)
    with Page(demo, open_saved(tmp_path / "run", tmp_path)) as page:
        listed = page.client.get("api/saved").json()["rows"]
        assert [row["id"] for row in listed] == [row["id"] for row in rows]
        assert "missing" in listed[-1]["error"]
        assert page.client.get("api/saved/3").json()["error"]["type"] == "ResultError"
        opened = page.client.get("api/saved/1").json()
        expected = demo.generate(QUESTION, UNSURE)
        assert opened["document"]["text"] == expected.text
        assert opened["why"] == ""
        key = opened["images"][0]["key"]
        assert opened["images"][0]["name"].endswith(UNSURE.name)
        begin = [*(row["id"] for row in opened["document"]["output"][:2]), 299]
        assert page.result(images=[key], begin=begin)["document"]["text"] == demo.branch(expected, 2, 299).text
        (tmp_path / UNSURE.name).write_bytes(sample_images()[0].read_bytes())  # it is another one now
        assert "another content" in page.client.get("api/saved/1").json()["why"]
