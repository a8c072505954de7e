"""The ResNets of the CIFAR experiments: sizes as published, parameter-free shortcuts, and their life under a name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reparam
from reparam.errors import ModelError, WeightsError
from reparam.graph.provenance import provenance_of
from reparam.models.build import build_model, build_spec
from reparam.models.cifar_resnet import CIFAR_RESNETS, BasicBlock, CifarResNet
from reparam.models.known import spec_of
from reparam.models.names import resolve_name
from reparam.models.spec import ModelSpec
from reparam.models.weights import load_weights
from reparam.ops.base import Operator
from tests.pico import recipe

DEPTHS = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}
KEEP = recipe([{"operator": "keep"}])
SHIFT = recipe([{"match": {"kind": "conv2d"}, "operator": "shift_conv2d"}])


def images(side: int = 32, *, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))


def small(**options: Any) -> CifarResNet:
    """One block in each group: depth 8."""
    torch.manual_seed(0)
    return CifarResNet(1, **options).eval()


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def by_hand(depth: int) -> int:
    """3x3 convolutions without bias, two figures for each channel's batch norm, and one linear layer of ten classes."""
    blocks = (depth - 2) // 6
    total = 9 * 3 * 16 + 2 * 16
    before = 16
    for width in (16, 32, 64):
        for _ in range(blocks):
            total += 9 * before * width + 9 * width * width + 2 * 2 * width
            before = width
    return total + 64 * 10 + 10


@pytest.mark.parametrize("depth", DEPTHS)
def test_sizes_are_those_of_the_paper(depth: int) -> None:
    with torch.device("meta"):
        model = CIFAR_RESNETS[f"cifar_resnet{depth}"]()
    assert parameters(model) == by_hand(depth)
    millions = parameters(model) / 1e6
    assert round(millions, 1 if depth == 110 else 2) == DEPTHS[depth]


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_depth_counts_the_convolutions_and_the_classifier(depth: int) -> None:
    with torch.device("meta"):
        model = CIFAR_RESNETS[f"cifar_resnet{depth}"]()
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert {conv.kernel_size for conv in convs} == {(3, 3)}
    assert all(conv.bias is None for conv in convs)
    assert len(convs) + 1 == depth
    assert [conv.stride for conv in convs].count((2, 2)) == 2


@pytest.mark.parametrize("side", [8, 7])
def test_a_shortcut_that_halves_takes_every_other_pixel_and_adds_channels_of_zeros(side: int) -> None:
    block, x = BasicBlock(4, 10).eval(), images(side, channels=4).relu()
    with torch.no_grad():
        block.bn2.weight.zero_()  # leaves the shortcut
    half = F.interpolate(x, scale_factor=0.5, mode="nearest") if side % 2 == 0 else F.max_pool2d(x, 1, stride=2)
    assert torch.equal(block(x)[:, 3:7], half)
    assert block(x)[:, :3].abs().max() == block(x)[:, 7:].abs().max() == 0
    assert parameters(block) == 9 * (4 * 10 + 10 * 10) + 4 * 10


def test_a_shortcut_that_keeps_the_size_is_the_identity() -> None:
    block, x = BasicBlock(4, 4).eval(), images(8, channels=4)
    with torch.no_grad():
        block.bn2.weight.zero_()
    assert torch.equal(block(x), x.relu())


def test_a_block_adds_two_normalised_convolutions_to_its_shortcut() -> None:
    torch.manual_seed(0)
    block, x = BasicBlock(4, 4).eval(), images(8, channels=4)
    branch = block.bn2(
        F.conv2d(block.bn1(F.conv2d(x, block.conv1.weight, padding=1)).relu(), block.conv2.weight, padding=1)
    )
    torch.testing.assert_close(block(x), (x + branch).relu())


def test_features_head_and_logits_are_parts_of_one_forward() -> None:
    model, x = small(num_classes=7), images()
    features = model.forward_features(x)
    assert features.shape == (2, 64, 8, 8)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    assert torch.equal(model.forward_head(features), F.linear(pooled, model.fc.weight, model.fc.bias))  # type: ignore[arg-type]
    assert torch.equal(model(x), model.forward_head(features))
    assert model(x).shape == (2, 7)
    assert model(images(40)).shape == (2, 7)


def test_another_classifier_can_be_put_in_or_taken_out() -> None:
    model, x = small(), images()
    model.reset_classifier(3)
    assert (model(x).shape, model.num_classes) == ((2, 3), 3)
    assert model.get_classifier() is model.fc
    model.reset_classifier(0)
    assert torch.equal(model(x), model.forward_head(model.forward_features(x), pre_logits=True))
    with pytest.raises(ValueError, match='global_pool: wanted "avg", got "max"'):
        model.reset_classifier(3, global_pool="max")


