"""Tables of requests: pandas, polars, pyarrow and ``datasets``, and what becomes of their columns and missing cells."""

from __future__ import annotations

import io
import json
from datetime import datetime

import numpy as np
import pytest
from common import picture

import vlmprobe
from vlmprobe import Request
from vlmprobe.analysis.compare import compare
from vlmprobe.analysis.yes_no import yes_no_many
from vlmprobe.errors import EngineError, ImageError, MessageError, VlmprobeError, VlmprobeWarning
from vlmprobe.probe.misplaced import OPTIONS as OPTION_NAMES
from vlmprobe.probe.request import request_of
from vlmprobe.probe.tables import RECORDED, is_table, rows_of

pandas = pytest.importorskip("pandas")
OPTIONS = {"max_new_tokens": 2, "do_sample": False, "prompt": False, "progress": False}


def png(seed: int = 1) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, "PNG")
    return file.getvalue()


ROWS = [
    {"question": "What is this?", "image": {"bytes": png(), "path": None}, "id": 7, "label": "cat", "hard": True},
    {"question": "Hi", "image": None, "id": 8, "label": None, "hard": False},
    {"question": "And now?", "image": {"bytes": png(2), "path": "lost.png"}, "id": 9, "label": "dog", "hard": None},
]
IMAGE_NAMES = ["pic", "jpg", "png", "screenshot", "pixel_values", "images_path", "image_name", "imagePath", "IMG_URL"]
IMAGE_NAMES += ["photo-file", "image_base64", "image_2"]
NAMES = ["question", "image", "id", "label", "hard"]


class Polars:
    """What is used of a polars DataFrame."""

    columns = NAMES

    def __len__(self):
        return len(ROWS)

    def iter_rows(self):
        return (tuple(row.values()) for row in ROWS)


class Dataset:
    """What is used of a ``datasets.Dataset``."""

    column_names = NAMES
    features = None

    def __len__(self):
        return len(ROWS)

    def __iter__(self):
        return iter(ROWS)


def arrow():
    return pytest.importorskip("pyarrow").Table.from_pylist(ROWS)


