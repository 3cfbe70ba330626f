"""JSON schema of GeoJSON objects accepted by QuPath 0.4 and later, and a reader that validates files against it."""

import json
from pathlib import Path
from typing import Any

import jsonschema

_CORNER = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
_RING = {"type": "array", "items": _CORNER, "minItems": 4}
_COLOUR = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}, "minItems": 3, "maxItems": 3}
_UUID = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
_FEATURE = {
    "type": "object",
    "required": ["type", "id", "geometry", "properties"],
    "additionalProperties": False,
    "properties": {
        "type": {"const": "Feature"},
        "id": {"type": "string", "pattern": _UUID},
        "geometry": {
            "type": "object",
            "required": ["type", "coordinates"],
            "additionalProperties": False,
            "properties": {
                "type": {"const": "Polygon"},
                "coordinates": {"type": "array", "items": _RING, "minItems": 1},
            },
        },
        "properties": {
            "type": "object",
            "required": ["objectType", "classification"],
            "additionalProperties": False,
            "properties": {
                "objectType": {"enum": ["annotation", "detection", "tile"]},
                "name": {"type": "string", "minLength": 1},
                "isLocked": {"type": "boolean"},
                "classification": {
                    "type": "object",
                    "required": ["name", "color"],  # QuPath rejects a class with a name but no colour
                    "additionalProperties": False,
                    "properties": {"name": {"type": "string", "pattern": r"^[^\n]*\S[^\n]*$"}, "color": _COLOUR},
                },
                "measurements": {"type": "object", "additionalProperties": {"type": "number"}},
            },
        },
    },
}
SCHEMA = {
    "type": "object",
    "required": ["type", "features"],
    "additionalProperties": False,
    "properties": {"type": {"const": "FeatureCollection"}, "features": {"type": "array", "items": _FEATURE}},
}


def features_for_qupath(path: Path) -> list[dict[str, Any]]:
    """Features of a file, after checking its schema, closed rings and unique ids."""
    collection = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    jsonschema.validate(collection, SCHEMA)
    features: list[dict[str, Any]] = collection["features"]
    for feature in features:
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
    ids = [feature["id"] for feature in features]
    assert len(set(ids)) == len(ids)
    return features


def _refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is not valid JSON")
