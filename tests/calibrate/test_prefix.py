"""Running up to a layer: the same inputs as the whole model gives it, whatever is short-cut."""

import pytest
import torch
from torch import Tensor, nn

from reparam.calibrate.prefix import Prefix
from tests.pico import images, vit


class Skips(nn.Module):
    """Its last block reads what the first one was given."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        first = self.blocks[0](x)
        result: Tensor = self.blocks[2](self.blocks[1](first) + first)
        return result


def honest(model: nn.Module, path: str, batches: tuple[Tensor, ...]) -> list[Tensor]:
    found: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].clone()))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    handle.remove()
    return found


def test_inputs_are_those_of_whole_runs_before_and_after_blocks_are_finished() -> None:
    model, batches = vit(depth=3), images(6).split(2)
    run = Prefix(model, batches)
    for block in range(3):
        for name in ("attn.qkv", "attn.proj", "mlp.fc2"):
            path = f"blocks.{block}.{name}"
            wanted = honest(model, path, batches)
            with torch.no_grad():
                outputs = [model.get_submodule(path)(x) for x in wanted]
            for ((x,), y), wanted_x, wanted_y in zip(run.at(path), wanted, outputs, strict=True):
                assert torch.equal(x, wanted_x)
                assert torch.equal(y, wanted_y)
        run.finish(f"blocks.{block}", f"blocks.{block + 1}.attn.qkv" if block < 2 else "head")


def test_what_is_finished_does_not_run_again() -> None:
    model, batches = vit(depth=3), images(4).split(2)
    run, calls = Prefix(model, batches), []
    run.finish("blocks.0", "blocks.1.attn.qkv")
    run.finish("blocks.1", "blocks.2.attn.qkv")
    model.blocks[0].attn.register_forward_hook(lambda *_: calls.append("first"))
    model.blocks[1].attn.register_forward_hook(lambda *_: calls.append("second"))
    model.blocks[2].mlp.register_forward_hook(lambda *_: calls.append("behind"))
    list(run.at("blocks.2.attn.proj"))
    assert calls == []


def test_changes_of_the_layer_at_hand_are_seen_and_the_model_is_left_as_it_was() -> None:
    model, batches = vit(), images(4).split(2)
    before = model(images())
    run = Prefix(model, batches)
    run.finish("blocks.0", "blocks.1.attn.qkv")
    list(run.at("blocks.1.mlp.fc1"))
    assert torch.equal(model(images()), before)
    with torch.no_grad():
        model.blocks[1].attn.proj.weight.mul_(2)
    ((after,), _), *_ = run.at("blocks.1.mlp.fc1")
    assert torch.equal(after, honest(model, "blocks.1.mlp.fc1", batches)[0])


def test_a_skip_over_a_block_forbids_the_short_cut() -> None:
    torch.manual_seed(0)
    model, batches = Skips(), torch.randn(4, 4).split(2)
    run = Prefix(model, batches)
    run.finish("blocks.0", "blocks.1")
    run.finish("blocks.1", "blocks.2")
    calls: list[str] = []
    for number in (0, 1):
        block: nn.Linear = model.blocks[number]  # type: ignore[assignment]
        block.register_forward_pre_hook(lambda _, __, number=number: calls.append(f"blocks.{number}"))
    for ((x,), _), wanted in zip(run.at("blocks.2"), honest(model, "blocks.2", batches), strict=True):
        assert torch.equal(x, wanted)
    assert calls.count("blocks.1") == 4  # twice here, twice in the honest runs


def test_an_error_of_the_model_is_not_swallowed() -> None:
    run = Prefix(vit(), (torch.zeros(1, 3, 7, 7),))
    with pytest.raises(AssertionError, match="Input height"):
        list(run.at("blocks.0.attn.qkv"))
