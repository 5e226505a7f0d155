"""The part of JSON Schema (draft 2020-12) that the local API's bodies and queries need.

One table of schemas is both what a request is checked against and what `/v1/openapi.json` shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from mesh.core.errors import BadInput

Schema: TypeAlias = dict[str, Any]

_SHOWN_CHARS_MAX: Final = 60
_KINDS: Final = {
    "string": (str, "a text"),
    "integer": (int, "a whole number"),
    "boolean": (bool, "true or false"),
    "array": (list, "a list"),
    "object": (dict, "an object"),
}


def text(description: str, chars_max: int = 256) -> Schema:
    return {"type": "string", "minLength": 1, "maxLength": chars_max, "description": description}


def integer(description: str, least: int, most: int) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most, "description": description}


def boolean(description: str) -> Schema:
    return {"type": "boolean", "default": False, "description": description}


def array(items: Schema, items_max: int, description: str) -> Schema:
    return {"type": "array", "items": items, "maxItems": items_max, "description": description}


def mapping(values: Schema, description: str) -> Schema:
    """An object with keys of the caller's choice."""
    return {"type": "object", "additionalProperties": values, "description": description}


def record(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """An object with these properties and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def check(schema: Schema, value: object, what: str) -> None:
    """Raises BadInput, one line, unless `value` is what the schema says."""
    kind, words = _KINDS[schema["type"]]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BadInput(f"{what}: {_shown(value)}: give {words}")
    if isinstance(value, str):
        size = len(value)
        if not schema.get("minLength", 0) <= size <= schema.get("maxLength", size):
            raise BadInput(
                f"{what}: {_shown(value)}: {size} characters: give 1 to {schema['maxLength']}"
            )
    elif isinstance(value, int) and kind is int:
        if not schema["minimum"] <= value <= schema["maximum"]:
            raise BadInput(
                f"{what}: {_shown(value)}: give a number from {schema['minimum']} to"
                f" {schema['maximum']}"
            )
    elif isinstance(value, list):
        if len(value) > schema["maxItems"]:
            raise BadInput(f"{what}: {len(value)} entries: give at most {schema['maxItems']}")
        texts = _texts(schema["items"])
        needed = set(schema["items"].get("required", ()))
        for index, item in enumerate(value):
            if not (texts and _is_record_of(texts, needed, item)):
                check(schema["items"], item, f"{what}[{index}]")
    elif isinstance(value, dict):
        _check_object(schema, value, what)


def _texts(schema: Schema) -> dict[str, tuple[int, int]]:
    """The properties of an object that are texts, and how long each may be."""
    return {
        name: (inner.get("minLength", 0), inner["maxLength"])
        for name, inner in schema.get("properties", {}).items()
        if inner["type"] == "string" and "maxLength" in inner
    }


def _is_record_of(texts: Mapping[str, tuple[int, int]], needed: set[str], value: object) -> bool:
    """Whether a value is an object of such texts and nothing else, as most of thousands are. False
    says nothing: they are looked at properly then, which takes five times as long."""
    if type(value) is not dict or not needed <= value.keys():
        return False
    for name, item in value.items():
        bounds = texts.get(name)
        if bounds is None or type(item) is not str or not bounds[0] <= len(item) <= bounds[1]:
            return False
    return True


def _check_object(schema: Schema, value: Mapping[str, object], what: str) -> None:
    properties = schema.get("properties", {})
    others = schema["additionalProperties"]
    for name in schema.get("required", ()):
        if name not in value:
            raise BadInput(f"{what}: {name} is missing: give {', '.join(schema['required'])}")
    for name, item in value.items():
        inner = properties.get(name, others)
        if inner is False:
            known = ", ".join(properties) or "none"
            raise BadInput(f"{what}: {_shown(name)} is no field: there are {known}")
        check(inner, item, name if what == "body" else f"{what}.{name}")


def parse_query(properties: Mapping[str, Schema], pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """The parameters of a query string by the schemas of texts and booleans. Raises BadInput."""
    parsed: dict[str, Any] = {}
    for name, raw in pairs:
        schema = properties.get(name)
        if schema is None:
            known = ", ".join(properties) or "none"
            raise BadInput(f"query: {_shown(name)} is no parameter: there are {known}")
        if name in parsed:
            raise BadInput(f"query: {name} is given twice: give it once")
        value: object = raw
        if schema["type"] == "boolean":
            value = {"true": True, "false": False}.get(raw, raw)
        check(schema, value, name)
        parsed[name] = value
    return parsed


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN_CHARS_MAX else shown[: _SHOWN_CHARS_MAX - 1] + "…"
