"""What a backend is: one file, one registered object that knows the inference-only form of each operator.

@backend("half", title="float16, for GPUs")
class Half(Backend):
    def form(self, module): ...
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from reparam.errors import BackendError
from reparam.registry import Registry

Experts = Literal["int8", "float32"]


class LoweredModule(nn.Module):
    """Base of the forms that stand in for an operator: no gradient, no training state, not to be saved."""


def lowered_path(model: nn.Module) -> str | None:
    """The path of the first module that is an inference-only form; None in a model that is not lowered."""
    return next((path for path, module in model.named_modules() if isinstance(module, LoweredModule)), None)


@dataclass(frozen=True, slots=True)
class LoweredLayer:
    """What became of one module: its path, the type it had, and its form in words."""

    path: str
    type: str
    form: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoweringSettings:
    """What backends are told beside the model.

    `ranges` holds the largest input magnitude that a calibration met, by module; without one, scales are dynamic: one
    power of two for each token or image. `experts` is the width of a mixture's multiply experts in an integer backend.
    """

    ranges: Mapping[nn.Module, Tensor] = field(default_factory=dict)
    experts: Experts = "int8"


class Backend(ABC):
    """Knows the inference-only form of each operator on one kind of machine.

    `reads_ranges`, `reads_experts`: whether `settings.ranges` and `settings.experts` change its forms.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    reads_ranges: ClassVar[bool] = False
    reads_experts: ClassVar[bool] = False

    def __init__(self, settings: LoweringSettings) -> None:
        self.settings = settings

    @abstractmethod
    def form(self, module: nn.Module) -> tuple[nn.Module, str] | None:
        """Returns the form of an operator (or of any other module) and what to call it; None leaves it as it is.

        Raises:
            BackendError: the operator cannot be had here; the message says why and what to do, without the path.
        """

    def refuse(self, device: torch.device) -> str | None:
        """Why the backend does not run on this device, in words, or None."""
        return None

    def finish_(self, model: nn.Module) -> None:  # noqa: B027  # nothing is left to do after most backends
        """What is done to the whole model once its modules have their forms."""


BACKENDS: Registry[type[Backend]] = Registry(
    "backend", package="reparam.lowering", group="reparam.backends", error=BackendError
)
BackendClass = TypeVar("BackendClass", bound=type[Backend])


def backend(name: str, *, title: str) -> Callable[[BackendClass], BackendClass]:
    """Registers a `Backend` subclass under `name`."""

    def register(cls: BackendClass) -> BackendClass:
        cls.name, cls.title = name, title
        return BACKENDS.register(name)(cls)

    return register
