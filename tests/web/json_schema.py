"""The part of JSON Schema that docs/browser.schema.json uses."""

import re
from collections.abc import Iterator
from typing import Any

TYPES = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float)}
KNOWN = {"$ref", "const", "enum", "type", "minimum", "pattern", "minItems", "items", "prefixItems", "description"}
KNOWN |= {"required", "properties", "additionalProperties", "$schema", "$defs", "title"}


def violations(value: Any, schema: Any, root: Any, where: str = "$") -> Iterator[str]:
    """What of the value is against the schema."""
    assert set(schema) <= KNOWN, f"{where}: {set(schema) - KNOWN} are not checked"
    if "$ref" in schema:
        target = root
        for key in schema["$ref"].removeprefix("#/").split("/"):
            target = target[key]
        yield from violations(value, target, root, where)
    if "const" in schema and value != schema["const"]:
        yield f"{where}: {value!r} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is not one of {schema['enum']}"
    if "type" in schema and (not isinstance(value, TYPES[schema["type"]]) or isinstance(value, bool)):
        yield f"{where}: {value!r} is no {schema['type']}"
        return
    if "minimum" in schema and value < schema["minimum"]:
        yield f"{where}: {value} is below {schema['minimum']}"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{where}: {value!r} does not match {schema['pattern']}"
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield f"{where}: has {len(value)} items"
        if "items" in schema:
            for index, item in enumerate(value):
                yield from violations(item, schema["items"], root, f"{where}[{index}]")
        for index, (item, own) in enumerate(zip(value, schema.get("prefixItems", ()), strict=False)):
            yield from violations(item, own, root, f"{where}[{index}]")
    if isinstance(value, dict):
        for key in set(schema.get("required", ())) - set(value):
            yield f"{where}: lacks {key}"
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        for key, item in value.items():
            if key in properties:
                yield from violations(item, properties[key], root, f"{where}.{key}")
            elif others is False:
                yield f"{where}: has {key}"
            else:
                yield from violations(item, others, root, f"{where}.{key}")