FRAMES = {
    "pandas": lambda: pandas.DataFrame(ROWS, index=[100, 200, 300]),
    "polars": Polars,
    "pyarrow": arrow,
    "record batch": lambda: arrow().to_batches()[0],
    "datasets": Dataset,
    "mappings": lambda: ROWS,
    "iterator": lambda: iter(ROWS),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_every_kind_of_table_gives_the_same_results(kind, probe_of):
    probe = probe_of("internvl")
    found = list(probe.generate_many(FRAMES[kind](), **OPTIONS))
    assert [each.meta["id"] for each in found] == [7, 8, 9]
    assert [each.meta["label"] for each in found] == ["cat", None, "dog"]
    assert [each.meta["hard"] for each in found] == [True, False, None]
    assert [each.meta["question"] for each in found] == [row["question"] for row in ROWS]
    options = {key: value for key, value in OPTIONS.items() if key != "progress"}
    for result, image in zip(found, (picture(), None, picture(2)), strict=True):
        same = probe.generate(result.meta["question"], image, **options)
        assert result.text == same.text
        assert result.meta.get("image_digests") == same.meta.get("image_digests")
    assert json.dumps(found[0].meta)  # so that it can be saved
    assert set(found[0].meta) - {"question", "id", "label", "hard"} <= RECORDED


@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow", "datasets"])
def test_tables_are_told_from_lists(kind):
    assert is_table(FRAMES[kind]())
    assert rows_of(FRAMES[kind](), "here")[1] == 3
    assert not is_table(ROWS)
    assert not is_table(iter(ROWS))


def test_an_index_is_not_an_id(probe_of):
    frame = pandas.DataFrame({"prompt": ["Hi"]}, index=["row-a"])
    (result,) = probe_of("internvl").generate_many(frame, **OPTIONS)
    assert "id" not in result.meta
    assert result.meta["question"] == "Hi"


def test_cells_become_plain_values():
    when = pandas.Timestamp("2026-03-01")
    row = {
        "question": np.str_("Hi"),
        "image": pandas.NaT,
        "id": np.int64(3),
        "score": np.float32(0.5),
        "nothing": float("nan"),
        "na": pandas.NA,
        "vector": np.array([1.0, np.nan]),
        "nested": {"a": np.arange(2), "b": (np.bool_(True), None)},
        "when": when,
        "day": np.datetime64("2026-03-01"),
        "naive": datetime(2026, 3, 1),
        "candidates": np.array(["yes", "no"], dtype=object),
    }
    request = request_of(row)
    assert (request.question, request.image, request.id, request.candidates) == ("Hi", None, 3, ("yes", "no"))
    assert type(request.id) is int
    assert dict(request.carry) == {
        "score": 0.5,
        "nothing": None,
        "na": None,
        "vector": [1.0, None],
        "nested": {"a": [0, 1], "b": [True, None]},
        "when": "2026-03-01T00:00:00",
        "day": "2026-03-01",
        "naive": "2026-03-01T00:00:00",
    }
    assert request_of({"question": "Hi", "candidates": float("nan"), "id": float("nan")}) == Request("Hi")
    assert request.told["candidates"] == ["yes", "no"]


def test_images_in_cells(probe_of, tmp_path):
    picture(3).save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    pixels = np.asarray(picture(3))
    cells = [path, [path], np.array([path], dtype=object), pixels, {"path": path}, [{"bytes": png(3), "path": None}]]
    frame = pandas.DataFrame({"question": ["Hi"] * len(cells), "images": cells})
    digests = [each.meta["image_digests"] for each in probe_of("internvl").generate_many(frame, **OPTIONS)]
    assert digests == digests[:1] * len(cells)


def test_messages_as_arrow_and_pandas_hold_them(probe_of):
    probe = probe_of("internvl")
    parts = np.array([{"type": "image", "image": {"bytes": png(), "path": None}}, {"type": "text", "text": "Hi"}])
    frame = pandas.DataFrame({"prompt": [np.array([{"role": "user", "content": parts}])]})
    (result,) = probe.generate_many(frame, **OPTIONS)
    assert result.meta["image_digests"] == probe.generate("Hi", picture(), max_new_tokens=1).meta["image_digests"]


def test_tuples_are_a_question_and_its_image(probe_of):
    image = picture()
    both = [("Hi", image), ("Hi", None), ([{"role": "user", "content": "Hi"}], image)]
    found = list(probe_of("internvl").generate_many(both, **OPTIONS))
    assert ["image_digests" in each.meta for each in found] == [True, False, True]
    with pytest.raises(MessageError, match=r"request 0: .*\(question, image\)"):
        list(probe_of("internvl").generate_many([("Hi", image, 3)], **OPTIONS))


def test_a_session_adds_its_image_to_rows_without_one(probe_of):
    frame = pandas.DataFrame({"question": ["Hi", "Yes"], "image": [None, picture(2)]})
    with probe_of("internvl").session(picture(1)) as session:
        one, other = session.generate_many(frame, **OPTIONS)
    assert one.meta["image_digests"] != other.meta["image_digests"]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (["Question", "image"], r"are 'Question', 'image'. Rename 'Question' to 'question'\."),
        (["text"], "'question' .*the table are 'text'. Rename the one with the questions"),
        (["question", "seed"], "'seed' has a name that vlmprobe records in meta itself: rename"),
        (["question", "model"], "'model'"),
        (["question", "prompt"], "'question' and 'prompt'"),
        (["question", "image", "images"], "'image' and 'images'"),
        (["question", "imgae"], "'imgae' is not read as an image"),
        (["question", "Image"], "'Image' is not read as an image"),
        (["question", "image_path"], "'image_path' is not read as an image"),
        (["question", 0], "column 0 is not named by a string"),
        (["question", "label", "label"], "several columns 'label'"),
    ],
)
def test_columns_that_cannot_be_meant_are_told_before_anything_runs(columns, says, probe_of):
    frame = pandas.DataFrame([["Hi"] * len(columns)], columns=columns)
    with pytest.raises(MessageError, match=says):
        probe_of("internvl").generate_many(frame, on_error="keep", **OPTIONS)


@pytest.mark.parametrize(
    "name",
    [
        "pic",
        "jpg",
        "screenshot",
        "pixel_values",
        "images_path",
        "image_name",
        "imagePath",
        "IMG_URL",
        "photo-file",
        "png",
        "image_base64",
        "image_2",
    ],
)
def test_a_name_of_images_is_told_before_anything_runs(name, probe_of):
    frame = pandas.DataFrame({"question": ["Hi"], name: [1]})
    with pytest.raises(MessageError, match=f"'{name}' is not read as an image: rename it to 'image'"):
        probe_of("internvl").generate_many(frame, **OPTIONS)


