"""A `.pt2` file as a model: what `torch.export.save` wrote, run on the CPU; its first output is taken as the logits."""

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from reparam.errors import ModelError, first_line
from reparam.logs import hushed
from reparam.models.model_file import ModelFile, refuse_no_file
from reparam.models.preparation import KEY, read_preparation


class Pt2Model(ModelFile):
    """The program of a file; `program` is it as a graph module, with the module that each node came from."""

    def __init__(self, program: ExportedProgram, *, where: str, preparation: Mapping[str, Any] | None = None) -> None:
        taken = _input_of(program, where=where)
        sides = [side if isinstance(side, int) else str(side) for side in taken.shape]
        super().__init__(where=where, sides=sides, preparation=preparation)
        if not taken.dtype.is_floating_point:
            raise ModelError(f"{where}: wanted an input of floats, got {taken.dtype}; export it with one")
        self._dtype = taken.dtype
        # Not a submodule: an exported module refuses `eval()` and `train()`, its mode is fixed.
        self._run = functools.partial(program.module())

    @property
    def program(self) -> torch.fx.GraphModule:
        """The graph that runs, weights included."""
        module: torch.fx.GraphModule = self._run.func  # type: ignore[assignment]
        return module

    def run(self, images: Tensor) -> Tensor | None:
        """As `ModelFile.run`."""
        return next(
            (leaf for leaf in pytree.tree_leaves(self.call(self._run, images)) if isinstance(leaf, Tensor)), None
        )

    def call(self, run: Any, images: Tensor) -> Any:
        """Returns what `run`, the program or an interpreter of it, answers for images.

        Raises:
            ModelError: it does not take these images.
        """
        try:
            with torch.no_grad():
                return run(images.to(self._dtype))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ModelError(f"{self.where}: torch cannot run it: {first_line(error)}") from error


def open_pt2(path: str | Path) -> Pt2Model:
    """Opens a file for the CPU.

    Raises:
        ModelError: the file is none of `torch.export`, or it does not take one batch of images.
    """
    refuse_no_file(path, where=str(path))
    try:
        notes = {KEY: ""}
        with hushed("torch.export", below=logging.CRITICAL):
            program = torch.export.load(path, extra_files=notes)
    except Exception as error:  # whatever unpacking bytes of any kind raises
        raise ModelError(
            f"{path}: torch cannot load it as an exported program: {first_line(error)}. Export it again, with this "
            "version of torch."
        ) from error
    return Pt2Model(program, where=str(path), preparation=read_preparation(notes[KEY]))


def _input_of(program: ExportedProgram, *, where: str) -> Tensor:
    names = program.graph_signature.user_inputs
    if len(names) != 1:
        raise ModelError(
            f"{where}: wanted a model with one input, a batch of images; it has {len(names)} "
            f"({', '.join(map(str, names))})"
        )
    node = next(node for node in program.graph.nodes if node.name == names[0])
    value: Tensor = node.meta["val"]
    return value
