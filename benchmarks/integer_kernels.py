"""Integer products at DeiT-Tiny's shapes, and an integer adder, beside float32, torch._int_mm and ONNX Runtime.

One thread, in its own CPU time: other work on the machine is not counted, though it shares the caches and the clock.
"""

import argparse
import ctypes
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rounds import Timing, interleave
from torch import Tensor
from torch.nn import functional as F

from reparam.kernels import adder_native
from reparam.kernels.geometry import Geometry
from reparam.kernels.integer_adder import integer_adder, pack_adder_weight
from reparam.kernels.integer_conv2d import integer_conv2d, pack_conv2d_weight
from reparam.kernels.integer_linear import integer_linear, integer_matmul, pack_weight
from reparam.kernels.native import _built

#: Rows, inputs and outputs: a batch of eight, an image, a few tokens, one token.
SHAPES = (
    (1576, 192, 576),
    (1576, 192, 768),
    (1576, 768, 192),
    (1576, 768, 3072),
    (1576, 3072, 768),
    (197, 192, 768),
    (8, 768, 3072),
    (1, 192, 768),
    (1, 768, 3072),
)
#: Keeps pack_weight to the layout of 16 bits.
WIDE = 32767
PRODUCTS_AT_ONCE = 16  # of vpmaddwd in 256 bits
DIFFERENCES_AT_ONCE = 32  # of vpsadbw

Sides = dict[str, Callable[[], object]]


def rates() -> tuple[float, ...] | None:
    """Of peak.cpp, in 1e9 a second; None without AVX2."""
    library = ctypes.CDLL(str(_built(Path(__file__).with_name("peak.cpp"), ())))
    if not hasattr(library, "rates"):
        return None
    found = (ctypes.c_double * 5)()
    library.rates(found)
    return tuple(found)


def products(rows: int, inputs: int, outputs: int) -> Sides:
    """The product of codes alone, the layer with rounding, scale and bias, and what others offer."""
    x, codes = torch.randn(rows, inputs), torch.randint(-128, 128, (rows, inputs), dtype=torch.int8)
    weight = torch.randint(-64, 65, (outputs, inputs), dtype=torch.int16)
    narrow, wide = pack_weight(weight), pack_weight(weight, largest=WIDE)
    scale, bias, dense = torch.rand(outputs), torch.rand(outputs), weight.float()
    sides: Sides = {
        "product, weights as int16": lambda: integer_matmul(codes, wide, outputs),
        "product, weights as int8": lambda: integer_matmul(codes, narrow, outputs),
        "layer, weights as int16": lambda: integer_linear(x, wide, scale, bias, None),
        "layer, weights as int8": lambda: integer_linear(x, narrow, scale, bias, None),
        "float32 F.linear": lambda: F.linear(x, dense, bias),
    }
    transposed = weight.to(torch.int8).T.contiguous()
    if rows * inputs * outputs < 1e9:  # it takes seconds beyond that without instructions for int8
        sides["torch._int_mm"] = lambda: torch._int_mm(codes, transposed)
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
        sides["ONNX Runtime MatMulInteger"] = onnx_product(codes, transposed)
    return sides


def onnx_product(codes: Tensor, weight: Tensor) -> Callable[[], object]:
    """With the weight as a constant, as its quantiser leaves it."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    shape = [len(codes), weight.shape[1]]
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, list(codes.shape))],
        [helper.make_tensor_value_info("y", TensorProto.INT32, shape)],
        [numpy_helper.from_array(weight.numpy(), "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {"a": (codes.to(torch.int16) + 128).to(torch.uint8).numpy()}
    return lambda: session.run(None, given)


def convolutions(batch: int, channels: int, image: int) -> Sides:
    """A 3x3 layer: adders and products of integers and of floats."""
    x = torch.randn(batch, channels, image, image).contiguous(memory_format=torch.channels_last)
    weight = torch.randint(-64, 65, (channels, channels, 3, 3), dtype=torch.int16)
    scale, bias, step = torch.rand(channels), torch.rand(channels), torch.tensor(2.0**-5)
    sizes = ((1, 1), (1, 1), (1, 1), 1)
    last, dense = x.permute(0, 2, 3, 1), weight.float().contiguous(memory_format=torch.channels_last)
    adders, products = pack_adder_weight(weight.to(torch.int8), groups=1), pack_conv2d_weight(weight, groups=1)
    geometry = Geometry.of(last, dense, *sizes)
    return {
        "integer adder": lambda: integer_adder(last, adders, scale, bias, step, (3, 3), *sizes),
        "float32 adder": lambda: adder_native.forward(last, dense, geometry),
        "integer convolution": lambda: integer_conv2d(x, products, scale, bias, step, (3, 3), *sizes),
        "float32 convolution": lambda: F.conv2d(x, dense, bias, padding=1),
    }


def show(title: str, timings: dict[str, Timing], *, operations: float, limit: float | None) -> None:
    """Prints rates in 1e9 operations a second, with quartiles, and their share of the limit."""
    print(title)
    for name, timing in timings.items():
        median, low, high = (operations / each / 1e6 for each in (timing.median, timing.high, timing.low))
        share = "" if limit is None else f"{median / limit:6.0%}"
        print(f"  {name:<32}{timing.median:9.3f} ms{median:8.1f}  ({low:.1f} to {high:.1f}){share}", flush=True)


def print_limits(found: tuple[float, ...] | None) -> tuple[float | None, float | None]:
    """Prints what registers alone allow; returns GOP/s of vpmaddwd and G differences/s of vpsadbw."""
    if found is None:
        return None, None
    clock, madd, madd_added, sad, sad_added = found
    operations = 2 * PRODUCTS_AT_ONCE
    print(f"clock {clock:.2f} GHz")
    print(
        f"vpmaddwd {madd / clock:.2f} a cycle: {operations * madd:.0f} GOP/s, with vpaddd {operations * madd_added:.0f}"
    )
    print(
        f"vpsadbw: {DIFFERENCES_AT_ONCE * sad:.0f} G differences/s, with vpaddd {DIFFERENCES_AT_ONCE * sad_added:.0f}"
    )
    return operations * madd, DIFFERENCES_AT_ONCE * sad


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    products_limit, differences_limit = print_limits(rates())
    timing = {"rounds": arguments.rounds, "warmup": 2, "clock": time.thread_time}
    with torch.inference_mode():
        for shape in SHAPES:
            timings = interleave(products(*shape), **timing)
            operations = 2.0 * shape[0] * shape[1] * shape[2]
            show("x".join(map(str, shape)) + ", GOP/s", timings, operations=operations, limit=products_limit)
        for batch, channels, image in ((4, 64, 32), (8, 256, 14)):
            timings = interleave(convolutions(batch, channels, image), **timing)
            terms = float(batch * image**2 * channels**2 * 9)
            title = f"{channels} -> {channels}, 3x3, {image}x{image}, batch {batch}"
            adders = {name: value for name, value in timings.items() if "adder" in name}
            show(f"{title}, G differences/s", adders, operations=terms, limit=differences_limit)
            others = {name: value for name, value in timings.items() if name not in adders}
            show(f"{title}, GOP/s", others, operations=2 * terms, limit=products_limit)


if __name__ == "__main__":
    main()
