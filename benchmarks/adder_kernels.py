"""An adder layer of 64 -> 64 channels, 3x3, on 32x32: as published, as ours, its parts, and a dense convolution."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rounds import Timing, interleave, print_ratios
from step_time import step_of
from torch import Tensor, nn
from torch.nn import functional as F

import reparam
from reparam.kernels import adder_compiled, adder_native, adder_reference
from reparam.kernels.geometry import Geometry
from reparam.ops.adder_function import _weight_gradient, adder_conv2d

CHANNELS, KERNEL, IMAGE = 64, 3, 32
#: Stride, padding, dilation, groups.
SIZES = ((1, 1), (1, 1), (1, 1), 1)
KERNELS = {"adder.cpp": adder_native, "adder_compiled": adder_compiled, "adder_reference": adder_reference}
LAST = torch.channels_last

Sides = dict[str, Callable[[], object]]


class PublishedAdder(torch.autograd.Function):
    """Y = -sum_k |W - X| of a weight (O, K) and patches (K, P), with gradients that hold every difference as well."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, patches: Tensor) -> Tensor:
        """Returns Y (O, P)."""
        ctx.save_for_backward(weight, patches)
        return -(weight.unsqueeze(2) - patches.unsqueeze(0)).abs().sum(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The surrogates, that of the weight with AdderNet's norm."""
        weight, patches = ctx.saved_tensors
        to_weight = ((patches.unsqueeze(0) - weight.unsqueeze(2)) * gradient.unsqueeze(1)).sum(2)
        to_weight = to_weight / to_weight.norm().clamp(min=1e-12) * weight.numel() ** 0.5 / 5
        to_patches = ((weight.unsqueeze(2) - patches.unsqueeze(0)).clamp(-1, 1) * gradient.unsqueeze(1)).sum(0)
        return to_weight, to_patches


def published(x: Tensor, weight: Tensor) -> Tensor:
    """Unfold, broadcast, absolute value, sum."""
    patches = F.unfold(x, KERNEL, padding=1).permute(1, 2, 0).flatten(1)
    y = PublishedAdder.apply(weight.flatten(1), patches)
    return y.view(len(weight), *x.shape[2:], len(x)).permute(3, 0, 1, 2)


def ours(x: Tensor, weight: Tensor) -> Tensor:
    """The operator that layers use."""
    return adder_conv2d(x, weight, padding=(1, 1))


def dense(x: Tensor, weight: Tensor) -> Tensor:
    """A convolution of the same size."""
    return F.conv2d(x, weight, padding=1)


def distances(patches: Tensor, weight: Tensor) -> Tensor:
    """Torch's own L1 distances of patches (B, P, K)."""
    return -torch.cdist(patches, weight.flatten(1), p=1.0)


def tensors(batch: int, *, image: int = IMAGE, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Returns x, a weight, and a gradient of the output, normally distributed."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, CHANNELS, image, image), (CHANNELS, CHANNELS, KERNEL, KERNEL), (batch, CHANNELS, image, image))
    x, weight, gradient = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    return x, weight, gradient


def step(forward: Callable[[Tensor, Tensor], Tensor], *given: Tensor) -> Callable[[], object]:
    """Forward and both gradients."""
    x, weight, gradient = (tensor.detach() for tensor in given)
    x.requires_grad_(), weight.requires_grad_()
    return lambda: torch.autograd.grad(forward(x, weight), (x, weight), gradient)


def steps(*given: Tensor) -> Sides:
    """Forward and both gradients of each form; the bare kernels with the weight gradient that all of ours share."""
    last = [tensor.contiguous(memory_format=LAST) for tensor in given]
    sides: Sides = {
        "adder_conv2d": step(ours, *given),
        "adder_conv2d, channels_last": step(ours, *last),
        "published": step(published, *given),
        "dense": step(dense, *given),
        "dense, channels_last": step(dense, *last),
    }
    x, weight, gradient = given
    for name in ("adder_compiled", "adder_reference"):
        forward, input_gradient = parts(KERNELS[name], *given)
        sides[name] = lambda forward=forward, input_gradient=input_gradient: (
            forward(),
            input_gradient(),
            _weight_gradient(gradient, x, weight, *SIZES, mask=False),
        )
    return sides


def parts(kernel: ModuleType, *given: Tensor) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Forward and input gradient of one backend, on channels-last tensors."""
    x, gradient = (tensor.permute(0, 2, 3, 1).contiguous() for tensor in (given[0], given[2]))
    geometry = Geometry.of(x, given[1], *SIZES)
    return (
        lambda: kernel.forward(x, given[1], geometry),
        lambda: kernel.input_gradient(gradient, x, given[1], geometry),
    )


def forwards(*given: Tensor) -> Sides:
    """Values alone."""
    x, weight, _ = given
    patches = F.unfold(x, KERNEL, padding=1).transpose(1, 2).contiguous()
    return {
        "adder_conv2d": lambda: ours(x, weight),
        "torch.cdist, patches given": lambda: distances(patches, weight),
        "torch.cdist, with F.unfold": lambda: distances(F.unfold(x, KERNEL, padding=1).transpose(1, 2), weight),
        "dense": lambda: dense(x, weight),
    }


def differences(batch: int) -> int:
    """Absolute differences of one forward, and clipped ones of one input gradient."""
    return batch * IMAGE**2 * CHANNELS**2 * KERNEL**2


def print_rates(title: str, timings: Mapping[str, Timing], *, batch: int) -> None:
    """Prints how many differences each side takes per second."""
    print(title)
    for name, timing in timings.items():
        median, low, high = (
            differences(batch) / milliseconds / 1e6 for milliseconds in (timing.median, timing.high, timing.low)
        )
        print(f"  {name:<44}{median:8.2f} G differences/s  (quartiles {low:.2f} to {high:.2f})")


def time_on_cpu(*, batch: int, rounds: int) -> None:
    """A step, the forward alone, and the rates of our kernels."""
    given, where = tensors(batch), f"batch {batch}, {rounds} rounds"
    timings = interleave(steps(*given), rounds=rounds, warmup=1)
    print_ratios(f"forward and both gradients, {where}", timings, baseline="adder_conv2d")
    rounds, where = 5 * rounds, f"batch {batch}, {5 * rounds} rounds"
    with torch.no_grad():
        timings = interleave(forwards(*given), rounds=rounds, warmup=1)
        print_ratios(f"forward, {where}", timings, baseline="adder_conv2d")
        for index, part in enumerate(("forward of the kernels", "input gradient of the kernels")):
            sides = {name: parts(kernel, *given)[index] for name, kernel in KERNELS.items()}
            print_rates(f"{part}, {where}", interleave(sides, rounds=rounds, warmup=1), batch=batch)


def print_memory(*, batch: int) -> None:
    """Each side's peak in a fresh process of its own, whose allocator gives freed tensors back at once."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    print(f"peak resident memory (VmHWM) of one step beyond its inputs, batch {batch}")
    for name in ("adder_conv2d", "published", "dense"):
        command = [sys.executable, __file__, "--memory-of", name, "--batch", str(batch)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        print(f"  {name:<44}{float(done.stdout):8.1f} MB")


def memory_of(name: str, *, batch: int) -> float:
    """Megabytes; `ru_maxrss` would start at the parent's peak, so the kernel's own mark is reset and read."""
    steps(*tensors(1, image=8))[name]()
    run = steps(*tensors(batch))[name]
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) * 1024 / 1e6


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def time_on_cuda(*, batch: int, rounds: int) -> None:
    """The forward beside the rate of float32 additions, and a training step of ResNet-20 for CIFAR."""
    device = torch.cuda.get_device_properties(0)
    x, weight, _ = (tensor.contiguous(memory_format=LAST) for tensor in tensors(batch, device="cuda"))
    print(f"{device.name}, TF32 in dense convolutions: {torch.backends.cudnn.allow_tf32}")
    with torch.no_grad():
        sides = {name: synchronised(lambda run=run: run(x, weight)) for name, run in (("ours", ours), ("dense", dense))}
        timings = interleave(sides, rounds=5 * rounds)
    print_ratios(f"forward, batch {batch}, {5 * rounds} rounds", timings, baseline="dense")
    print_rates("forward", {"ours": timings["ours"]}, batch=batch)
    # Two add-type instructions per difference, on 128 float32 lanes of each multiprocessor; clock_rate is in kHz.
    limit = device.multi_processor_count * 128 * device.clock_rate * 1e3
    needed = 2 * differences(batch) / limit * 1e3
    print(f"  {needed / timings['ours'].median:.0%} of the limit of {limit / 1e12:.1f} T additions/s")
    time_models("cuda", batch=256, rounds=rounds)


def time_models(device: str, *, batch: int, rounds: int) -> None:
    """A step of CIFAR's ResNet-20, dense and with adders."""
    sides: Sides = {}
    for name, recipe in (("dense", "none"), ("addernet", "addernet")):
        model: nn.Module = reparam.convert("cifar_resnet20", recipe, weights="none").model.to(device)
        run = step_of(model, torch.randn(batch, 3, 32, 32, device=device))
        sides[name] = synchronised(run) if device == "cuda" else run
    timings = interleave(sides, rounds=rounds, warmup=1)
    print_ratios(f"step of cifar_resnet20, batch {batch}, {rounds} rounds", timings, baseline="dense")


def synchronised(run: Callable[[], object]) -> Callable[[], object]:
    """The same, and waits for the device."""
    return lambda: (run(), torch.cuda.synchronize())


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--batch", type=int, nargs="+", help="4 and 16 on a CPU, 256 on a GPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", metavar="SIDE", help="print one side's peak memory in MB, and nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    batches = arguments.batch or ([256] if arguments.device == "cuda" else [4, 16])
    if arguments.memory_of:
        print(memory_of(arguments.memory_of, batch=batches[0]))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads; {CHANNELS} -> {CHANNELS} channels")
    for batch in batches:
        if arguments.device == "cuda":
            time_on_cuda(batch=batch, rounds=arguments.rounds)
        else:
            time_on_cpu(batch=batch, rounds=arguments.rounds)
            print_memory(batch=batch)


if __name__ == "__main__":
    main()
