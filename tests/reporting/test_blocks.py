import torch
from torch import nn

from reparam.reporting.blocks import block_paths, by_block
from tests import pico


def block() -> nn.Module:
    return nn.ModuleDict({"norm": nn.LayerNorm(4), "mlp": nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))})


def test_blocks_are_the_members_of_lists_and_what_stands_beside_them() -> None:
    with torch.device("meta"):
        found = block_paths(pico.vit())
    assert [path for path in found if path.startswith("blocks")] == ["blocks.0", "blocks.1"]
    assert found[0] == "patch_embed"
    assert found[-1] == "head"


def test_lists_in_lists_are_opened_and_an_mlp_in_a_sequential_is_not() -> None:
    stage = nn.ModuleDict({"down": nn.Conv2d(4, 4, 2), "blocks": nn.ModuleList([block(), block()])})
    stages = nn.ModuleDict({
        "stem": nn.Conv2d(3, 4, 3),
        "stages": nn.ModuleList([stage]),
    })  # fmt: skip
    assert block_paths(stages) == ("stem", "stages.0.down", "stages.0.blocks.0", "stages.0.blocks.1")


def test_members_may_be_numbered_at_the_end_of_their_names() -> None:
    encoder = nn.ModuleDict({"layer_0": block(), "layer_1": block()})
    assert block_paths(nn.ModuleDict({"encoder": encoder})) == ("encoder.layer_0", "encoder.layer_1")


def test_operations_go_to_the_nearest_block_around_them_and_none_is_lost() -> None:
    operations = [("", {"add.f32": 1}), ("blocks.1.mlp", {"mul.f32": 2}), ("blocks.1", {"mul.f32": 3, "add.f32": 4})]
    assert by_block(operations, ("blocks.1", "blocks.10")) == {
        "blocks.1": {"mul.f32": 5, "add.f32": 4},
        "blocks.10": {},
        "": {"add.f32": 1},
    }
