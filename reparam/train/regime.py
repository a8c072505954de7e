"""Settings that change how the model itself runs while it trains, and the check that it takes the images at all."""

import torch
from timm.data import Mixup
from timm.layers import DropPath
from torch import nn

from reparam.errors import DataError, ModelError, OptionError
from reparam.modes import evaluating
from reparam.recipe.settings import TrainSettings


def apply_regime_(model: nn.Module, settings: TrainSettings) -> None:
    """Sets stochastic depth, gradient checkpointing and memory layout; raises OptionError for what the model lacks."""
    if settings.drop_path is not None:
        _set_drop_path_(model, settings.drop_path)
    if settings.grad_checkpointing:
        switch = getattr(model, "set_grad_checkpointing", None)
        if not callable(switch):
            raise OptionError(f"grad_checkpointing: {type(model).__name__} does not offer it; leave it out")
        switch(True)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)


def make_mixup(settings: TrainSettings, *, num_classes: int) -> Mixup | None:
    """Returns timm's Mixup and CutMix of a batch, which also smooths its labels, or None when both are off.

    Raises:
        OptionError: an odd batch, of which one image would have no partner.
    """
    if not settings.mixup and not settings.cutmix:
        return None
    if settings.batch_size % 2:
        raise OptionError(f"mixup and cutmix pair images: batch_size must be even, got {settings.batch_size}")
    return Mixup(
        mixup_alpha=settings.mixup,
        cutmix_alpha=settings.cutmix,
        label_smoothing=settings.smoothing,
        num_classes=num_classes,
    )


def count_outputs(model: nn.Module, input_size: tuple[int, int, int], *, device: torch.device) -> int:
    """Runs one blank image (1, C, H, W) and returns the number of logits, leaving the model's mode as it was.

    Raises:
        DataError: the model cannot take images of this size.
        ModelError: the result is not one row of logits.
    """
    size = "x".join(map(str, input_size))
    try:
        with evaluating(model), torch.no_grad():
            logits = model(torch.zeros(1, *input_size, device=device))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the model cannot take {size} images: {reason}. Make it for another size with --img-size and --in-chans."
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or logits.shape[1] < 1:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ModelError(f"the model must give logits (batch, classes) to be trained or evaluated; it gives {got}")
    return logits.shape[1]


def _set_drop_path_(model: nn.Module, rate: float) -> None:
    """Scales the rates of all paths so that the largest one is `rate`; their proportions stay."""
    paths = [module for module in model.modules() if isinstance(module, DropPath)]
    largest = max((path.drop_prob for path in paths), default=0.0)
    if largest:
        for path in paths:
            path.drop_prob *= rate / largest
    elif rate:
        raise OptionError(
            f"drop_path = {rate}: the model was built without stochastic depth; build it with "
            f"--model-kwargs drop_path_rate={rate}"
        )
