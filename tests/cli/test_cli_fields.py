"""``vlmprobe probe --fields``: the fields of a JSON answer, as a table and as data."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from json_answers import answer
from typer.testing import CliRunner

from vlmprobe.analysis import fields
from vlmprobe.cli import app
from vlmprobe.cli import probe as command

RESULT = answer('{"', "total", '": ', "12", ".", "5", ', "', "shop", '": "', "Moon", '."}')


@pytest.fixture
def run(monkeypatch):
    """The command, with a model that gives the same answer to every question."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(*options, result=RESULT, code=0):
        opened = SimpleNamespace(generate=lambda *_, **__: result)
        monkeypatch.setattr(command, "open_model", lambda *_, **__: opened)
        done = CliRunner().invoke(app, ["probe", "demo", "none", "What is on it?", *options])
        assert done.exit_code == code, (done.output, done.exception)
        return done

    return call


def test_the_table_of_fields(run):
    text = run("--fields").stdout
    after = text[text.index("Fields:") :]
    assert "total" in after
    assert "Moon." in after
    assert "at most" in after
    assert "Fields:" not in run().stdout


def test_the_data_of_fields(run):
    document = json.loads(run("--fields", "--json").stdout)
    found = fields(RESULT)
    assert [each["path"] for each in document["fields"]] == ["total", "shop"]
    assert document["fields"][0]["probability"] == pytest.approx(found.probability[0])
    assert document["fields"][1]["probability"] is None
    assert document["text"] == RESULT.text
    assert document["problems"] == []
    assert "fields" not in json.loads(run("--json").stdout)


def test_a_schema_tells_types_and_what_is_missing(run, tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps({"required": ["date"], "properties": {"total": {"type": "string"}}}))
    document = json.loads(run("--fields", "--json", "--schema", str(file)).stdout)
    told = {each["path"]: each["notes"] for each in document["fields"]}
    assert told == {"total": "number, not string", "shop": "not in the schema", "date": "missing"}
    assert "missing" in run("--fields", "--schema", str(file)).stdout


def test_an_answer_without_json_is_shown_before_the_error(run, tmp_path):
    plain = answer("It is", " nine")
    done = run("--fields", "--save", str(tmp_path / "kept"), result=plain, code=1)
    assert "It is nine" in done.stdout
    assert "no JSON object or array" in done.stderr
    assert (tmp_path / "kept" / "result.json").is_file()


def test_mistakes_are_told_before_a_model_is_loaded(run, tmp_path):
    file = tmp_path / "schema.json"
    file.write_text("[1]")
    assert "add --fields" in " ".join(run("--schema", str(file), code=2).stderr.split())
    assert "no JSON Schema" in " ".join(run("--fields", "--schema", str(file), code=2).stderr.split())
    file.write_text("{")
    assert "is not JSON" in run("--fields", "--schema", str(file), code=2).stderr
    assert "add --schema FILE" in " ".join(run("--constrain", code=2).stderr.split())


SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}


def test_a_schema_can_bind_the_answer(tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    ask = ["probe", "demo", "none", "Which digit?", "--json", "--max-new-tokens", "80"]
    done = CliRunner().invoke(app, [*ask, "--schema", str(file), "--constrain", "--fields"])
    document = json.loads(done.stdout)
    assert json.loads(document["text"])["n"] in (1, 2)
    assert document["meta"]["constraint"] == {"schema": SCHEMA}
    assert document["fields"][0]["path"] == "n"
    grammar = tmp_path / "grammar.gbnf"
    grammar.write_text('root ::= "one" | "two"')
    document = json.loads(CliRunner().invoke(app, [*ask, "--grammar", str(grammar)]).stdout)
    assert document["text"] in ("one", "two")
    assert 0 < document["output"][0]["mass_allowed"] < 1
