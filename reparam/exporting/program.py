"""A model as a program of `torch.export`, for any batch size or for one."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from reparam.errors import ExportError, first_line

#: Not one, which torch would take as special.
_TRACED = 2


def exported_program(model: nn.Module, image: Sequence[int], *, batch_size: int | None) -> ExportedProgram:
    """Exports an inference-only model.

    Args:
        image: (channels, height, width) of one.
        batch_size: the one to export for; None for any.
    Raises:
        ExportError: torch.export refuses the model, or cannot leave its batch size open.
    """
    try:
        return _program(model, image, batch_size)
    except Exception as error:  # whatever a model does that torch.export has no words for
        reason = first_line(error)
        if batch_size is None and _takes_one_size(model, image):
            raise ExportError(
                f"the model's code fixes its batch size while it runs, so the file cannot take any: {reason}. Export "
                "it for one size: --fixed-batch --batch-size 1"
            ) from error
        raise ExportError(
            f"torch.export refuses the model: {reason}. A forward that decides by values of its input cannot be "
            "exported"
        ) from error


def _program(model: nn.Module, image: Sequence[int], batch_size: int | None) -> ExportedProgram:
    batch = torch.zeros(batch_size or _TRACED, *image)
    dynamic: tuple[dict[int, Dim], ...] | None = None if batch_size else ({0: Dim.DYNAMIC},)
    with torch.no_grad():
        return torch.export.export(model, (batch,), dynamic_shapes=dynamic)


def _takes_one_size(model: nn.Module, image: Sequence[int]) -> bool:
    try:
        _program(model, image, _TRACED)
    except Exception:  # the first refusal is the one to tell
        return False
    return True
