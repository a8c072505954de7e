"""A calibration meets what every layer's own product will meet, however the model calls it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.lowering.ranges import input_ranges
from reparam.ops.moe import MoeMlp, MoeMlpOptions
from reparam.ops.moe_examples import moe_examples
from reparam.ops.routed_layer import RoutedLayer
from reparam.ops.routing import SHIFT, Router, Routing

EXAMPLES = {example.name: example for example in moe_examples() if example.refusal is None}


def mixture(name: str, **options: Any) -> tuple[MoeMlp, Tensor]:
    torch.manual_seed(0)
    example = EXAMPLES[name]
    made = MoeMlp.from_dense(copy.deepcopy(example.dense().eval()), example.site, MoeMlpOptions(**options))
    assert isinstance(made, MoeMlp)
    return made.eval(), example.inputs()[0]


def by_path(model: nn.Module, x: Tensor) -> dict[str, float]:
    paths = {module: path for path, module in model.named_modules()}
    return {paths[module]: float(largest) for module, largest in input_ranges(model, [x]).items()}


@pytest.mark.parametrize("name", ["gated", "depthwise"])
@pytest.mark.parametrize("dispatch", ["grouped", "masked", "auto"])
def test_each_expert_meets_its_own_tokens_in_every_dispatch(name: str, dispatch: str) -> None:
    model, x = mixture(name, dispatch=dispatch, router_init="normal")
    gathering, _ = mixture(name, dispatch="gather", router_init="normal")
    found = by_path(model, x)
    assert any("multiply" in path for path in found)
    assert any("shift" in path for path in found)
    assert found == by_path(gathering, x)
    options = {module.options.dispatch for module in model.modules() if isinstance(module, MoeMlp | RoutedLayer)}
    assert options == {dispatch}


def test_a_routed_1x1_convolution_meets_the_tokens_of_the_multiply_expert_though_it_is_never_called() -> None:
    model, x = mixture("batch-norm")
    routed = {path: module for path, module in model.named_modules() if isinstance(module, RoutedLayer)}
    met: dict[str, float] = {}

    def send_small_tokens_to_the_shift_expert(router: Router, args: tuple[Tensor], routing: Routing) -> Routing:
        size = args[0].abs().amax(dim=1)
        small = (size < size.median()).long() * SHIFT
        path = next(path for path, module in routed.items() if module.router is router)
        met[path] = float(size[small != SHIFT].max())
        return routing._replace(expert=small)

    for module in routed.values():
        module.router.register_forward_hook(send_small_tokens_to_the_shift_expert)
    found = by_path(model, x)
    assert len(routed) == 2
    for path in routed:
        assert found[f"{path}.multiply"] == pytest.approx(met[path])
        assert found[f"{path}.shift"] < met[path]


def test_a_layer_that_is_called_by_keyword_is_met_too() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(input=x)
            return out

    assert by_path(Named(), torch.tensor([[1.0, -7.0, 2.0, 3.0]])) == {"head": 7.0}
