"""Adder kernels on a GPU: each form and tile against float64, then its speed, beside torch.compile and cuDNN."""

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from reparam.kernels import adder_compiled, adder_nvrtc, adder_reference, adder_triton
from reparam.kernels.geometry import Geometry

#: Batch, image, channels read, channels written, kernel, stride.
Shape = tuple[int, int, int, int, int, int]
Candidates = dict[str, tuple[Callable[..., Tensor] | None, Callable[..., Tensor] | None]]

TARGET: Shape = (256, 32, 64, 64, 3, 1)
#: CIFAR's ResNet-20.
RESNET: tuple[Shape, ...] = (
    (128, 32, 16, 16, 3, 1),
    (128, 32, 16, 32, 3, 2),
    (128, 16, 32, 32, 3, 1),
    (128, 16, 32, 64, 3, 2),
    (128, 8, 64, 64, 3, 1),
    (128, 16, 32, 64, 1, 2),
)
#: x (B, H, W, C), weight (O, C / groups, KH, KW), stride, padding, dilation, groups.
AWKWARD = (
    ((3, 7, 9, 19), (37, 19, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((2, 9, 8, 20), (72, 20, 3, 3), (2, 2), (1, 1), (1, 1), 1),
    ((2, 8, 9, 36), (66, 18, 3, 2), (2, 3), (1, 0), (1, 1), 2),
    ((2, 11, 9, 16), (12, 4, 4, 3), (4, 2), (1, 2), (2, 3), 4),
    ((5, 8, 8, 64), (64, 64, 1, 1), (2, 2), (0, 0), (1, 1), 1),
    ((2, 9, 9, 3), (5, 3, 1, 2), (3, 3), (0, 0), (1, 1), 1),
    ((2, 6, 5, 7), (7, 1, 3, 3), (1, 1), (1, 1), (1, 1), 7),
)


def hand_written(written: int, read: int) -> Candidates:
    """Forward and input gradient of all tiles of the fitting widths."""
    found: Candidates = {}
    for tile in fitting(adder_nvrtc.FORWARD_TILES, written):
        found[f"nvrtc {label(tile)}"] = (partial(adder_nvrtc.forward, tile=tile), None)
    for tile in fitting(adder_nvrtc.GRADIENT_TILES, read):
        name = f"nvrtc {label(tile)}"
        forward, _ = found.get(name, (None, None))
        found[name] = (forward, partial(adder_nvrtc.input_gradient, tile=tile))
    return found


def prepare(device: torch.device) -> None:
    """Compiles all tiles at once, in threads; what fails is told where it is used."""
    wanted = [
        (device, is_forward, tile, vector)
        for is_forward, tiles in ((True, adder_nvrtc.FORWARD_TILES), (False, adder_nvrtc.GRADIENT_TILES))
        for width, fitted in tiles.items()
        for tile in fitted
        for vector in ((4, 1) if width == 64 else (4,))
    ]
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(adder_nvrtc._kernel, *each) for each in wanted]:
            done.exception()


def fitting(tiles: dict[int, tuple], channels: int) -> tuple:
    """Of the narrowest width that takes all channels."""
    return tiles[next((most for most in tiles if channels <= most), max(tiles))]


def label(tile: adder_nvrtc.Tile) -> str:
    """Block, thread, stages."""
    return f"{tile.pixels}x{tile.channels}x{tile.depth} t{tile.rows}x{tile.columns} s{tile.stages}"


def check() -> None:
    """Each candidate's largest error of all awkward shapes."""
    generator = torch.Generator().manual_seed(0)
    worst: dict[str, list[float | str]] = {}
    for index, (image, kernel, *sizes) in enumerate(AWKWARD):
        x, weight = torch.randn(image, generator=generator), torch.randn(kernel, generator=generator)
        geometry = Geometry.of(x, weight, *sizes)
        gradient = torch.randn(geometry.output_shape, generator=generator)
        wanted = (
            adder_reference.forward(x.double(), weight.double(), geometry),
            adder_reference.input_gradient(gradient.double(), x.double(), weight.double(), geometry),
        )
        scales = (wanted[0].abs().clamp(min=1), torch.ones_like(wanted[1]))
        own = [tensor.cuda() for tensor in (x, weight, gradient)]
        # Of copies of single floats, only the widest tiles are compiled.
        widths = (16, 32, 64) if kernel[0] % 4 == kernel[1] % 4 == image[3] % 4 == 0 else (64,)
        runs_of = {name: runs for width in widths for name, runs in hand_written(width, width).items()}
        runs_of["nvrtc chosen"] = adder_nvrtc.forward, adder_nvrtc.input_gradient
        if index == 1:  # Triton compiles for seconds
            runs_of["triton"] = adder_triton.forward, adder_triton.input_gradient
        for name, runs in runs_of.items():
            given = ((own[0], own[1], geometry), (own[2], own[0], own[1], geometry))
            for part, run in enumerate(runs):
                if run is None:
                    continue
                key = f"{name} {('forward', 'gradient')[part]}"
                try:
                    got = run(*given[part]).cpu().double()
                    error = ((got - wanted[part]).abs() / scales[part]).max().item()
                    limit = 3e-6 if part == 0 else 3e-4
                    error = error if error <= limit else f"FAIL {error:.1e} on {image} {kernel} {sizes}"
                except Exception as problem:
                    error = f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}"
                worst.setdefault(key, []).append(error)
    for key, errors in worst.items():
        failures = [error for error in errors if isinstance(error, str)]
        numbers = [error for error in errors if not isinstance(error, str)]
        print(f"  {key:<40}", f"{max(numbers, default=0):.1e} of {len(numbers)}", *failures[:1])