@pytest.mark.parametrize(
    "name", ["filename", "path", "file_name", "file", "filepath", "frame", "scan", "link", "fileName"]
)
def test_a_file_of_an_image_is_told_where_no_image_is_asked_about(name, probe_of, tmp_path):
    frame = pandas.DataFrame({"question": ["Hi", "Hi"], name: [None, "scenes/0001.PNG"], "id": ["a", "b"]})
    with pytest.raises(MessageError, match=rf"^request 1 \(id 'b'\): column '{name}' names an image"):
        list(probe_of("internvl").generate_many(frame, **OPTIONS))
    both = frame.assign(image=None)
    assert [each.meta[name] for each in probe_of("internvl").generate_many(both, **OPTIONS)][1] == "scenes/0001.PNG"
    for other in (None, 12, "report.pdf", "0001"):
        assert dict(request_of({"question": "Hi", name: other}).carry) == {name: other}


def test_values_that_are_images_are_told_whatever_their_column_is_called(tmp_path):
    picture(1).save(tmp_path / "bare", "PNG")
    held = [picture(1), png(), {"bytes": png(), "path": None}, {"path": str(tmp_path / "bare")}, [picture(1)]]
    held += [str(tmp_path / "bare"), tmp_path / "bare", [str(tmp_path / "bare")], np.zeros((4, 4, 3), np.uint8)]
    for value in held:
        with pytest.raises(MessageError, match=r"column 'thing' holds an image.*rename it to 'image'"):
            request_of({"question": "Hi", "thing": value})
    (tmp_path / "notes.txt").write_text("BM25 is a ranking function")
    for value in (str(tmp_path / "notes.txt"), str(tmp_path), "no such file", np.zeros((1, 4, 3)), "x" * 5000, "\0"):
        assert "thing" in request_of({"question": "Hi", "thing": value}).carry
    messages = [{"role": "user", "content": [{"type": "image", "image": picture(1)}, {"type": "text", "text": "Hi"}]}]
    assert dict(request_of({"question": messages, "file": "a.png"}).carry) == {"file": "a.png"}


def test_names_of_images_in_a_column_of_another_name_are_a_warning():
    for value in ("logo.png", "https://here.example/a.jpg?size=2", "data:image/png;base64,AA==", ["a.webp"]):
        with pytest.warns(
            VlmprobeWarning, match="column 'gold' names images, and the question is asked without"
        ) as told:
            assert dict(request_of({"question": "Which file?", "gold": value}).carry) == {"gold": value}
        assert told[0].filename == __file__


@pytest.mark.parametrize("name", ["max_new_tokens", "temperature", "do_sample", "top_p"])
def test_a_column_of_an_option_is_not_carried_in_silence(name, probe_of):
    frame = pandas.DataFrame({"question": ["Hi"], name: [1]})
    with pytest.raises(MessageError, match=rf"'{name}' is an option .*generate_many\(rows, {name}=\.\.\.\)"):
        probe_of("internvl").generate_many(frame, **OPTIONS)
    with pytest.raises(MessageError, match=f"request 0: column '{name}'"):
        list(probe_of("internvl").generate_many([{"question": "Hi", name: 1}], **OPTIONS))


def test_names_of_options_are_those_of_calls():
    from transformers import GenerationConfig

    assert OPTION_NAMES - {"logits_processor"} <= set(GenerationConfig().to_dict()) | {"stop_strings"}


def test_options_of_one_request_say_where_options_go():
    with pytest.raises(MessageError, match=r"generate_many\(rows, temperature=\.\.\.\)"):
        request_of({"question": "Hi", "options": {"temperature": 0.5}})
    assert dict(request_of({"question": "Hi", "options": ["a", "b"]}).carry) == {"options": ["a", "b"]}  # of an exam


def test_an_index_named_id_is_the_id(probe_of):
    frame = pandas.DataFrame({"id": ["a", "b"], "question": ["Hi", "Yes"]})
    for made in (
        frame.set_index("id"),
        frame.assign(part=1).set_index(["part", "id"]),
        frame.set_index("id", drop=False),
    ):
        found = list(probe_of("internvl").generate_many(made, **OPTIONS))
        assert [each.meta["id"] for each in found] == ["a", "b"]