def test_it_learns() -> None:
    model = small().train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(model(images()), torch.tensor([1, 7]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


# -- under its name


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_name_gives_a_spec_with_the_figures_of_cifar(depth: int) -> None:
    spec = build_spec(f"cifar_resnet{depth}")
    assert (spec.source, spec.name, spec.kwargs) == ("reparam", f"cifar_resnet{depth}", {})
    assert spec.input_size == (3, 32, 32)
    assert spec.data["mean"] == [0.4914, 0.4822, 0.4465]
    assert spec.data["std"] == [0.2470, 0.2435, 0.2616]
    assert spec.data["crop_pct"] == 1.0
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec


def test_a_spec_builds_the_model_and_the_model_tells_its_spec() -> None:
    spec = build_spec("cifar_resnet20", num_classes=100)
    model = build_model(spec)
    assert isinstance(model, CifarResNet)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 100)
    assert spec_of(model) == spec
    assert all(t.is_meta for t in build_model(spec, device="meta").state_dict().values())


def test_classes_channels_and_size_can_be_chosen(caplog: pytest.LogCaptureFixture) -> None:
    spec = build_spec("cifar_resnet20", num_classes=4, in_chans=1, img_size=28)
    model = build_model(spec).eval()
    assert spec.input_size == (1, 28, 28)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 4)
    assert spec.data["mean"] == pytest.approx([(0.4914 + 0.4822 + 0.4465) / 3])
    assert spec.data["std"] == pytest.approx([(0.2470 + 0.2435 + 0.2616) / 3])
    assert "does not match" not in caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model_kwargs": {"depth": 3}}, 'model "cifar_resnet20" cannot be built'),
        ({"in_chans": 0}, "--in-chans: wanted at least 1, got 0"),
    ],
    ids=str,
)
def test_an_argument_that_it_does_not_take_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        build_spec("cifar_resnet20", **options)


@pytest.mark.parametrize("typed", ["cifar_resnet21", "cifar_resnet", "resnet20", "cifar-resnet20", "CIFAR_ResNet20"])
def test_a_name_that_is_not_quite_one_of_them_gets_them_as_candidates(typed: str) -> None:
    with pytest.raises(ModelError, match=f'model "{typed}" is unknown to timm') as caught:
        build_spec(typed)
    assert "cifar_resnet20" in str(caught.value)


def test_names_of_timms_models_do_not_get_them_as_candidates() -> None:
    with pytest.raises(ModelError, match="is unknown to timm") as caught:
        resolve_name("deit_tny")
    assert "cifar" not in str(caught.value)
    assert build_spec("resnet18").source == "timm"


def test_there_are_no_pretrained_weights() -> None:
    spec = build_spec("cifar_resnet20")
    with pytest.raises(WeightsError, match=r'model "cifar_resnet20" has no pretrained weights\. Give --weights FILE'):
        load_weights(build_model(spec), spec, "hub")
    with pytest.raises(WeightsError, match="has no pretrained weights"):
        reparam.convert("cifar_resnet20", KEEP)
    assert load_weights(build_model(spec), spec, "none").kind == "none"


# -- converted, saved, loaded


@pytest.mark.parametrize("rules", [KEEP, SHIFT], ids=["nothing converted", "shifted"])
def test_a_saved_model_is_built_again_by_its_name(tmp_path: Path, rules: Any) -> None:
    torch.manual_seed(0)
    options = {"weights": "none", "num_classes": 4, "in_chans": 1}
    model = reparam.convert("cifar_resnet20", rules, out=tmp_path / "run", **options).model.eval()
    x = images(channels=1)
    loaded = reparam.load(tmp_path / "run")
    assert torch.equal(loaded(x), model(x))
    shifted = [m.name for m in loaded.modules() if isinstance(m, Operator)]
    assert shifted == ["shift_conv2d"] * (19 if rules is SHIFT else 0)
    provenance = provenance_of(loaded)
    assert provenance is not None
    assert provenance.spec == build_spec("cifar_resnet20", num_classes=4, in_chans=1)
    dense = reparam.load(tmp_path / "run" / "dense")
    assert type(dense) is CifarResNet
    assert torch.equal(dense(x), model(x)) is (rules is KEEP)


def test_a_given_model_is_saved_under_its_name_too(tmp_path: Path) -> None:
    model = build_model(build_spec("cifar_resnet20"))
    converted = reparam.convert(model, SHIFT).model.eval()
    reparam.save(converted, tmp_path)
    assert torch.equal(reparam.load(tmp_path)(images()), converted(images()))


def test_a_model_of_another_depth_is_not_taken_for_a_named_one() -> None:
    assert spec_of(small()).source == "module"