def measure(shape: Shape, sides: Candidates, limit: float) -> None:
    """A row per candidate: milliseconds and rate of forward and gradient."""
    batch, image, read, written, kernel, stride = shape
    out = image // stride
    sizes = ((stride, stride), (kernel // 2, kernel // 2), (1, 1), 1)
    rounds = 3  # of different inputs
    x = [torch.randn(batch, image, image, read, device="cuda") for _ in range(rounds)]
    gradient = [torch.randn(batch, out, out, written, device="cuda") for _ in range(rounds)]
    weight = torch.randn(written, read, kernel, kernel, device="cuda")
    geometry = Geometry.of(x[0], weight, *sizes)
    differences = batch * out**2 * written * read * kernel**2
    print(
        f"batch {batch}, {image}x{image}, {read} -> {written}, {kernel}x{kernel} s{stride}: {differences / 1e9:.2f} G"
    )
    for name, (forward, backward) in sides.items():
        cells = [
            cell(lambda i, run=forward: run(x[i % rounds], weight, geometry), forward, differences, limit),
            cell(lambda i, run=backward: run(gradient[i % rounds], x[i % rounds], weight, geometry), backward,
                 differences, limit),
        ]  # fmt: skip
        print(f"  {name:<24}", *cells, flush=True)
    images = [tensor.permute(0, 3, 1, 2) for tensor in x]
    last = weight.contiguous(memory_format=torch.channels_last)
    for has_tf32 in (False, True):
        torch.backends.cudnn.allow_tf32 = has_tf32
        run = partial(F.conv2d, weight=last, stride=stride, padding=kernel // 2)
        name = f"dense, TF32 {'on' if has_tf32 else 'off'}"
        print(f"  {name:<24}", cell(lambda i, run=run: run(images[i % rounds]), run, differences, limit), flush=True)


def cell(call: Callable[[int], object], run: object, differences: int, limit: float) -> str:
    """Milliseconds, G differences a second, and the share of the limit; or what went wrong."""
    if run is None:
        return f"{'-':>26}"
    try:
        milliseconds = median(call)
    except Exception as problem:
        return f"{type(problem).__name__}: {' '.join(str(problem).split())[:120]}"
    rate = differences / milliseconds / 1e6
    return f"{milliseconds:8.4f} ms {rate:7.0f} {200 * rate * 1e9 / limit:5.1f}%"


def median(call: Callable[[int], object], repeats: int = 20) -> float:
    """Milliseconds on the device; a long wait ahead of the calls hides how fast Python issues them."""
    for index in range(5):
        call(index)
    torch.cuda.synchronize()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    torch.cuda._sleep(20_000_000)
    for index, (begin, end) in enumerate(events):
        begin.record()
        call(index)
        end.record()
    torch.cuda.synchronize()
    times = sorted(begin.elapsed_time(end) for begin, end in events)
    return times[repeats // 2]


def additions(device: torch.device) -> tuple[float, str]:
    """Float32 additions a second: 128 lanes of each multiprocessor, at the clock under load if it can be read."""
    heat = torch.randn(8192, 8192, device=device)
    for _ in range(20):
        heat = torch.sin(heat @ heat)
    try:
        clock, origin = torch.cuda.clock_rate(device), "read under load"
    except Exception as problem:
        clock, origin = 1980, f"assumed, {type(problem).__name__}"
    torch.cuda.synchronize()
    return torch.cuda.get_device_properties(device).multi_processor_count * 128 * clock * 1e6, f"{clock} MHz {origin}"


def main() -> None:
    """Prints the errors, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the target and two of ResNet-20's shapes")
    parser.add_argument("--no-check", action="store_true", help="speed alone")
    arguments = parser.parse_args()
    begin = time.monotonic()
    device = torch.device("cuda", 0)
    limit, clock = additions(device)
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, triton {adder_triton.triton.__version__}")
    print(f"limit {limit / 1e12:.1f} T additions/s ({clock}), two per difference")
    print(f"NVRTC is available: {adder_nvrtc.is_available(device)}")
    prepare(device)
    print(f"  {time.monotonic() - begin:.0f} s, NVRTC's compilations done")
    if not arguments.no_check:
        print("largest errors, forward relative, gradient absolute")
        check()
        print(f"  {time.monotonic() - begin:.0f} s")
    print("forward, then input gradient: median of 20, G differences/s, share of the limit")
    inductor: Candidates = {"inductor": (adder_compiled.forward, adder_compiled.input_gradient)}
    chosen: Candidates = {"nvrtc chosen": (adder_nvrtc.forward, adder_nvrtc.input_gradient)}
    triton: Candidates = {"triton": (adder_triton.forward, adder_triton.input_gradient)}
    for shape in (TARGET, *(RESNET[::4] if arguments.quick else RESNET)):
        sides = chosen | hand_written(shape[3], shape[2])
        if shape == TARGET:
            sides = inductor | sides | triton
        elif not arguments.quick:
            sides = (inductor if shape in RESNET[::4] else {}) | sides | triton
        measure(shape, sides, limit)
        print(f"  {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
