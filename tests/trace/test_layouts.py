"""What a function makes of meta tensors is worked out once, and is what torch makes of them."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.trace import probe as probe_module
from reparam.trace.layouts import run
from reparam.trace.probe import probe


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


IMAGES = meta(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
TOKENS = meta(2, 5, 8)
CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "broadcast": (Tensor.mul, (TOKENS, meta(5, 1)), {}),
    "transposed": (torch.add, (TOKENS.mT, meta(2, 8, 5)), {}),
    "a number from the left": (Tensor.__rsub__, (TOKENS, 1), {}),
    "whole numbers": (torch.add, (meta(3, dtype=torch.int64), 1), {}),
    "whole numbers and a fraction": (torch.add, (meta(3, dtype=torch.int64), 1.0), {}),
    "whole numbers and a truth": (torch.add, (meta(3, dtype=torch.int64), True), {}),
    "types together": (torch.mul, (meta(3, dtype=torch.bfloat16), meta(3)), {}),
    "comparison": (Tensor.__lt__, (TOKENS, 0.5), {}),
    "axes in a list": (torch.mean, (TOKENS, [0, 1]), {"keepdim": True}),
    "another type": (torch.sum, (TOKENS, -1), {"dtype": torch.float64}),
    "product": (Tensor.__matmul__, (TOKENS, TOKENS.mT), {}),
    "softmax": (F.softmax, (TOKENS,), {"dim": -1}),
    "linear": (F.linear, (TOKENS, nn.Parameter(meta(3, 8)), None), {}),
    "layer norm": (F.layer_norm, (TOKENS, (8,), meta(8), meta(8), 1e-6), {}),
    "batch norm": (F.batch_norm, (IMAGES, meta(4), meta(4)), {"training": False}),
    "convolution": (F.conv2d, (IMAGES, meta(6, 2, 3, 3), None, (2, 2), 1, 1, 2), {}),
    "attention": (F.scaled_dot_product_attention, (meta(2, 3, 5, 4), meta(2, 3, 7, 4), meta(2, 3, 7, 6)), {}),
    "pooling": (F.adaptive_avg_pool2d, (IMAGES, 1), {}),
}


def layout(tensor: Tensor) -> tuple[Any, ...]:
    return type(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


@torch.no_grad()
@pytest.mark.parametrize("name", CALLS)
def test_a_remembered_layout_is_torchs(name: str) -> None:
    function, args, kwargs = CALLS[name]
    first, again = run(function, args, kwargs), run(function, args, kwargs)
    assert layout(first) == layout(again) == layout(function(*args, **kwargs))
    assert first is not again


@torch.no_grad()
def test_what_writes_into_its_argument_returns_it() -> None:
    x, out = meta(2, 4), meta(2, 4)
    assert run(F.relu, (x,), {"inplace": True}) is x
    assert run(torch.add, (x, x), {"out": out}) is out


@torch.no_grad()
def test_tensors_with_values_keep_them() -> None:
    assert run(torch.add, (torch.ones(2), 2), {}).tolist() == [3, 3]
    assert run(torch.add, (torch.ones(()), 2), {}).item() == 3


def test_gradients_are_followed_where_they_are_on() -> None:
    assert run(torch.mul, (meta(2).requires_grad_(), 2), {}).requires_grad


@torch.no_grad()
def test_what_torch_refuses_is_refused_each_time() -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError):
            run(torch.matmul, (meta(2, 3), meta(2, 3)), {})


@torch.no_grad()
def test_the_default_type_counts() -> None:
    x = meta(3, dtype=torch.int64)
    assert run(torch.div, (x, 2), {}).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert run(torch.div, (x, 2), {}).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_convnext2"])
@pytest.mark.parametrize("training", [False, True])
def test_a_trace_is_what_it_would_be_without_remembering(
    name: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = timm.create_model(name), meta(2, 3, 160, 160)
    remembered = probe(model, x, training=training)
    monkeypatch.setattr(probe_module, "run", lambda function, args, kwargs: function(*args, **kwargs))
    plain = probe(model, x, training=training)
    assert [(op.name, op.inputs, op.outputs, op.stack) for op in remembered.ops] == [
        (op.name, op.inputs, op.outputs, op.stack) for op in plain.ops
    ]
    assert [layout(tensor) for tensor in remembered.tensors] == [layout(tensor) for tensor in plain.tensors]
