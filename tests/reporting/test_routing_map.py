import torch
from torch import Tensor, nn

import reparam
from reparam.ops.moe import MoeMlp
from reparam.ops.routed_layer import RoutedLayer
from reparam.reporting.routing_map import routing_map
from tests import pico


def routed(model: nn.Module) -> nn.Module:
    """The model, converted, with routers that have an opinion."""
    optional = ["stage.0.rule.0.optional=true"]  # some have no attention
    converted = reparam.convert(model, "shiftaddvit", example_input=pico.images(), overrides=optional).model.eval()
    generator = torch.Generator().manual_seed(1)
    for module in converted.modules():
        if isinstance(module, MoeMlp | RoutedLayer) and hasattr(module, "router"):
            with torch.no_grad():
                module.router.weight.copy_(torch.randn(module.router.weight.shape, generator=generator))
    return converted


def inputs_of(model: nn.Module, path: str, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(images)
    handle.remove()
    return seen[0]


def test_each_token_stands_at_its_place_and_the_class_token_is_left_out() -> None:
    model, images = routed(pico.vit()), pico.images(3)
    layers, logits = routing_map(model, images)
    torch.testing.assert_close(logits, model(images))
    assert [layer.path for layer in layers] == ["blocks.0.mlp.router", "blocks.1.mlp.router"]
    for layer in layers:
        assert layer.grid is not None
        assert (layer.grid.prefix, layer.grid.height, layer.grid.width) == (1, 4, 4)
        tokens = inputs_of(model, layer.path.removesuffix(".router"), images)[:, 1:]
        scores = tokens @ model.get_submodule(layer.path).weight.T
        wanted = (scores[..., 0] >= scores[..., 1]).int().reshape(3, 4, 4).tolist()
        assert [["".join(map(str, row)) for row in image] for image in wanted] == [
            list(rows) for rows in layer.multiplied
        ]
    assert {digit for layer in layers for rows in layer.multiplied for digit in "".join(rows)} == {"0", "1"}


def test_a_grid_that_is_not_square_keeps_rows_and_columns_apart() -> None:
    wide = reparam.convert(pico.vit(img_size=(8, 16)), "shiftaddvit", example_input=pico.images(height=8)).model
    layers, _ = routing_map(wide, pico.images(height=8))
    assert [(layer.grid.height, layer.grid.width) for layer in layers if layer.grid] == [(2, 4), (2, 4)]
    assert all(len(rows) == 2 and len(rows[0]) == 4 for layer in layers for rows in layer.multiplied)


def test_a_model_without_mixtures_has_no_map() -> None:
    layers, logits = routing_map(pico.vit(), pico.images())
    assert layers == ()
    assert logits.shape == (2, 3)


class Reordered(nn.Module):
    """An MLP on tokens that no longer stand in the order of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.stem(images).flatten(2).transpose(1, 2).flip(1)
        out: Tensor = self.head((tokens + self.mlp(tokens)).mean(dim=1))
        return out


class Pointwise(nn.Module):
    """An MLP of 1x1 convolutions on a map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, (4, 2), stride=(4, 2))
        self.mlp = nn.Sequential(nn.Conv2d(8, 16, 1), nn.GELU(), nn.Conv2d(16, 8, 1))
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        planes: Tensor = self.stem(images)
        out: Tensor = self.head((planes + self.mlp(planes)).mean(dim=(2, 3)))
        return out


def test_a_mixture_without_a_grid_says_why() -> None:
    (layer,), _ = routing_map(routed(Reordered()), pico.images())
    assert layer.grid is None
    assert layer.no_grid == "'flip' stands between the image plane and the tokens and may reorder them"
    assert layer.multiplied == ()


def test_a_map_is_its_own_grid() -> None:
    model, images = routed(Pointwise()), pico.images()
    (layer,), _ = routing_map(model, images)
    assert layer.grid is not None
    assert (layer.grid.prefix, layer.grid.height, layer.grid.width) == (0, 4, 8)
    tokens = inputs_of(model, "mlp", images).movedim(1, -1)
    scores = tokens @ model.get_submodule("mlp.router").weight.T
    assert "".join(layer.multiplied[1]) == "".join(
        map(str, (scores[1, ..., 0] >= scores[1, ..., 1]).int().flatten().tolist())
    )
