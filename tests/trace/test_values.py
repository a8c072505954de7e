import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.copying import meta_copy
from reparam.errors import ModelError
from reparam.trace.probe import probe
from tests.pico import images, vit


class Choosy(nn.Module):
    """Takes one of two layers, by the mean of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.warm, self.cold = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.warm(x) if x.mean() > 0 else self.cold(x)


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.parametrize(("fill", "taken"), [(1.0, "inner.warm"), (-1.0, "inner.cold")])
def test_a_model_that_reads_values_is_run_on_the_example_input(fill: float, taken: str) -> None:
    trace = probe(Around(Choosy()), torch.full((2, 4), fill))
    assert [call.path for call in trace.calls] == [taken, "inner", ""]
    assert trace.reads == {"inner": {"bool"}}
    assert trace.unseen == (
        'the forward of "inner" reads values of tensors (bool), so only what ran on this input is known',
    )


def test_the_models_own_forward_is_named_as_such() -> None:
    assert probe(Choosy(), torch.ones(2, 4)).unseen[0].startswith("the model's own forward reads values")


def test_a_model_that_reads_no_values_leaves_nothing_unseen() -> None:
    trace = probe(vit(), images())
    assert (trace.unseen, trace.reads) == ((), {})


READS: dict[str, Any] = {
    "item": lambda x: x * x.sum().item(),
    "int": lambda x: x[: int(x.abs().sum().clamp(1, 2))],
    "float": lambda x: x * float(x.max()),
    "tolist": lambda x: x * x.flatten().tolist()[0],
    "numpy": lambda x: x * float(x.numpy().mean()),
    "nonzero": lambda x: x.flatten()[(x.flatten() > 0).nonzero()],
    "where": lambda x: x.flatten()[torch.where(x.flatten() > 0)],
    "getitem": lambda x: x[x > 0],
    "unique": lambda x: x.unique(),
    "equal": lambda x: x if torch.equal(x, x) else -x,
    "allclose": lambda x: x if torch.allclose(x, x) else -x,
    "masked_select": lambda x: x.masked_select(x > 0),
}


@pytest.mark.parametrize("name", READS)
def test_every_way_to_read_values_is_noticed(name: str) -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = READS[name](x)
            return out

    trace = probe(Reads(), torch.randn(2, 4))
    assert name in trace.reads[""]
    assert trace.unseen


def test_constants_of_the_code_may_be_read() -> None:
    class Rates(Choosy):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.linspace(0, 1, 3).tolist()[1]

    assert probe(Rates(), torch.ones(2, 4)).reads == {"": {"bool"}}


def test_a_buffer_that_is_read_is_noticed() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("threshold", torch.tensor(0.5))

        def forward(self, x: Tensor) -> Tensor:
            return x if float(self.threshold) > 0 else -x

    assert probe(Gated(), torch.ones(2, 4)).reads == {"": {"float"}}


def test_what_cannot_meet_meta_tensors_runs_on_values_and_says_why() -> None:
    class Ones(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ones(4)

    (note,) = probe(Ones(), torch.zeros(2, 4)).unseen
    assert note.startswith("it ran on values, because without them it does not run: Tensor on device cpu")


def test_the_record_keeps_no_values_but_keeps_what_was_one_tensor() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(x, x, x)[0] if x.mean() > 0 else x

    trace = probe(Twice(), torch.ones(2, 3, 4))
    query, key, value = trace.calls_of("attn")[0].args
    assert query is key is value
    assert query.is_meta
    assert not [t for t in trace.tensors if not t.is_meta and not isinstance(t, nn.Parameter)]


def test_the_model_its_buffers_and_the_users_random_numbers_are_left_alone() -> None:
    class Noisy(Choosy):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.norm(x) + torch.rand(4))

    model = Noisy().train()
    before, x = copy.deepcopy(model.state_dict()), torch.randn(2, 4)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert probe(model, x, training=True).unseen
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_without_weights_and_input_they_are_drawn_and_the_same_each_time() -> None:
    model = meta_copy(Around(Choosy()))
    runs = [probe(model, torch.empty(2, 4, device="meta")) for _ in range(2)]
    assert [[call.path for call in run.calls] for run in runs] == [[call.path for call in runs[0].calls]] * 2
    assert all(run.unseen for run in runs)


def test_a_model_that_fails_on_values_too_is_named_with_that_reason() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.mean() > 0:
                raise ValueError("the image is too bright")
            return x

    with pytest.raises(ModelError, match=r"Fails cannot run on the example input \(2, 4\): the image is too bright\."):
        probe(Fails(), torch.ones(2, 4))


def test_a_wrong_shape_is_no_reason_to_run_on_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reparam.trace.probe.with_values", lambda model: pytest.fail("copied the weights"))
    with pytest.raises(ModelError, match=r"Linear cannot run on the example input \(2, 5\)"):
        probe(nn.Linear(4, 4), torch.zeros(2, 5))
