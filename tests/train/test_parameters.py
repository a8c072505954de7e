from collections.abc import Callable

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from reparam.errors import OptionError
from reparam.ops.base import OPERATORS
from reparam.recipe.settings import TrainSettings
from reparam.train.parameters import make_optimizer, no_decay_names, parameter_groups

BLOCK = ("norm1.weight", "norm1.bias", "attn.qkv.bias", "attn.proj.bias", "norm2.weight", "norm2.bias")
BLOCK_MLP = ("mlp.fc1.bias", "mlp.fc2.bias")


def test_a_vit_spares_its_one_dimensional_parameters_its_tokens_and_its_positions(
    make_vit: Callable[..., VisionTransformer],
) -> None:
    by_hand = {"cls_token", "pos_embed", "patch_embed.proj.bias", "norm.weight", "norm.bias", "head.bias"}
    by_hand |= {f"blocks.{i}.{name}" for i in range(2) for name in BLOCK + BLOCK_MLP}
    assert no_decay_names(make_vit()) == by_hand


def test_operators_add_what_they_list_under_their_own_path() -> None:
    example = next(e for e in OPERATORS.get("moe_mlp").examples() if e.refusal is None and e.name == "ps")
    operator = OPERATORS.get("moe_mlp").from_dense(example.dense(), example.site, example.options)
    names = no_decay_names(nn.Sequential(nn.Linear(8, 8), operator))
    experts = {f"1.multiply.{i}.bias" for i in (0, 2)} | {f"1.shift.{i}.bias" for i in (0, 2)}
    shifts = {f"1.shift.{i}.{name}" for i in (0, 2) for name in ("shift", "sign")}
    assert names == {"0.bias", "1.router.weight"} | experts | shifts


def test_norms_of_more_than_one_dimension_are_spared_and_equal_shapes_elsewhere_are_not() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 8))

    model = nn.Sequential(nn.LayerNorm((4, 8)), Scale())
    assert no_decay_names(model) == {"0.weight", "0.bias"}


def test_each_trainable_parameter_is_in_one_group_with_the_decay_it_should_have(
    make_vit: Callable[..., VisionTransformer],
) -> None:
    model = make_vit()
    model.patch_embed.requires_grad_(False)
    groups = parameter_groups(model, weight_decay=0.05)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(len(group["params"]) for group in groups) == len(trainable) == len(decay)
    spared = no_decay_names(model)
    assert {name: decay[id(p)] for name, p in trainable.items()} == {
        name: 0.0 if name in spared else 0.05 for name in trainable
    }


def test_names_that_look_like_patterns_are_taken_literally() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_parameter("w*", nn.Parameter(torch.ones(2, 2)))
            self.register_parameter("wide", nn.Parameter(torch.ones(2, 2)))

        def no_weight_decay(self) -> set[str]:
            return {"w*"}

    groups = parameter_groups(Odd(), weight_decay=0.1)
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.0, 1), (0.1, 1)]


def test_layer_decay_scales_the_rate_from_the_head_down(make_vit: Callable[..., VisionTransformer]) -> None:
    model = make_vit()
    groups = parameter_groups(model, weight_decay=0.05, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    by_hand = {"head.weight": 1.0, "blocks.1.mlp.fc1.weight": 0.5, "blocks.0.mlp.fc1.weight": 0.25, "cls_token": 0.125}
    named = dict(model.named_parameters())
    assert {name: scale[id(named[name])] for name in by_hand} == by_hand
    assert all(group["weight_decay"] == 0 for group in groups if any(p.ndim == 1 for p in group["params"]))


def test_layer_decay_is_refused_where_the_model_does_not_say_its_layers() -> None:
    with pytest.raises(OptionError, match="Linear does not say which layer"):
        parameter_groups(nn.Linear(2, 2), weight_decay=0.1, layer_decay=0.5)


def test_the_optimiser_keeps_the_decay_of_each_group() -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), TrainSettings(opt="sgd", lr=0.5, weight_decay=0.1))
    assert [(g["weight_decay"], g["lr"]) for g in optimizer.param_groups] == [(0.0, 0.5), (0.1, 0.5)]


def test_an_unknown_optimiser_names_the_nearest() -> None:
    with pytest.raises(OptionError, match='unknown optimiser "adamv"'):
        make_optimizer(nn.Linear(2, 2), TrainSettings(opt="adamv"))
