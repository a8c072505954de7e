"""How images are prepared for a model, as the note that an exported file carries: JSON under one key."""

import json
from collections.abc import Mapping
from typing import Any

#: Of ONNX's metadata and of the extra files of a `.pt2`.
KEY = "reparam.images"
_KNOWN = ("mean", "std", "interpolation", "crop_pct", "crop_mode")


def write_preparation(data: Mapping[str, Any]) -> str:
    """Writes timm's keys (mean, std, interpolation, crop_pct, crop_mode); others are left out."""
    return json.dumps({key: data[key] for key in _KNOWN if key in data})


def read_preparation(text: str | None) -> dict[str, Any]:
    """Reads a note; one that is missing or was not written here says nothing."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return {key: found[key] for key in _KNOWN if key in found} if isinstance(found, dict) else {}
