"""The JSON Schema of the config, for editors."""

from typing import Any

from exporter.config import Config
from exporter.platforms import PLATFORMS


def schema() -> dict[str, Any]:
    """JSON Schema of the config, for editors: every secret ``x`` also as ``x_file``, each source by its platform."""
    out = Config.model_json_schema()
    definitions: dict[str, Any] = out.setdefault("$defs", {})
    variants = []
    for platform in PLATFORMS.values():
        own = platform.config.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(own.pop("$defs", {}))
        own["properties"]["platform"] = {"const": platform.name}
        definitions[f"source_{platform.name}"] = own
        variants.append({"$ref": f"#/$defs/source_{platform.name}"})
    definitions.pop("SourceConfig", None)
    out["properties"]["sources"]["additionalProperties"] = {"oneOf": variants}
    out["properties"]["sources"].pop("patternProperties", None)
    for definition in (out, *definitions.values()):
        _offer_files(definition)
    return out


def _offer_files(definition: dict[str, Any]) -> None:
    """Offer ``x_file`` beside every secret ``x``, and a list of files where a list of secrets may stand."""
    properties = definition.get("properties", {})
    for name, shape in list(properties.items()):
        if "additionalProperties" in shape or not _holds_secret(shape):
            continue
        file: dict[str, Any] = {"type": "string", "description": f"file that holds {name}"}
        if _may_be_list(shape):
            file = {"anyOf": [file, {"type": "array", "items": {"type": "string"}}]}
        properties[f"{name}_file"] = file
        if name in definition.get("required", []):
            definition["required"] = [key for key in definition["required"] if key != name]


def _holds_secret(shape: Any) -> bool:
    if isinstance(shape, dict):
        return shape.get("writeOnly") is True or any(_holds_secret(part) for part in shape.values())
    return isinstance(shape, list) and any(_holds_secret(part) for part in shape)


def _may_be_list(shape: dict[str, Any]) -> bool:
    return shape.get("type") == "array" or any(part.get("type") == "array" for part in shape.get("anyOf", []))
