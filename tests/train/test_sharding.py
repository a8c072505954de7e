"""Two processes that share one model out between them (FSDP2) train like one, and leave what one leaves."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import reparam
from reparam.errors import DataError, OptionError, TrainError
from reparam.ops.dispatch import dispatch_gather
from reparam.processes import process_count, process_index
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.settings import TrainSettings
from reparam.train.data import Loaders
from reparam.train.loop import Trainer
from reparam.train.sharding import check_sharding, is_sharded, shard_, units
from reparam.train.state import TrainState
from tests.train.gang import together
from tests.train.loops import CPU, PLAIN, loaders
from tests.train.pico import pico_vit

#: 18 evaluation images in batches of 8: of two processes with 9 each, both must run a second batch.
SETTINGS = replace(
    PLAIN, grad_accum_steps=2, validation_batch_size=8, model_ema=True, model_ema_decay=0.9, clip_grad=0.5
)
SHARDED = replace(SETTINGS, fsdp=True)


class Trained(NamedTuple):
    """What a training told, saved and kept."""

    losses: list[tuple[float, float]]
    saved: dict[str, Tensor]
    kind: type[nn.Module] | None
    states: list[TrainState]


class Split(nn.Module):
    """Bright images go to one expert, dark ones to the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList([nn.Linear(64, 3), nn.Linear(64, 3)])

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(1)
        return dispatch_gather(tokens, (tokens.sum(dim=1) < 0).long(), list(self.experts))


class Convolutional(nn.Module):
    """Two convolutions with batch norms, in blocks; a bias would have no gradient but noise, which AdamW blows up."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(c, 4, 3, bias=False), nn.BatchNorm2d(4)) for c in (1, 4)))
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(images).mean(dim=(2, 3)))
        return logits


def train(
    model: nn.Module, own: Loaders | DataSettings, settings: TrainSettings, *, state: TrainState | None = None
) -> Trained:
    """Trains by the share of the global batch that a process has."""
    settings = replace(settings, batch_size=settings.batch_size // process_count())
    saved: list[nn.Module] = []
    states: list[TrainState] = []
    made = Trainer(
        model,
        loaders(own, settings) if isinstance(own, DataSettings) else own,
        settings=settings,
        num_classes=3,
        device=CPU,
        save=lambda model, *, is_best: saved.append(copy.deepcopy(model)),
        keep=lambda state: states.append(copy.deepcopy(state)),
    )
    assert is_sharded(made.model) == settings.fsdp
    if state is not None:
        made.resume(copy.deepcopy(state))
    losses = [(epoch.train_loss, epoch.evaluation.loss) for epoch in made.fit().epochs]
    if not saved:
        return Trained(losses, {}, None, states)
    return Trained(losses, dict(saved[-1].state_dict()), type(saved[-1]), states)


def adder_net() -> nn.Module:
    return reparam.convert(Convolutional(), "addernet", example_input=torch.zeros(2, 1, 8, 8)).model


def bright_and_dark() -> Loaders:
    """One bright and one dark batch; each of two processes has one of them alone."""
    batch = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).abs()
    images, labels = torch.cat([batch, -batch]), torch.arange(8) % 3
    if process_count() > 1:
        half = slice(4 * process_index(), 4 * process_index() + 4)
        images, labels = images[half], labels[half]
    return Loaders(train=[(images, labels)], val=[(images, labels)])


def refusal(work: Callable[[], object]) -> str:
    try:
        work()
    except (DataError, TrainError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def faulty() -> nn.Module:
    model = pico_vit()
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight[3, 3] = torch.inf
    return model


def share() -> float:
    """The share of the parameters' values that this process holds."""
    model = pico_vit()
    every = sum(parameter.numel() for parameter in model.parameters())
    shard_(model)
    return sum(parameter.to_local().numel() for parameter in model.parameters()) / every


def few_images() -> Loaders:
    image = (torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long))
    return Loaders(train=[image], val=[image] if process_index() == 0 else [])


@pytest.fixture(scope="module")
def alone(images: Path) -> Trained:
    return train(pico_vit(), data_of(images), SETTINGS)


@pytest.fixture(scope="module")
def both(images: Path, alone: Trained) -> list[dict[str, Any]]:
    """What each of two processes saw of everything; they are started once."""

    def work() -> dict[str, Any]:
        data = data_of(images)
        whole = train(pico_vit(seed=process_index()), data, SHARDED)  # the first process's weights are everybody's
        return {
            "vit": whole,
            "vit copied": train(pico_vit(seed=process_index()), data, SETTINGS),
            "resumed": train(pico_vit(seed=5), data, SHARDED, state=alone.states[1]),
            "copied": train(adder_net(), data, replace(SETTINGS, epochs=1, grad_accum_steps=1)),
            "adders": train(adder_net(), data, replace(SHARDED, epochs=1, grad_accum_steps=1)),
            "experts copied": train(Split(), bright_and_dark(), SETTINGS),
            "experts": train(Split(), bright_and_dark(), SHARDED),
            "share": share(),
            "infinite": refusal(lambda: train(faulty(), data, SHARDED)),
            "few": refusal(lambda: train(pico_vit(), few_images(), SHARDED)),
        }

    return together(work)


