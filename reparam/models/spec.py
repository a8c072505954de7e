"""ModelSpec: all that is needed to build a dense model again, as JSON-able data without tensors."""

import json
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import nn

Source: TypeAlias = Literal["timm", "reparam", "file", "local-dir", "hf-hub", "module"]
#: Stands before the architecture's name in the config.json of a converted model: timm must say "unknown model" rather
#: than load, say, shift weights into dense layers of the same name.
CONVERTED_PREFIX = "reparam_"
_STAMP = "_reparam_spec"


class ModelSpec(BaseModel):
    """Where a model comes from and the arguments that build it.

    `kwargs`, `data` and `pretrained_cfg` are held as they read back from JSON (tuples become lists), so a spec equals
    its own copy out of a checkpoint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Source = Field(description="Who knows how to build it; 'module' means only its owner does.")
    name: str = Field(description="timm architecture without tag, 'path/file.py:factory', or the qualified class name.")
    kwargs: dict[str, Any] = Field({}, description="Arguments of the builder.")
    input_size: tuple[int, int, int] | None = Field(None, description="Channels, height and width of one image.")
    data: dict[str, Any] = Field({}, description="Preprocessing: mean, std, interpolation, crop_pct, crop_mode.")
    pretrained_cfg: dict[str, Any] = Field({}, description="timm's record of the pretrained weights.")

    @field_validator("kwargs", "data", "pretrained_cfg", mode="before")
    @classmethod
    def _as_json(cls, value: Any) -> Any:
        try:
            return json.loads(json.dumps(value))
        except TypeError as error:
            raise ValueError(str(error)) from None

    def prepared(self, preparation: Mapping[str, Any]) -> "ModelSpec":
        """The spec of a model whose images are prepared so; keys are those of `data`."""
        cfg = self.pretrained_cfg and {**self.pretrained_cfg, **preparation}
        return ModelSpec(**{**self.model_dump(), "data": {**self.data, **preparation}, "pretrained_cfg": cfg})


def stamp(model: nn.Module, spec: ModelSpec) -> None:
    """Notes on `model` the spec that built it; the note rides along in copies, not in the state dict."""
    vars(model)[_STAMP] = spec


def stamped(model: nn.Module) -> ModelSpec | None:
    """The spec that built `model`, which it may have outgrown since."""
    spec = vars(model).get(_STAMP)
    return spec if isinstance(spec, ModelSpec) else None
