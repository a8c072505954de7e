"""A forward that asks its values in Python is traced for the answers, and says so when they change."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reparam.graph.owner_swap import source_of, swap_forward
from reparam.graph.owner_trace import trace_owner
from reparam.trace.record import ModuleCall

Ask = Callable[[Tensor], object]


class Asks(nn.Module):
    """Multiplies by three where the answer is true."""

    def __init__(self, ask: Ask) -> None:
        super().__init__()
        self.layer, self.ask = nn.Linear(4, 4), ask

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (3 if self.ask(x) else 1)


class Scales(Asks):
    """Multiplies by the answer."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) * self.ask(x)
        return out


def traced(module: nn.Module, x: Tensor) -> nn.Module:
    """A copy that runs the forward that was written from the graph."""
    call = ModuleCall(path="", args=(x,), kwargs={}, inputs=(), outputs=(), first_op=0, end_op=0, is_training=False)
    graphs = trace_owner(module, call, "owner")
    swapped = copy.deepcopy(module)
    swap_forward(swapped, {(g.training, g.pattern): source_of(g.graph) for g in graphs.values()})
    return swapped


EXAMPLE = torch.randn(2, 6, 4)
WORDS = "was converted for a branch or size in which a value was"


@pytest.mark.parametrize(
    ("ask", "other"),
    [
        (lambda x: x.shape[0] > 2, (3, 6, 4)),
        (lambda x: x.size(0) == 2, (1, 6, 4)),
        (lambda x: len(x) == 2, (1, 6, 4)),
        (lambda x: x.shape[1] % 2, (2, 7, 4)),
        (lambda x: x.shape[-2:] == (6, 4), (2, 7, 4)),
        (lambda x: tuple(x.shape) == (2, 6, 4), (2, 7, 4)),
        (lambda x: x.shape[0] in (2, 5), (3, 6, 4)),
        (lambda x: x.shape[0] in {3, 5}, (3, 6, 4)),
        (lambda x: {3: True}.get(x.shape[0]), (3, 6, 4)),
        (lambda x: f"{x.shape[0]}" == "2", (3, 6, 4)),
        (lambda x: str(x.shape[1]) == "6", (2, 7, 4)),
        (lambda x: x.numel() > 50, (4, 6, 4)),
        (lambda x: x.dim() == 3, (6, 4)),
        (lambda x: len(x.shape) == 3, (6, 4)),
        (lambda x: x.dtype == torch.float64, "double"),
        (lambda x: x.is_floating_point() and x.element_size() == 8, "double"),
        (lambda x: sum(1 for _ in x), (3, 6, 4)),
        (lambda x: sum(1 for _ in x.unbind(1)), (2, 7, 4)),
        (lambda x: len(x.split(3, 1)) == 2, (2, 7, 4)),
        (lambda x: [*x.shape[:-1]][1:], (6, 4)),
        (lambda x: sum(1 for _ in range(x.shape[0])), (3, 6, 4)),
        (lambda x: int(x.shape[1] ** 0.5), (2, 9, 4)),
        (lambda x: max(x.shape[0], 3), (4, 6, 4)),
    ],
)  # fmt: skip
def test_an_answer_that_changes_is_noticed(ask: Ask, other: tuple[int, ...] | str) -> None:
    dense = Asks(ask).eval()
    module = traced(dense, EXAMPLE)
    assert torch.equal(module(EXAMPLE), dense(EXAMPLE))
    changed = EXAMPLE.double() if isinstance(other, str) else torch.randn(other)
    with pytest.raises(RuntimeError, match=f"the forward of Asks {WORDS}"):
        (module.double() if other == "double" else module)(changed)


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.shape[1],
        lambda x: x.shape[0] * 2 + x.size(1) // 2,
        lambda x: x.shape[1] ** 0.5,
        lambda x: x.shape[1] if x.dim() == 3 else 1,
    ],
)
def test_sizes_that_no_decision_read_stay_free(ask: Ask) -> None:
    dense = Scales(ask).eval()
    module = traced(dense, EXAMPLE)
    for shape in [(2, 6, 4), (1, 6, 4), (5, 11, 4)]:
        x = torch.randn(shape)
        assert torch.equal(module(x), dense(x))


class CachesByDevice(nn.Module):
    """Keeps its table in evaluation mode under the name of the device, as LeViT keeps its biases."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.cache = nn.Parameter(torch.randn(4)), {}

    def forward(self, x: Tensor) -> Tensor:
        key = str(x.device)
        if key not in self.cache or self.training:
            self.cache[key] = self.table * 2
        return x + self.cache[key]


def test_a_cache_by_device_is_no_decision() -> None:
    module = CachesByDevice().eval()
    assert torch.equal(traced(module, EXAMPLE)(EXAMPLE), module(EXAMPLE))


def test_unpacked_shapes_hold_for_another_batch_and_not_for_another_rank() -> None:
    class Unpacks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            *lead, tokens, width = x.shape
            return x.reshape(*lead, tokens * width)

    module = traced(Unpacks(), EXAMPLE)
    assert module(torch.randn(3, 5, 4)).shape == (3, 20)
    with pytest.raises(RuntimeError, match=WORDS):
        module(torch.randn(2, 3, 5, 4))


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda x: bool(x.sum() > 0), "it branches on the value of the tensor"),
        (lambda x: float(x.sum()), "it reads the value of the tensor"),
        (lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0]), "it makes a constant tensor"),
    ],
)
def test_values_of_tensors_cannot_be_asked(ask: Ask, words: str) -> None:
    with pytest.raises(Exception, match=words):
        traced(Asks(ask), EXAMPLE)


def test_a_forward_that_was_replaced_on_the_object_is_refused() -> None:
    module = Asks(lambda x: 1)
    module.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(Exception, match="its forward was replaced on the object"):
        traced(module, EXAMPLE)
