from collections.abc import Callable

import pytest
import torch
from torch import nn

from reparam.trace.probe import probe
from reparam.tradeoff.cuts import Cut, find_cuts, first_operation
from tests.pico import cnn, images, plan_for, recipe, token_net, vit
from tests.tradeoff.models import ReadingValues, Skipping, WritingInPlace


def cuts_of(model: nn.Module) -> tuple[Cut, ...]:
    return find_cuts(probe(model, images()))


def test_a_transformer_can_be_cut_before_each_block_and_not_inside_one() -> None:
    paths = [cut.path for cut in cuts_of(vit(depth=3))]
    assert [path for path in paths if path.startswith("blocks")] == ["blocks", "blocks.1", "blocks.2"]
    assert "norm" in paths
    assert "head" in paths


def test_what_lies_before_a_cut_is_left_out_but_not_what_lies_behind() -> None:
    cut = next(cut for cut in cuts_of(vit(depth=3)) if cut.path == "blocks.2")
    assert set(cut.skipped) >= {"patch_embed", "blocks.0", "blocks.1"}
    assert not any(path.startswith(("blocks.2", "norm", "head")) for path in cut.skipped)


def test_the_size_of_a_cut_is_that_of_one_image() -> None:
    cut = next(cut for cut in cuts_of(vit()) if cut.path == "blocks.1")
    assert cut.bytes_per_image == 17 * 16 * 4  # tokens, channels, bytes


def test_a_skip_connection_leaves_no_cut_under_it() -> None:
    assert [cut.path for cut in cuts_of(Skipping())] == ["tail", "head"]


def test_a_module_that_is_called_twice_is_no_cut() -> None:
    shared = nn.Conv2d(8, 8, 1)
    model = nn.Sequential(nn.Conv2d(3, 8, 4), shared, nn.ReLU(), shared, nn.Flatten(), nn.Linear(8 * 169, 3))
    assert "1" not in [cut.path for cut in cuts_of(model)]


def test_a_model_that_reads_values_has_no_cut() -> None:
    torch.manual_seed(0)
    assert cuts_of(ReadingValues()) == ()


@pytest.mark.parametrize("make", [cnn, Skipping, WritingInPlace, lambda: token_net("fused")])
def test_cuts_come_in_the_order_of_execution(make: Callable[[], nn.Module]) -> None:
    positions = [cut.position for cut in cuts_of(make())]
    assert positions == sorted(positions)


def test_a_site_begins_with_its_module_or_with_the_first_reader_of_its_weight() -> None:
    model = vit()
    trace = probe(model, images())
    plan = plan_for(model, recipe([{"match": {"kind": "linear"}, "operator": "shift_linear"}]))
    sites = {step.site.path: step.site for step in plan.steps}
    begins = {path: first_operation(trace, site) for path, site in sites.items()}
    for path, position in begins.items():
        assert trace.ops[position].stack[-1] == path
    reading = sites["blocks.1.mlp.fc1"].model_copy(update={"path": "nowhere", "shared_with": ("blocks.0.mlp.fc1",)})
    assert first_operation(trace, reading) == begins["blocks.0.mlp.fc1"]
    lost = reading.model_copy(update={"shared_with": ()})
    assert first_operation(trace, lost) == 0
