from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.errors import ModelError
from reparam.trace.probe import probe
from tests.pico import cnn, images, token_net, vit


class Two(nn.Module):
    """Calls one layer twice, writes into its result, and reads a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(self.fc(x) + self.shift)
        y[:, 0] = 0.0
        y.mul_(2.0)
        return F.relu(y)


def test_operations_are_kept_in_order_with_the_modules_around_them() -> None:
    trace = probe(Two(), torch.zeros(2, 4))
    assert [(op.name, op.stack) for op in trace.ops] == [
        ("linear", ("", "fc")),
        ("add", ("",)),
        ("linear", ("", "fc")),
        ("setitem", ("",)),
        ("mul", ("",)),
        ("relu", ("",)),
    ]
    assert [call.path for call in trace.calls] == ["fc", "fc", ""]


def test_a_tensor_written_in_place_is_a_new_value_that_depends_on_the_old() -> None:
    trace = probe(Two(), torch.zeros(2, 4))
    values = [op.output.number for op in trace.ops]
    assert len(set(values)) == len(values)
    for earlier, later in zip(trace.ops, trace.ops[1:], strict=False):
        assert earlier.output.number in {ref.number for ref in later.inputs}
        assert trace.users(earlier.output) == [later]


def test_parameters_and_buffers_have_their_names_and_nothing_else_has_one() -> None:
    trace = probe(Two(), torch.zeros(2, 4))
    names = [[ref.name for ref in op.inputs] for op in trace.ops[:2]]
    assert names == [[None, "fc.weight", "fc.bias"], [None, "shift"]]


def test_only_what_comes_from_the_input_depends_on_it() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + self.table, self.table.exp().sum()

    trace = probe(Both(), torch.zeros(2, 3))
    assert [trace.depends_on_input(ref) for ref in trace.outputs] == [True, False]


def test_dropout_in_training_mode_is_one_operation_and_batch_norm_keeps_its_statistics() -> None:
    model = cnn().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trace = probe(model, images(), training=True)
    assert "batch_norm" in [op.name for op in trace.ops]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [op.name for op in probe(token_net("dropout module"), images(), training=True).ops].count("dropout") == 1


def test_probing_leaves_hooks_modes_and_attributes_of_the_model_as_they_were() -> None:
    model = vit().train()
    model.blocks[0].eval()
    handle = model.blocks[1].register_forward_hook(lambda *_: None)

    def state() -> list[Any]:
        return [
            (path, type(m), m.training, list(m._forward_hooks), list(m._forward_pre_hooks), sorted(vars(m)))
            for path, m in model.named_modules()
        ]

    before = state()
    probe(model, images())
    assert state() == before
    handle.remove()


def test_a_model_that_cannot_run_is_named_with_its_input_and_the_reason() -> None:
    with pytest.raises(ModelError, match=r"Linear cannot run on the example input \(2, 5\): .*\b5\b"):
        probe(nn.Linear(4, 4), torch.zeros(2, 5))


def test_several_and_nested_arguments_are_passed_on() -> None:
    class Takes(nn.Module):
        def forward(self, x: Tensor, factor: float, more: dict[str, Tensor]) -> Tensor:
            return x * factor + more["y"]

    trace = probe(Takes(), (torch.zeros(2, 3), 2.0, {"y": torch.zeros(3)}))
    assert [ref.shape for ref in trace.inputs] == [(2, 3), (3,)]
    assert trace.outputs[0].shape == (2, 3)
