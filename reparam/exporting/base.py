"""What an export format is: one file in this package, or an entry point in the group reparam.exports.

The verb opens the model, refuses a place that holds something else, and hands over; a format writes whole or nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import ConfigDict, ValidationError
from torch import Tensor, nn

from reparam.errors import ExportError, OptionError
from reparam.recipe.flags import flag
from reparam.recipe.schema import Frozen
from reparam.registry import Registry
from reparam.suggest import did_you_mean


class ExportOptions(Frozen):
    """Base of every format's options: frozen, every field validated, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ExportedPart(Frozen):
    """Tensors that are stored alike: how many there are, and their bytes in the model and in the file."""

    kind: str
    form: str
    tensors: int
    before: int
    after: int


class EngineCheck(Frozen):
    """How far the outputs of a file, in one engine, are from those of its model, on `images` images (`data` in words).

    `relative_error` is ||file - model|| / ||model||; `top1_agreement` the share of images, in percent, that get the
    same class. An engine that did not run says why in `skipped`, and has no figures.
    """

    engine: str
    skipped: str | None = None
    images: int = 0
    data: str = ""
    top1_agreement: float | None = None
    relative_error: float | None = None
    max_abs_error: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Images (N, C, H, W) that a file is checked on, what they are in words, and how the model wants them prepared.

    `preparation` has timm's keys: mean, std, interpolation, crop_pct, crop_mode.
    """

    images: Tensor
    words: str
    preparation: Mapping[str, Any]


class Exported(Frozen):
    """What an export wrote to `out`. `parts` is empty where a format does not store tensors one by one.

    `source_bytes` and `dense_bytes` are the sizes of the weights file that was exported and of its dense original's,
    where there are such files. `notes` are sentences about what is not as asked for, `checks` what the file passed.
    """

    format: str
    out: str
    file_bytes: int
    parts: tuple[ExportedPart, ...] = ()
    notes: tuple[str, ...] = ()
    checks: tuple[EngineCheck, ...] = ()
    source_bytes: int | None = None
    dense_bytes: int | None = None


class ExportFormat(ABC):
    """One way to write a model down. `place` is where in the folder of a run, unless the user says.

    `is_checked` says that the result is run, and compared with the model on images.
    """

    name: ClassVar[str]
    is_checked: ClassVar[bool] = False
    place: ClassVar[str]
    Options: ClassVar[type[ExportOptions]]

    @abstractmethod
    def refuse_place(self, out: Path) -> None:
        """Raises CheckpointError where `out` holds something that this format must not replace."""

    @abstractmethod
    def write(
        self,
        model: nn.Module,
        out: Path,
        options: Any,
        *,
        extra: Mapping[str, Any],
        sample: Sample | None,
        tell: Callable[[str], None],
    ) -> Exported:
        """Writes a model in eval mode to `out`, complete or not at all.

        Args:
            model: as `reparam.load` gives it, or the user's own; it must not be changed.
            out: where.
            options: an instance of `Options`.
            extra: the notes of the checkpoint that it came from, for formats that have a place for them.
            sample: what to check on, for formats that are checked.
            tell: hears what is being done, where that takes long.
        Raises:
            ExportError: the format cannot hold the model.
            CheckpointError: the file system refuses.
        """


FORMATS: Registry[type[ExportFormat]] = Registry(
    "export format", package="reparam.exporting", group="reparam.exports", error=ExportError
)
FormatClass = TypeVar("FormatClass", bound=type[ExportFormat])


def export_format(name: str, *, place: str) -> Callable[[FormatClass], FormatClass]:
    """Registers an `ExportFormat` under `name`."""

    def register(cls: FormatClass) -> FormatClass:
        cls.name, cls.place = name, place
        return FORMATS.register(name)(cls)

    return register


def parse_export_options(cls: type[ExportFormat], options: Mapping[str, Any]) -> ExportOptions:
    """Validates options against those of a format; raises OptionError with every fault at once."""
    try:
        return cls.Options.model_validate(dict(options))
    except ValidationError as error:
        raise OptionError("\n".join(_fault(cls, fault) for fault in error.errors())) from None


def _fault(cls: type[ExportFormat], fault: Any) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = cls.Options.model_fields
        flags = ", ".join(f"{name} ({flag(name, True)[0]})" for name in known)
        hint = did_you_mean(key, known) or (f" Known: {flags}." if known else "")
        return f'format {cls.name} has no option "{key}".{hint}'
    if not key:  # a fault of several together
        return f"format {cls.name}: {fault['msg'].removeprefix('Value error, ')}"
    return f"format {cls.name}, option {key}: {fault['msg']}, got {fault['input']!r}"
