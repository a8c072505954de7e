"""pt2: a program of `torch.export`, and with `compile` the code that AOTInductor makes of it, in one file."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch._inductor import aot_compile, aoti_load_package
from torch.export import ExportedProgram
from torch.export.pt2_archive._package import package_pt2

from reparam.compare.pt2_layers import record_pt2
from reparam.errors import ExportError, ModelError, first_line
from reparam.exporting.base import Sample, export_format
from reparam.exporting.engine_check import Engine
from reparam.exporting.forms import Dialect
from reparam.exporting.program_format import ProgramFormat, ProgramOptions
from reparam.kernels.native import find_compiler
from reparam.models.model_file import ModelFile
from reparam.models.preparation import KEY, write_preparation
from reparam.models.pt2_file import open_pt2

#: The name that readers look for in a package where none is given.
_MODEL = "model"


class Pt2Options(ProgramOptions):
    """Options of the pt2 format."""

    compile: bool = Field(False, description="Add code for this machine's CPU, made by AOTInductor.")


@export_format("pt2", place="model.pt2")
class Pt2Format(ProgramFormat):
    """One `.pt2` file: `torch.export.load` and, where it is compiled, `aoti_load_package` read it."""

    Options = Pt2Options
    suffix = ".pt2"

    def dialect(self, options: Pt2Options) -> Dialect:
        """Integers times their scales, in torch's operations."""
        return Dialect()

    def save(self, program: ExportedProgram, path: Path, options: Pt2Options, sample: Sample) -> None:
        """Packs the program, its code where asked for, and the note."""
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # lines of the source, with paths on this machine
        code = {_MODEL: _compiled(program, sample, options)} if options.compile else None
        note = {KEY: write_preparation(sample.preparation)}
        package_pt2(path, exported_programs={_MODEL: program}, aoti_files=code, extra_files=note)

    def engines(self, path: Path, options: Pt2Options) -> Iterator[Engine]:
        """Torch's interpreter of programs, and the compiled code where there is some."""
        version = torch.__version__.partition("+")[0]
        file = open_pt2(path)
        yield Engine(name=f"torch.export {version}", file=file, record=functools.partial(record_pt2, file))
        if options.compile:
            yield Engine(name=f"AOTInductor {version}", file=CompiledModel(path, like=file))


class CompiledModel(ModelFile):
    """The compiled code in a file."""

    def __init__(self, path: Path, *, like: ModelFile) -> None:
        super().__init__(where=str(path), sides=[like.batch_size or "any", *(side or "any" for side in like.image)])
        self._run = functools.partial(aoti_load_package(str(path)))

    def run(self, images: Tensor) -> Tensor | None:
        """As `ModelFile.run`."""
        try:
            with torch.no_grad():
                found: Tensor = self._run(images)
        except RuntimeError as error:
            raise ModelError(f"{self.where}: the compiled code cannot run: {first_line(error)}") from error
        return found


def _compiled(program: ExportedProgram, sample: Sample, options: Pt2Options) -> Any:
    if find_compiler() is None:
        raise ExportError("compiling needs a C++ compiler, and none was found; install g++, or leave --compile out")
    batch = sample.images[: options.fixed_batch or 2]
    filled = torch.cat([batch, batch.new_zeros((options.fixed_batch or 2) - len(batch), *batch.shape[1:])])
    try:
        return aot_compile(program.module(), (filled,), options={"aot_inductor.package": True})
    except Exception as error:  # whatever the compiler raises on an operation
        raise ExportError(f"AOTInductor cannot compile the model: {first_line(error)}; leave --compile out") from error
