"""Every formula against the expression that defines its function, written out and counted operation by operation."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.cost.formulas import count_op
from reparam.trace.probe import probe


class Runs(nn.Module):
    """Runs one function on its input."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def counted(function: Callable[[Tensor], Any], x: Tensor | None = None) -> Counter[str]:
    """Arithmetic of a function of x (2, 4, 6, 6), by verb."""
    x = torch.rand(2, 4, 6, 6) if x is None else x
    total = Counter[str]()
    for op in probe(Runs(function), x).ops:
        count = count_op(op)
        assert count is not None, op.name
        total.update({key.partition(".")[0]: n for key, n in count.as_dict().items()})
    return total


N, ROWS = 2 * 4 * 6 * 6, 2 * 4 * 6
ONES = torch.ones(6)


@pytest.mark.parametrize(
    ("function", "written_out"),
    [
        (F.gelu, lambda x: x * 0.5 * (torch.erf(x * 0.7) + 1)),
        (F.silu, lambda x: _silu(x)),
        (torch.sigmoid, lambda x: _sigmoid(x)),
        (torch.tanh, lambda x: _tanh(x)),
        (lambda x: F.gelu(x, approximate="tanh"), lambda x: x * 0.5 * (_tanh((x * x * x * 0.04 + x) * 0.8) + 1)),
        (F.mish, lambda x: x * _tanh(_softplus(x))),
        (F.softplus, lambda x: _softplus(x)),
        (F.hardsigmoid, lambda x: (x * (1 / 6) + 0.5).clamp(0, 1)),
        (F.hardswish, lambda x: x * (x * (1 / 6) + 0.5).clamp(0, 1)),
        (F.relu6, lambda x: x.clamp(0, 6)),
        (lambda x: F.normalize(x, dim=-1), lambda x: x / (x * x).sum(-1, keepdim=True).sqrt().clamp(min=1e-6)),
        (lambda x: torch.addcmul(x, x, x, value=0.5), lambda x: x + x * x * 0.5),
        (lambda x: torch.lerp(x, 2 * x, 0.5), lambda x: x + (2 * x - x) * 0.5),
        (lambda x: x**3, lambda x: x * x * x),
        (lambda x: x**0.5, torch.sqrt),
        (lambda x: x / 3, lambda x: x * (1 / 3)),
        (lambda x: x.rsqrt(), lambda x: x.sqrt().reciprocal()),
        (lambda x: F.softmax(x, -1), lambda x: _softmax(x)),
        (lambda x: F.log_softmax(x, -1), lambda x: _log_softmax(x)),
        (lambda x: F.layer_norm(x, (6,), ONES, ONES), lambda x: _layer_norm(x) * ONES + ONES),
        (lambda x: F.layer_norm(x, (6,)), lambda x: _layer_norm(x)),
        (lambda x: F.rms_norm(x, (6,), ONES), lambda x: _rms_norm(x) * ONES),
        (lambda x: F.group_norm(x, 2), lambda x: _layer_norm(x.view(2, 2, 72)).view_as(x)),
        (lambda x: F.instance_norm(x), lambda x: _layer_norm(x.view(2, 4, 36)).view_as(x)),
        (
            lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4), torch.ones(4), torch.zeros(4)),
            lambda x: x * torch.ones(4, 1, 1) + torch.ones(4, 1, 1),
        ),
    ],
)
def test_a_function_costs_what_its_expression_costs(
    function: Callable[[Tensor], Tensor], written_out: Callable[[Tensor], Tensor]
) -> None:
    assert counted(function) == counted(written_out)


def _sigmoid(x: Tensor) -> Tensor:
    return (torch.exp(-x) + 1).reciprocal()


def _silu(x: Tensor) -> Tensor:
    return x * _sigmoid(x)


def _tanh(x: Tensor) -> Tensor:
    return 1 - 2 / (torch.exp(x * 2) + 1)


def _softplus(x: Tensor) -> Tensor:
    return torch.log(torch.exp(x) + 1)


def _softmax(x: Tensor) -> Tensor:
    e = torch.exp(x - x.amax(-1, keepdim=True))
    return e / e.sum(-1, keepdim=True)


def _log_softmax(x: Tensor) -> Tensor:
    centred = x - x.amax(-1, keepdim=True)
    return centred - torch.log(torch.exp(centred).sum(-1, keepdim=True))


def _layer_norm(x: Tensor) -> Tensor:
    centred = x - x.sum(-1, keepdim=True) * 0.1
    return centred * ((centred * centred).sum(-1, keepdim=True) * 0.1 + 1e-6).sqrt().reciprocal()


def _rms_norm(x: Tensor) -> Tensor:
    return x * ((x * x).sum(-1, keepdim=True) * 0.1 + 1e-6).sqrt().reciprocal()


