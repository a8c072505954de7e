"""What formats share that hold a whole program: options, the way from a model to a checked file, sizes."""

import shutil
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.export import ExportedProgram

from reparam.atomic import atomic_file, check_file
from reparam.errors import CheckpointError, ExportError
from reparam.exporting.base import Exported, ExportedPart, ExportFormat, ExportOptions, Sample
from reparam.exporting.engine_check import Engine, check_engines
from reparam.exporting.forms import Dialect, ExportedWeight, exportable_copy
from reparam.exporting.program import exported_program

_NAMED = 5


class ProgramOptions(ExportOptions):
    """Options of formats that hold a program."""

    dynamic_batch: bool = Field(True, description="Take batches of any size, or of one.")
    batch_size: int | None = Field(None, ge=1, description="The one size of a fixed batch; 1 by default.")
    tolerance: float = Field(1e-2, ge=0, description="Largest relative error of the file's outputs.")

    @model_validator(mode="after")
    def _size_is_fixed(self) -> "ProgramOptions":
        if self.dynamic_batch and self.batch_size is not None:
            raise ValueError("a file that takes any batch has no batch size; add dynamic_batch = false (--fixed-batch)")
        return self

    @property
    def fixed_batch(self) -> int | None:
        """The one batch size, or None for any."""
        return None if self.dynamic_batch else self.batch_size or 1


class ProgramFormat(ExportFormat):
    """A file with the model's operations and weights, which is run before it is left behind."""

    is_checked = True
    suffix: ClassVar[str]

    def refuse_place(self, out: Path) -> None:
        """Takes a new file, or one of the same suffix, which is replaced."""
        if out.suffix.lower() != self.suffix:
            raise CheckpointError(f"{out}: wanted a name that ends with {self.suffix}. Choose another with --out.")
        check_file(out)

    def write(
        self,
        model: nn.Module,
        out: Path,
        options: Any,
        *,
        extra: Mapping[str, Any],
        sample: Sample | None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> Exported:
        """Exports, checks in every engine that is here, and moves the file into place."""
        assert sample is not None
        _want_ready(model)
        self.want_packages()
        dialect = self.dialect(options)
        tell("tracing the model")
        copied, weights = exportable_copy(model, dialect)
        program = exported_program(copied, sample.images.shape[1:], batch_size=options.fixed_batch)
        with tempfile.TemporaryDirectory(prefix="reparam-") as folder:
            draft = Path(folder) / f"model{self.suffix}"
            tell(f"making the {self.suffix} file")
            self.save(program, draft, options, sample)
            checks = check_engines(model, self.engines(draft, options), sample, tolerance=options.tolerance, tell=tell)
            with atomic_file(out) as target:
                shutil.copyfile(draft, target)
        return Exported(
            format=self.name,
            out=str(out),
            file_bytes=out.stat().st_size,
            parts=tuple(_parts(weights)),
            notes=tuple(_notes(weights, dialect)),
            checks=checks,
        )

    def want_packages(self) -> None:
        """Raises ExportError where a package is missing, with the line that installs it."""

    @abstractmethod
    def dialect(self, options: Any) -> Dialect:
        """How integers are written; raises ExportError for options that cannot be met."""

    @abstractmethod
    def save(self, program: ExportedProgram, path: Path, options: Any, sample: Sample) -> None:
        """Writes the file with a note on how images are prepared; raises ExportError where it cannot be written."""

    @abstractmethod
    def engines(self, path: Path, options: Any) -> Iterator[Engine]:
        """What runs such a file, present or not."""


def _want_ready(model: nn.Module) -> None:
    if model.training:
        raise ExportError(f"this {type(model).__name__} is in training mode; call its eval() first")
    strange = {
        f"{tensor.dtype} on {tensor.device}".removeprefix("torch.")
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.is_floating_point() and (tensor.dtype, tensor.device.type) != (torch.float32, "cpu")
    }
    if strange:
        raise ExportError(
            f"wanted a model in float32 on the CPU, got {', '.join(sorted(strange))}; give model.float().cpu()"
        )


def _parts(weights: Iterable[ExportedWeight]) -> Iterator[ExportedPart]:
    by_form: dict[str, list[int]] = {}
    for weight in weights:
        by_form.setdefault(weight.form, []).append(weight.numbers)
    for form, numbers in sorted(by_form.items()):
        yield ExportedPart(
            kind="shift weights",
            form=form,
            tensors=len(numbers),
            before=sum(numbers) * torch.float32.itemsize,
            after=sum(numbers) * getattr(torch, form).itemsize,
        )


def _notes(weights: Iterable[ExportedWeight], dialect: Dialect) -> Iterator[str]:
    wide = [weight.path for weight in weights if weight.form == "float32"]
    if wide:
        more = f" and {len(wide) - _NAMED} more" if len(wide) > _NAMED else ""
        bits = 8 * dialect.widest.itemsize
        yield (
            f"weights that need more than {bits} bits, exact in float32: {', '.join(wide[:_NAMED])}{more}"
            f"{dialect.advice}"
        )