def test_columns_about_images_that_are_not_images_are_carried():
    request = request_of({"question": "Hi", "image_id": 3, "question_id": 4, "ids": "a"})
    assert dict(request.carry) == {"image_id": 3, "question_id": 4, "ids": "a"}
    assert dict(request_of({"question": "Hi", "image": None, "image_path": "a.png"}).carry) == {"image_path": "a.png"}


@pytest.mark.parametrize("value", [picture(), b"abc", object(), [picture()]], ids=["image", "bytes", "object", "list"])
def test_what_a_result_cannot_keep_is_told(value):
    with pytest.raises(MessageError, match=r"column 'shown' holds .*images are read from 'image'"):
        Request("Hi", carry={"shown": value})


@pytest.mark.parametrize("name", ["id", "question", "image", "candidates", "versions"])
def test_further_columns_cannot_take_a_name_that_is_read_or_recorded(name):
    with pytest.raises(MessageError, match=name):
        Request("Hi", carry={name: 1})


def test_a_column_that_only_this_model_records_is_told_too(probe_of, monkeypatch):
    probe = probe_of("internvl")
    monkeypatch.setattr(type(probe.engine.adapter), "facts", lambda self, conversation=None: {"own": 1})
    with pytest.raises(MessageError, match=r"request 0 \(id 'x'\): column 'own'"):
        list(probe.generate_many([Request("Hi", id="x", carry={"own": 2})], **OPTIONS))


@pytest.mark.parametrize("question", [None, float("nan")])
def test_a_missing_question_names_its_row(question, probe_of):
    frame = pandas.DataFrame({"question": ["Hi", question], "id": ["a", "b"]})
    with pytest.raises(MessageError, match=r"^request 1 \(id 'b'\): the question is missing"):
        list(probe_of("internvl").generate_many(frame, **OPTIONS))


def test_what_is_no_list_says_how_to_make_one(probe_of):
    class Lazy:
        def collect(self):
            raise AssertionError

    probe = probe_of("internvl")
    with pytest.raises(MessageError, match=r"call its collect\(\)"):
        probe.generate_many(Lazy())
    with pytest.raises(MessageError, match="pass one of 'train'"):
        probe.generate_many({"train": Dataset()})


def test_candidates_of_a_request():
    assert Request("Hi", candidates=["yes", "no"]).candidates == ("yes", "no")
    assert Request("Hi", candidates=[]).candidates is None
    for wrong in ("yes", ["yes", "yes"], [1], {"yes": ["Yes"]}):
        with pytest.raises(MessageError, match="candidate"):
            Request("Hi", candidates=wrong)


def test_generate_many_records_candidates_and_generates(probe_of):
    frame = pandas.DataFrame({"question": ["Hi"], "candidates": [["yes", "no"]]})
    (result,) = probe_of("internvl").generate_many(frame, **OPTIONS)
    assert result.meta["candidates"] == ["yes", "no"]
    assert result.text == probe_of("internvl").generate("Hi", max_new_tokens=2, do_sample=False).text


def test_results_with_further_columns_are_saved_and_loaded(probe_of, tmp_path):
    frame = pandas.DataFrame({"question": ["Hi"], "label": ["cat"], "when": [pandas.Timestamp("2026-03-01")]})
    (result,) = probe_of("internvl").generate_many(frame, **OPTIONS)
    loaded = vlmprobe.load_result(result.save(tmp_path / "saved"))
    assert (loaded.meta["label"], loaded.meta["when"]) == ("cat", "2026-03-01T00:00:00")


def test_yes_no_of_a_table(probe_of):
    frame = pandas.DataFrame({"question": ["Is it?", "Was it?"], "image": [picture(), None], "label": ["yes", "no"]})
    found = list(yes_no_many(probe_of("llava"), frame, progress=False))
    assert [each.meta["label"] for each in found] == ["yes", "no"]
    with pytest.raises(ImageError, match=r"^request 1 \(id 'b'\): "):
        list(yes_no_many(probe_of("llava"), [("Hi", None), {"question": "Hi", "image": "none.png", "id": "b"}]))
    with pytest.raises(MessageError, match="request 0: its candidates"):
        list(yes_no_many(probe_of("llava"), [Request("Hi", candidates=["a", "b"])]))


