"""Small converted models with every operator that a program must be able to hold."""

import torch
from torch import nn

from reparam.exporting.base import Sample
from reparam.ops.shift_layer import ShiftLayer
from tests.pico import ATTENTION, KEEP_HEAD, LINEAR, MLP, cnn, convert, images, recipe, vit

PREPARATION = {"mean": [0.25, 0.5, 0.75], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "crop_pct": 1.0}
SAMPLE = Sample(images=images(9, seed=3), words="drawn", preparation=PREPARATION)


def converted_vit() -> nn.Module:
    """Binary attention with its convolution, 4-bit shift layers of 8-bit activations, mixtures of 5-bit ones."""
    within = {"match": {"kind": "linear", "within": "attention"}, "operator": "shift_linear"}
    layers = {**within, "options": {"bits": 4, "activation_bits": 8}}
    return _shaken(convert(vit(), recipe([ATTENTION], [KEEP_HEAD, layers, MLP])))


def converted_cnn() -> nn.Module:
    """A stem of adders, and a shift convolution whose 16-bit activations are rounded downwards."""
    floor = {"bits": 4, "activation_bits": 16, "activation_rounding": "floor"}
    adders = {"match": {"path": "0"}, "operator": "adder_conv2d"}
    rest = {"match": {"kind": "conv2d"}, "operator": "shift_conv2d", "options": floor}
    return _shaken(convert(cnn(), recipe([adders, rest])))


def converted_mlp() -> nn.Module:
    """Two 5-bit shift layers: the fastest to export."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8), nn.ReLU(), nn.Linear(8, 3))
    return convert(layers.eval(), recipe([LINEAR])).eval()


def _shaken(model: nn.Module) -> nn.Module:
    """Parameters without symmetry: a router that sends tokens both ways, a convolution that does something."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def shift_layers(model: nn.Module) -> dict[str, ShiftLayer]:
    return {path: module for path, module in model.named_modules() if isinstance(module, ShiftLayer)}