def data_of(images: Path) -> DataSettings:
    return DataSettings(data_dir=str(images), mean=(0.5,), std=(0.5,), train_interpolation="bilinear", crop_pct=1.0)


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest one, relative where values are above 1."""
    assert one.keys() == other.keys()
    assert all(type(other[name]) is Tensor and one[name].shape == other[name].shape for name in one)
    pairs = [(one[name].float(), other[name].float()) for name in one]
    return max(float(((x - y).abs() / x.abs().clamp_min(1)).max()) for x, y in pairs)


@pytest.mark.parametrize("way", ["vit", "vit copied"])
def test_a_sharded_or_copied_model_follows_the_curve_of_one_process(
    alone: Trained, both: list[dict[str, Any]], way: str
) -> None:
    for process in both:
        assert process[way].losses == [pytest.approx(epoch, rel=1e-4) for epoch in alone.losses]


def test_each_process_holds_half_of_the_values(both: list[dict[str, Any]]) -> None:
    assert sum(process["share"] for process in both) == pytest.approx(1)
    assert both[0]["share"] == pytest.approx(0.5, abs=0.01)


def test_it_is_saved_in_one_piece_and_by_the_first_process_alone(alone: Trained, both: list[dict[str, Any]]) -> None:
    first, second = (process["vit"] for process in both)
    assert difference(alone.saved, first.saved) < 1e-4
    assert first.kind is VisionTransformer
    assert (second.saved, second.states) == ({}, [])


def test_states_have_the_form_of_one_process_and_any_number_goes_on_from_them(
    images: Path, alone: Trained, both: list[dict[str, Any]]
) -> None:
    sharded = both[0]["vit"]
    for one, other in zip(alone.states, sharded.states, strict=True):
        assert shapes(one.parts) == shapes(other.parts)
    # Two from what one has left, and one from what two have left.
    assert difference(both[0]["resumed"].saved, alone.saved) < 1e-4
    assert (
        difference(train(pico_vit(seed=6), data_of(images), SETTINGS, state=sharded.states[1]).saved, alone.saved)
        < 1e-4
    )


def test_adders_and_batch_norms_are_those_of_copied_models(both: list[dict[str, Any]]) -> None:
    copied, sharded = both[0]["copied"], both[0]["adders"]
    assert sharded.losses == [pytest.approx(epoch, rel=1e-4) for epoch in copied.losses]
    assert difference(copied.saved, sharded.saved) < 1e-4


@pytest.mark.parametrize("way", ["experts", "experts copied"])
def test_an_expert_without_tokens_on_one_process_learns_from_the_other(both: list[dict[str, Any]], way: str) -> None:
    expected = train(Split(), bright_and_dark(), SETTINGS)
    assert difference(expected.saved, both[0][way].saved) < 1e-4


def test_what_is_not_finite_is_named_by_every_process(both: list[dict[str, Any]]) -> None:
    for process in both:
        assert "parameter blocks.1.mlp.fc1.weight: 1 of its 1024 values are not finite" in process["infinite"]


def test_a_process_without_evaluation_images_is_refused_by_all(both: list[dict[str, Any]]) -> None:
    for process in both:
        assert process["few"].startswith("DataError: only 1 of 2 processes have images to evaluate")


def test_one_process_has_nobody_to_share_with() -> None:
    check_sharding(SETTINGS)
    with pytest.raises(OptionError, match="there is only one; start several, as in torchrun"):
        check_sharding(SHARDED)


def test_units_are_blocks_of_lists_and_no_layers() -> None:
    deep = VisionTransformer(img_size=8, patch_size=4, embed_dim=16, depth=12, num_heads=2, num_classes=3)
    assert list(units(deep)) == list(deep.blocks)
    assert list(units(Split())) == []
    converted = reparam.convert(pico_vit(), "shiftaddvit", example_input=torch.zeros(2, 1, 8, 8)).model
    assert list(units(converted)) == list(converted.blocks)


def test_a_block_that_shares_parameters_stays_with_the_rest() -> None:
    model = pico_vit()
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    assert list(units(model)) == []


def shapes(values: Any) -> Any:
    """Nested values with each tensor replaced by its kind, shape and dtype."""
    if isinstance(values, dict):
        return {name: shapes(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [shapes(value) for value in values]
    return (type(values), values.shape, values.dtype) if isinstance(values, Tensor) else values
