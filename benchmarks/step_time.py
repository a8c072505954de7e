"""A training step (forward, backward, AdamW) of converted layers and models beside their dense originals."""

import argparse
from collections.abc import Callable

import timm
import torch
from rounds import interleave, print_ratios
from torch import nn

import reparam
from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_weight import ShiftOptions
from reparam.ops.ste import round_to_grid


def step_of(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """One step that minimises the mean square of the output."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6)
    model.train()

    def step() -> None:
        optimiser.zero_grad()
        model(x).square().mean().backward()
        optimiser.step()

    return step


def time_layers(*, batch: int, rounds: int) -> None:
    """The four linear layers of DeiT-Tiny on `batch` images of 197 tokens."""
    variants = {
        "q": ShiftOptions(),
        "q, 8-bit activations": ShiftOptions(activation_bits=8),
        "ps": ShiftOptions(parameterisation="ps"),
    }
    for inputs, outputs in ((192, 576), (192, 192), (192, 768), (768, 192)):
        dense, x = nn.Linear(inputs, outputs), torch.randn(batch, 197, inputs, requires_grad=True)
        sides = {"dense": step_of(dense, x)}
        for name, options in variants.items():
            layer = ShiftLinear(dense.weight.detach().clone(), dense.bias.detach().clone(), options)
            sides[f"shift_linear {name}"] = step_of(layer, x)
        print_ratios(f"{inputs} -> {outputs}, {batch} x 197 tokens", interleave(sides, rounds=rounds), baseline="dense")


def time_rounding(*, batch: int, rounds: int) -> None:
    """Rounding an activation to 8 bits, forward and backward: torch's fake quantiser and ours."""
    x, step = torch.randn(batch, 197, 768, requires_grad=True), torch.tensor(0.0625)
    zero, gradient = torch.zeros((), dtype=torch.int32), torch.randn(batch, 197, 768)
    sides = {
        "torch": lambda: torch.fake_quantize_per_tensor_affine(x, step, zero, -128, 127).backward(gradient),
        "reparam": lambda: round_to_grid(x, step, largest=127).backward(gradient),
    }
    print_ratios(f"8-bit rounding of {batch} x 197 x 768", interleave(sides, rounds=rounds), baseline="torch")


def time_model(*, batch: int, rounds: int) -> None:
    """DeiT-Tiny at 224 pixels, dense and converted."""
    torch.manual_seed(0)
    sides = {"dense": step_of(timm.create_model("deit_tiny_patch16_224"), torch.randn(batch, 3, 224, 224))}
    for recipe in ("shiftaddvit", "deepshift-q"):
        converted = reparam.convert("deit_tiny", recipe, weights="none").model
        sides[recipe] = step_of(converted, torch.randn(batch, 3, 224, 224))
    print_ratios(f"DeiT-Tiny, {batch} images", interleave(sides, rounds=rounds, warmup=1), baseline="dense")


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    time_layers(batch=arguments.batch, rounds=6 * arguments.rounds)
    time_rounding(batch=arguments.batch, rounds=6 * arguments.rounds)
    time_model(batch=arguments.batch, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
