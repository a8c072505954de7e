"""Keeps torch's encoder off its fast path, which sees neither swapped modules nor swapped forwards."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


def keep_padding(model: nn.Module, part: nn.Module, undo: ExitStack) -> None:
    """Stops encoders around `part` from packing padded tokens into nested tensors; leaves in `undo` what undoes it."""
    for encoder in model.modules():
        if isinstance(encoder, nn.TransformerEncoder) and part in encoder.modules():
            undo.callback(setattr, encoder, "use_nested_tensor", encoder.use_nested_tensor)
            encoder.use_nested_tensor = False


def keep_layers(model: nn.Module, path: str, undo: ExitStack) -> None:
    """Lets an encoder layer that holds `path` call its layers: fused, it reads their weights and multiplies."""
    owner = model.get_submodule(path.rpartition(".")[0])
    if isinstance(owner, nn.TransformerEncoderLayer):
        undo.callback(setattr, owner, "activation_relu_or_gelu", owner.activation_relu_or_gelu)
        owner.activation_relu_or_gelu = 0  # for torch, an activation that it cannot fuse
        keep_padding(model, owner, undo)


@contextmanager
def slow_path() -> Iterator[None]:
    """While open, torch computes attention by its documented operations, not by the fused ones it has for inference."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
