import torch
from torch import nn

from reparam.copying import meta_copy
from tests.pico import images, vit


def test_a_meta_copy_has_every_name_and_shape_and_no_memory() -> None:
    model = vit()
    duplicate = meta_copy(model)
    assert {n: t.shape for n, t in duplicate.state_dict().items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }
    assert all(tensor.is_meta for tensor in duplicate.state_dict().values())
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


def test_a_frozen_parameter_stays_frozen_and_a_shared_one_shared() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight.requires_grad_(False)
    duplicate = meta_copy(model)
    assert duplicate[0].weight is duplicate[1].weight
    assert not duplicate[0].weight.requires_grad
    assert duplicate[1].bias.requires_grad


def test_a_kept_activation_with_a_gradient_graph_does_not_stop_the_copy() -> None:
    model = vit()
    model.last = model(images())
    assert model.last.grad_fn is not None
    duplicate = meta_copy(model)
    assert duplicate.last.is_meta
    assert torch.equal(model.last, model.last)
    assert not model.last.is_meta