@pytest.mark.parametrize(
    ("function", "operations"),
    [
        (lambda x: F.relu(x), {"cmp": N}),
        (lambda x: x.clamp(min=0), {"cmp": N}),
        (lambda x: x.clamp(0, 1), {"cmp": 2 * N}),
        (lambda x: F.leaky_relu(x), {"cmp": N, "mul": N}),
        (lambda x: F.elu(x), {"cmp": N, "exp": N, "add": N, "mul": N}),
        (lambda x: F.glu(x, 1), {"mul": N // 2, "exp": N // 2, "add": N // 2, "div": N // 2}),
        (lambda x: -x.abs(), {"abs": N}),
        (lambda x: 2 / x, {"div": N}),
        (lambda x: x / x, {"div": N}),
        (lambda x: x**1.5, {"exp": N}),
        (lambda x: 2**x, {"exp": N}),
        (lambda x: x.mean(-1), {"add": N, "mul": ROWS}),
        (lambda x: x.sum((1, 2)), {"add": N}),
        (lambda x: x.amax(-1), {"cmp": N}),
        (lambda x: torch.maximum(x, x), {"cmp": N}),
        (lambda x: x.max(), {"cmp": N}),
        (lambda x: x.max(x), {"cmp": N}),
        (lambda x: x.var(-1), {"add": 3 * N, "mul": N + 2 * ROWS}),
        (lambda x: x.std(-1), {"add": 3 * N, "mul": N + 2 * ROWS, "sqrt": ROWS}),
        (lambda x: torch.linalg.vector_norm(x, dim=-1), {"add": N, "mul": N, "sqrt": ROWS}),
        (lambda x: F.avg_pool2d(x, 3), {"add": 2 * 4 * 4 * 9, "mul": 2 * 4 * 4}),
        (lambda x: F.max_pool2d(x, (2, 3)), {"cmp": 2 * 4 * 6 * 6}),
        (lambda x: F.max_pool2d(x, 3, stride=1), {"cmp": 2 * 4 * 16 * 9}),
        (lambda x: F.adaptive_avg_pool2d(x, 1), {"add": N, "mul": 2 * 4}),
        (lambda x: F.interpolate(x, scale_factor=2.0), {}),
        (lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), {"mul": 16 * N, "add": 16 * N}),
        (lambda x: F.conv2d(x, torch.ones(8, 2, 3, 3), ONES[:1].expand(8), groups=2), {"mul": 4608, "add": 4608 + 256}),
        (lambda x: F.conv_transpose2d(x, torch.ones(4, 5, 2, 2), stride=2), {"mul": N * 20, "add": N * 20}),
        (lambda x: F.conv1d(x[:, 0], torch.ones(3, 6, 1)), {"mul": 2 * 3 * 6 * 6, "add": 2 * 3 * 6 * 6}),
        (lambda x: x @ torch.ones(6), {"mul": N, "add": N}),
        (lambda x: torch.addmm(x[0, 0], x[0, 0], x[0, 1]), {"mul": 216, "add": 216 + 36}),
        (lambda x: torch.outer(x[0, 0, 0], x[0, 0, 1]), {"mul": 36}),
        (lambda x: x.permute(0, 2, 3, 1).reshape(2, 36, 4).roll(1, 1).contiguous(), {}),
    ],
)  # fmt: skip
def test_a_function_costs_what_was_counted_by_hand(
    function: Callable[[Tensor], Tensor], operations: dict[str, int]
) -> None:
    assert counted(function) == operations


def test_fused_attention_costs_what_written_attention_costs_with_its_scale_and_mask() -> None:
    q, mask = torch.rand(2, 4, 6, 6), torch.rand(6, 6)
    fused = counted(lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=mask), q)
    written = counted(lambda x: _softmax(x @ x.mT * 0.4 + mask) @ x, q)
    assert fused == written


def test_an_lstm_costs_what_its_cells_cost() -> None:
    lstm = nn.LSTM(5, 7, batch_first=True, bidirectional=True)
    tokens, states = 2 * 3, 2 * 7
    products, biases = tokens * 2 * 4 * 7 * (5 + 7), tokens * 2 * 2 * 4 * 7
    sigmoids, tanhs = 3 * tokens * states, 2 * tokens * states
    assert counted(lambda x: lstm.to(x.device)(x)[0], torch.rand(2, 3, 5)) == {
        "mul": products + tanhs + 3 * tokens * states,
        "add": products + biases + sigmoids + 2 * tanhs + tokens * states,
        "exp": sigmoids + tanhs,
        "div": sigmoids + tanhs,
    }


def test_batch_norm_in_training_computes_its_statistics() -> None:
    trained = counted(lambda x: F.batch_norm(x, None, None, training=True))
    assert trained == {"mul": 2 * N + 2 * 4, "add": 3 * N + 4, "sqrt": 4, "div": 4}


def test_an_unknown_function_has_no_count() -> None:
    (op,) = [op for op in probe(Runs(torch.fft.fft2), torch.rand(2, 3)).ops if op.name == "fft_fft2"]
    assert count_op(op) is None
