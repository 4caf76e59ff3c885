"""Types, missing and surplus fields by a JSON Schema or a Pydantic model."""

from __future__ import annotations

import numpy as np
import pytest
from json_answers import answer

from vlmprobe.analysis import fields
from vlmprobe.errors import ResultError

RECEIPT = {
    "type": "object",
    "required": ["shop", "total", "items"],
    "properties": {
        "shop": {"type": "string"},
        "total": {"type": "number"},
        "currency": {"enum": ["EUR", "CHF"]},
        "paid": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        "items": {"type": "array", "items": {"$ref": "#/$defs/Item"}},
    },
    "$defs": {
        "Item": {
            "type": "object",
            "required": ["name", "count"],
            "properties": {"name": {"type": "string"}, "count": {"type": "integer"}},
        }
    },
}


def told(text, schema=RECEIPT):
    found = fields(answer(text), schema=schema)
    return {path: (kind, note) for path, kind, note in zip(found.paths, found.kinds, found.notes, strict=True)}


def test_types_missing_and_surplus_fields():
    text = '{"total": "12", "currency": "USD", "paid": null, "tip": 1, "items": [{"name": "tea", "count": 1.5}, {}]}'
    assert told(text) == {
        "total": ("string", "string, not number"),
        "currency": ("string", "not one of the allowed values"),
        "paid": ("null", ""),
        "tip": ("number", "not in the schema"),
        "items[0].name": ("string", ""),
        "items[0].count": ("number", "number, not integer"),
        "items[1]": ("object", ""),
        "shop": ("missing", "missing"),
        "items[1].name": ("missing", "missing"),
        "items[1].count": ("missing", "missing"),
    }


def test_what_fits_is_not_told():
    text = '{"shop": "", "total": 12, "currency": "EUR", "items": [{"name": "tea", "count": 2.0}]}'
    assert not any(note for _, note in told(text).values())
    found = fields(answer(text), schema=RECEIPT)
    assert found.expected == ["string", "number", "string", "string", "integer"]
    assert fields(answer('{"paid": 1}'), "paid", RECEIPT).expected == ["boolean or null"]
    assert np.isnan(fields(answer("{}"), schema=RECEIPT).at_least[1:]).all()


def test_a_pydantic_model_is_taken_by_its_schema():
    class Model:
        @staticmethod
        def model_json_schema():
            return RECEIPT

    assert told('{"shop": 1, "total": 1, "items": []}', Model)["shop"] == ("number", "number, not string")
    with pytest.raises(TypeError, match="Pydantic"):
        fields(answer("{}"), schema="schema.json")


def test_pydantic_itself():
    pydantic = pytest.importorskip("pydantic")
    item = pydantic.create_model("Item", name=(str, ...), price=(float | None, None))
    receipt = pydantic.create_model("Receipt", total=(float, ...), items=(list[item], ...))
    found = told('{"items": [{"name": 3, "price": null, "x": 1}]}', receipt)
    assert found == {
        "items[0].name": ("number", "number, not string"),
        "items[0].price": ("null", ""),
        "items[0].x": ("number", "not in the schema"),
        "total": ("missing", "missing"),
    }


@pytest.mark.parametrize(
    ("schema", "text", "notes"),
    [
        ({}, '{"a": [1]}', [""]),
        ({"type": "object"}, '{"a": [1]}', [""]),
        ({"type": "array"}, '{"a": 1}', ["not in the schema"]),
        ({"properties": {"a": {"type": "object", "properties": {}}}}, '{"a": 1}', ["number, not object"]),
        ({"properties": {"a": {"type": "string"}}}, '{"a": {"b": 1}}', ["not in the schema"]),
        ({"properties": {}, "additionalProperties": {"type": "string"}}, '{"a": 1}', ["number, not string"]),
        ({"properties": {}, "additionalProperties": False}, '{"a": 1}', ["not in the schema"]),
        ({"prefixItems": [{"type": "string"}], "items": False}, "[1, 2]", ["number, not string", "not in the schema"]),
        ({"allOf": [{"required": ["a", "b"]}, {"properties": {"a": {"const": 1}}}]}, '{"a": 1.0}', ["", "missing"]),
        ({"oneOf": [{"required": ["a", "b"]}, {"required": ["b", "c"]}]}, '{"a": 1}', ["", "missing"]),
        ({"items": {"type": ["integer", "null"]}}, "[1, null, 1.5]", ["", "", "number, not integer or null"]),
        ({"properties": {"a": {"enum": [True, "x"]}}}, '{"a": 1}', ["number, not boolean or string"]),
    ],
)
def test_what_schemas_may_say(schema, text, notes):
    assert fields(answer(text), schema=schema).notes == notes


def test_a_schema_of_trees_is_followed_as_deep_as_the_answer():
    tree = {"$ref": "#/$defs/T", "$defs": {"T": {"type": "object", "properties": {"t": {"$ref": "#/$defs/T"}}}}}
    assert told('{"t": {"t": {"t": {}, "x": 1}}}', tree) == {
        "t.t.t": ("object", ""),
        "t.t.x": ("number", "not in the schema"),
    }


@pytest.mark.parametrize(
    ("reference", "message"),
    [("#/$defs/B", "has no '#/\\$defs/B'"), ("other.json", "leads out of it"), ("#/$defs/A", "back to itself")],
)
def test_references_that_lead_nowhere(reference, message):
    schema = {"properties": {"a": {"$ref": reference}}, "$defs": {"A": {"allOf": [{"$ref": "#/$defs/A"}]}}}
    with pytest.raises(ResultError, match=message):
        fields(answer('{"a": 1}'), schema=schema)


def test_a_schema_that_spreads_without_end_is_bounded():
    defs = {f"L{level}": {"anyOf": [{"$ref": f"#/$defs/L{level + 1}"}] * 2} for level in range(40)}
    schema = {"properties": {"a": {"$ref": "#/$defs/L0"}}, "$defs": {**defs, "L40": {"type": "string"}}}
    assert len(fields(answer('{"a": 1}'), schema=schema)) == 1
