"""What an operator is: one file, one decorated class, and the conformance suite tests it from its own examples."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from pydantic import ConfigDict, ValidationError
from torch import Tensor, nn

from reparam.counts import OpCount
from reparam.errors import OptionError, RecipeError
from reparam.ops.site import Site
from reparam.recipe.schema import Frozen, Kind
from reparam.registry import Registry
from reparam.suggest import did_you_mean


class OperatorOptions(Frozen):
    """Base of every operator's options: frozen, every field validated, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A small dense module that an operator must take, or refuse in the given words.

    `dense` is the module to convert, `site` its description, `inputs` what its forward takes.
    """

    name: str
    site: Site
    dense: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    options: OperatorOptions
    refusal: str | None = None


class Operator(nn.Module, ABC):
    """A trainable, multiplication-reduced replacement of one dense module.

    Subclasses are final. Their state is parameters and buffers that round-trip through `state_dict`; `forward` mutates
    no parameter.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    source: ClassVar[str]
    Options: ClassVar[type[OperatorOptions]]
    #: Local names of parameters that weight decay would harm (exponents, signs, thresholds, routers).
    no_decay: ClassVar[tuple[str, ...]] = ()

    @classmethod
    @abstractmethod
    def refuse(cls, site: Site, dense: nn.Module, options: Any) -> str | None:
        """Returns why this operator cannot take the site, in words for the plan, or None when it can."""

    @classmethod
    def no_gain(cls, site: Site, options: Any) -> str | None:
        """Returns why nothing would be gained at a site that the operator could take, or None."""
        return None

    @classmethod
    def remark(cls, site: Site, options: Any) -> str | None:
        """Returns what the plan should say of this site beyond the operator's name and options, if anything."""
        return None

    def step_gradients(self) -> Mapping[str, float]:
        """Local names of parameters whose gradient gets an L2 norm before each step, and eta: eta * sqrt(elements)."""
        return {}

    def fit_(self, dense: nn.Module, x: Tensor, target: Tensor, *, steps: int) -> float:
        """Fits the operator to what the dense module made of a batch, before training; not every operator can be.

        Args:
            dense: the module that the operator replaced.
            x: what the operator is given, when everything before it is fitted.
            target: what `dense` made of the same images.
            steps: of an optimiser, where one is used.
        Returns:
            Mean correlation of the output channels with the target's.
        """
        raise NotImplementedError

    @classmethod
    @abstractmethod
    def from_dense(cls, dense: nn.Module, site: Site, options: Any) -> "Operator":
        """Builds the operator from the dense module, whose weights it carries over."""

    @abstractmethod
    def op_count(self, *input_shapes: tuple[int, ...]) -> OpCount:
        """Operations of one forward on inputs of these shapes, batch included.

        Every operator reads its inputs and weights once and writes its outputs, which needs no declaration; reads and
        writes here are those of maps inside it.
        """

    def weight_words(self) -> dict[str, int]:
        """Words of its own parameters, without its children's, as a device would hold them: {"i5": n, "f32": m}."""
        return {"f32": sum(parameter.numel() for parameter in self.parameters(recurse=False))}

    def declares(self, path: str) -> bool:
        """Whether `op_count` covers what the module at this path inside the operator runs; "" is the operator."""
        return True

    @classmethod
    @abstractmethod
    def examples(cls) -> list[Example]:
        """Small dense modules that the operator accepts, and ones it refuses with the words of the refusal."""


OPERATORS: Registry[type[Operator]] = Registry(
    "operator", package="reparam.ops", group="reparam.ops", error=RecipeError
)
OperatorClass = TypeVar("OperatorClass", bound=type[Operator])


def operator(name: str, *, kind: Kind, source: str) -> Callable[[OperatorClass], OperatorClass]:
    """Registers an `Operator` subclass under `name` for sites of `kind`; `source` cites where its maths comes from."""

    def register(cls: OperatorClass) -> OperatorClass:
        cls.name, cls.kind, cls.source = name, kind, source
        return OPERATORS.register(name)(cls)

    return register


def parse_options(cls: type[Operator], options: dict[str, Any], *, where: str) -> OperatorOptions:
    """Validates a recipe's option table against the operator's; raises OptionError with every fault at once."""
    try:
        return cls.Options.model_validate(options)
    except ValidationError as error:
        raise OptionError("\n".join(_fault(cls, fault, where=where) for fault in error.errors())) from None


def _fault(cls: type[Operator], fault: Any, *, where: str) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = cls.Options.model_fields
        hint = did_you_mean(key, known) or f" Known: {', '.join(known)}."
        return f'{where}.options: {cls.name} has no option "{key}".{hint}'
    return f"{where}.options.{key}: {fault['msg']}, got {fault['input']!r}"