def test_compare_reads_tables_and_scores_the_candidates_of_a_row(probe_of):
    probe = probe_of("internvl")
    frame = pandas.DataFrame(
        {"question": ["Hi", "Is it?"], "candidates": [None, ["yes", "no"]], "id": [1, 2], "label": ["a", "b"]}
    )
    found = compare(probe, probe, frame, progress=False, max_new_tokens=2)
    assert [each.how for each in found.requests] == ["same", "candidates"]
    assert [each.meta["label"] for each in found.requests] == ["a", "b"]
    assert [each.id for each in found.requests] == [1, 2]
    assert found.max_abs < 1e-5


def test_compare_names_the_request_by_its_own_row(probe_of):
    probe = probe_of("internvl")
    requests = [("Hi", None), Request("Hi", candidates=["yes", "no"]), {"question": "Hi", "image": "none.png"}]
    with pytest.raises(ImageError, match=r"^request 2: "):
        compare(probe, probe, requests, progress=False, max_new_tokens=1)
    with pytest.raises(VlmprobeError, match=r"^request 0 \(id 'x'\): "):
        compare(probe, probe, [Request("Hi", "none.png", "x", candidates=["yes", "no"])], progress=False)
    with pytest.raises(MessageError, match="request 0: a column 'options'"):
        compare(probe, probe, pandas.DataFrame({"question": ["Hi"], "options": [{}]}), progress=False)


def test_training_reads_a_table(probe_of):
    from vlmprobe.analysis.training import ProbeCallback

    frame = pandas.DataFrame({"question": ["Hi", "Yes"], "image": [picture(), None]})
    callback = ProbeCallback(frame, max_new_tokens=1)
    adapter = probe_of("qwen2_vl").engine.adapter
    assert callback.ask(adapter.model, adapter.processor)["confidence"] > 0
    assert len(callback.questions) == 2


def test_a_document_and_a_line_of_a_file_hold_images_in_the_same_form(tmp_path):
    from vlmprobe.analysis.cases import read_cases
    from vlmprobe.probe.rank import parts_of

    (part,) = parts_of({"bytes": png(), "path": None}, "the document")
    assert part.image.size == picture().size
    path = tmp_path / "requests.jsonl"
    path.write_text('{"question": "Hi", "image": {"bytes": null, "path": "a.png"}}', encoding="utf-8")
    (case,) = read_cases(path)
    assert case.image == [{"bytes": None, "path": str(tmp_path / "a.png")}]


def test_errors_of_a_server_name_the_request(probe_of):
    """An engine that runs requests concurrently returns them in order, failures among them."""
    probe = probe_of("internvl")

    class Concurrent:
        def check(self, conversations, options):
            pass

        def answers(self, conversations, options, *, keep_errors=False, together=None):
            for each in conversations:
                bad = not isinstance(each, Exception) and each.question == "bad"
                yield EngineError("busy", status=503) if bad else each if isinstance(each, Exception) else result

    result = probe.generate("Hi", max_new_tokens=1)
    server = vlmprobe.Probe(Concurrent())
    requests = pandas.DataFrame({"question": ["Hi", "bad", None, "Hi"], "id": list("abcd"), "label": [1, 2, 3, 4]})
    found = list(server.generate_many(requests, on_error="keep", progress=False))
    assert [getattr(each, "row", None) for each in found] == [None, 1, 2, None]
    assert str(found[1].error) == "request 1 (id 'b'): busy"
    assert (found[1].error.status, found[1].meta["label"]) == (503, 2)
    with pytest.raises(EngineError, match=r"request 1 \(id 'b'\)"):
        list(server.generate_many(requests, progress=False))


@pytest.mark.parametrize("method", ["generate", "stream", "score", "yes_no", "sample"])
def test_a_question_by_keyword(method, probe_of):
    options = {
        "score": {"candidates": ["yes", "no"]},
        "yes_no": {},
        "sample": {"n": 2, "max_new_tokens": 1},
    }.get(method, {"max_new_tokens": 1})
    found = getattr(probe_of("internvl"), method)(question="Hi", image=picture(), **options)
    result = {"stream": lambda: [*found] and found.result, "sample": lambda: found.results[0]}.get(
        method, lambda: found
    )()
    assert result.meta["question"] == "Hi"
