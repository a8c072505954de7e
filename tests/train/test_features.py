import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from reparam.errors import OptionError, TrainError
from reparam.recipe.resolve import resolve_settings
from reparam.recipe.settings import TrainSettings
from reparam.train.data import Loaders
from reparam.train.features import (
    FEATURE_LOSSES,
    FeatureDistillation,
    FeatureRecorder,
    feature_points,
    kernel_loss,
    mse_loss,
)
from reparam.train.loop import Trainer
from reparam.train.objective import Objective

CPU = torch.device("cpu")
FEATURES_ALONE = TrainSettings(
    epochs=1, workers=0, lr=1e-2, task_loss_weight=0.0, distill_loss_weight=0.0, feature_loss_weight=1.0
)


class Net(nn.Module):
    """Two blocks of a linear layer and an activation in place on (B, 6), then three logits."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 6)) for _ in range(2)
        )
        self.head = nn.Linear(6, 3)
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        for block in self.blocks:
            images = block(images)
        logits: Tensor = self.head(images)
        return logits


class Mixed(nn.Module):
    """Modules that are no points: a pair of tensors, images and tokens in one axis, another width in the other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(4, 1, batch_first=True)
        self.inner, self.merged, self.idle = nn.Linear(4, width), nn.Flatten(0, 1), nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.attn(tokens, tokens, tokens)[0]
        self.merged(self.inner(tokens))
        logits: Tensor = self.head(tokens.mean(dim=1))
        return logits


def mse_by_hand(student: np.ndarray, teacher: np.ndarray) -> float:
    """Mean squared error over the teacher's variance, in float64."""
    s, t = student.astype(np.float64), teacher.astype(np.float64)
    return float(((s - t) ** 2).mean() / ((t - t.mean()) ** 2).mean())


def kernel_by_hand(student: np.ndarray, teacher: np.ndarray) -> float:
    """The Gaussian kernel of each pair of images, pair by pair, in float64."""
    kernels = []
    for features in (student.astype(np.float64), teacher.astype(np.float64)):
        count = len(features)
        distances = [((features[i] - features[j]) ** 2).sum() for i in range(count) for j in range(i + 1, count)]
        kernels.append(np.exp(-np.array(distances) / (2 * np.mean(distances))))
    return mse_by_hand(*kernels)


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 8), (6, 3, 4, 4)])
@pytest.mark.parametrize(("name", "by_hand"), [("mse", mse_by_hand), ("kernel", kernel_by_hand)])
def test_each_loss_equals_its_formula_in_float64(shape: tuple[int, ...], name: str, by_hand: Any) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(shape), 3 * torch.randn(shape) + 1
    loss = FEATURE_LOSSES[name](student, teacher)
    assert loss.item() == pytest.approx(by_hand(student.numpy(), teacher.numpy()), rel=1e-4)


@pytest.mark.parametrize("loss", FEATURE_LOSSES.values())
def test_equal_features_cost_nothing(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    features = torch.randn(5, 4, 4)
    assert loss(features, features).item() == 0


def test_the_best_constant_costs_one_by_value() -> None:
    teacher = torch.randn(5, 8) + 2
    assert mse_loss(teacher.mean().expand(5, 8), teacher).item() == pytest.approx(1)


def test_images_that_are_all_equally_alike_cost_about_one_by_kernel() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0], [10.0]])
    likeness = torch.tensor(kernel_of(points))
    expected = ((likeness - np.exp(-0.5)) ** 2).mean() / likeness.var(correction=0)
    assert kernel_loss(torch.eye(4), points).item() == pytest.approx(expected.item(), rel=1e-5)
    assert expected == pytest.approx(1, abs=0.1)


def kernel_of(points: Tensor) -> list[float]:
    distances = torch.pdist(points).square()
    return list(torch.exp(-distances / (2 * distances.mean())).tolist())


def test_the_kernel_sees_no_shift_rotation_or_scale_and_values_do() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(6, 5)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5))
    moved = -7 * teacher @ rotation + 100
    assert kernel_loss(moved, teacher).item() == pytest.approx(0, abs=1e-6)
    assert mse_loss(moved, teacher).item() > 1


def test_the_kernel_does_not_push_the_scale() -> None:
    torch.manual_seed(0)
    student = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    kernel_loss(student, torch.randn(6, 5)).backward()
    assert student.grad is not None
    assert (student.grad * (student - student.mean(0))).sum().item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max() > 1e-3


@pytest.mark.parametrize("images", [1, 2])
def test_the_kernel_refuses_a_batch_without_two_pairs(images: int) -> None:
    with pytest.raises(TrainError, match=f"a batch of {images} has not two pairs"):
        kernel_loss(torch.randn(images, 4), torch.randn(images, 4))


@pytest.mark.parametrize("loss", FEATURE_LOSSES.values())
def test_features_without_any_difference_give_finite_gradients(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    student = torch.ones(4, 3, requires_grad=True)
    value = loss(student, torch.ones(4, 3))
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("loss", FEATURE_LOSSES.values())
def test_the_gradient_goes_to_the_student_alone(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_the_loss_is_computed_in_float32_under_autocast(name: str) -> None:
    student, teacher, images = Net(0), Net(1).requires_grad_(False), torch.randn(8, 6)
    features = FeatureDistillation(student, teacher, ("blocks.0", "blocks.1"), loss=name)
    with torch.autocast("cpu", dtype=torch.bfloat16), features.recording():
        assert student(images).dtype is torch.bfloat16
        teacher(images)
        outputs = [recorder._found for recorder in features._recorders]
        loss = features.loss()
    by_point = [FEATURE_LOSSES[name](outputs[0][p].float(), outputs[1][p].float()) for p in ("blocks.0", "blocks.1")]
    assert loss.dtype is torch.float32
    torch.testing.assert_close(loss, torch.stack(by_point).mean())


def test_a_record_is_a_copy_that_a_later_activation_in_place_does_not_change() -> None:
    model, images = Net(), torch.randn(4, 6)
    with FeatureRecorder(model, ["blocks.0.0"]) as recorder:
        model(images)
        found = recorder.take()
    torch.testing.assert_close(found["blocks.0.0"], model.blocks[0][0](images))
    assert (found["blocks.0.0"] < 0).any()


def test_a_record_of_inference_mode_can_be_saved_for_backward() -> None:
    model = Net()
    with FeatureRecorder(model, ["blocks.0"]) as recorder:
        with torch.inference_mode():
            model(torch.randn(4, 6))
        found = recorder.take()
    assert not found["blocks.0"].is_inference()


def test_a_module_that_runs_twice_counts_with_its_first_output() -> None:
    layer = nn.Linear(6, 6)
    model, images = nn.Sequential(layer, layer), torch.randn(4, 6)
    with FeatureRecorder(model, ["0"]) as recorder:
        model(images)
        found = recorder.take()
    torch.testing.assert_close(found["0"], layer(images))


def test_hooks_are_gone_on_exit_even_after_an_error() -> None:
    student, teacher = Net(0), Net(1)
    features = FeatureDistillation(student, teacher, ["blocks.0"], loss="mse")
    with features.recording():
        assert hooks_of(student) == hooks_of(teacher) == 2
    assert hooks_of(student) == hooks_of(teacher) == 0
    with pytest.raises(ZeroDivisionError), features.recording():
        raise ZeroDivisionError
    assert hooks_of(student) == hooks_of(teacher) == 0


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_checkpointed_blocks_get_the_gradient_of_plain_ones(
    make_vit: Callable[..., VisionTransformer], name: str
) -> None:
    teacher, plain = make_vit(seed=1), make_vit(seed=0)
    checkpointed = copy.deepcopy(plain)
    checkpointed.set_grad_checkpointing(True)
    batches = torch.randn(2, 4, 1, 8, 8)
    losses = []
    for model in (plain, checkpointed):
        objective = Objective(
            TrainSettings(feature_loss_weight=2.0, feature_loss=name),
            teacher=teacher,
            student=model.train(),
            feature_points=("blocks.0", "blocks.1"),
        )
        with objective.recording():
            for images in batches:  # the second follows the first one's recomputation
                terms = objective(model(images), images, torch.zeros(4, dtype=torch.long))
                terms.total.backward()
        losses.append(terms.feature)
    torch.testing.assert_close(losses[0], losses[1])
    for (path, one), two in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=path)
    assert plain.get_submodule("blocks.0.attn.qkv").weight.grad.abs().sum() > 0


def test_the_objective_adds_the_weighted_feature_loss_to_the_others() -> None:
    student, teacher, images, labels = Net(0), Net(1), torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    settings = TrainSettings(task_loss_weight=0.5, distill_loss_weight=2.0, feature_loss_weight=3.0)
    objective = Objective(settings, teacher=teacher, student=student, feature_points=("blocks.0", "blocks.1"))
    with objective.recording():
        terms = objective(student(images), images, labels)
    first = [model.blocks[0](images).detach().numpy() for model in (student, teacher)]
    second = [
        model.blocks[1](torch.from_numpy(x)).detach().numpy()
        for model, x in zip((student, teacher), first, strict=True)
    ]
    expected = (mse_by_hand(*first) + mse_by_hand(*second)) / 2
    assert terms.feature is not None
    assert terms.distill is not None
    assert terms.feature.item() == pytest.approx(expected, rel=1e-4)
    total = 0.5 * terms.task + 2.0 * terms.distill + 3.0 * terms.feature
    torch.testing.assert_close(terms.total, total)
    assert teacher.calls == 1


def test_features_without_points_are_refused_and_without_a_teacher_are_off() -> None:
    with pytest.raises(OptionError, match=r"feature_loss_weight = 1.0: no points are given"):
        Objective(FEATURES_ALONE, teacher=Net(), student=Net())
    objective = Objective(FEATURES_ALONE, student=Net())
    with objective.recording():
        assert objective(torch.zeros(2, 3), torch.zeros(2, 6), torch.zeros(2, dtype=torch.long)).feature is None


@pytest.mark.parametrize(
    ("kind", "paths", "expected"),
    [
        ("blocks", ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn"], ("blocks.0", "blocks.1")),
        ("blocks", ["blocks.1.attn.qkv", "head"], ("blocks.1.attn",)),
        ("sites", ["blocks.0.attn", "blocks.0.mlp", "head"], ("blocks.0.attn", "blocks.0.mlp", "head")),
        ("sites", ["blocks.0.attn", "blocks.0.attn.new"], ("blocks.0.attn",)),
    ],
)
def test_points_are_the_sites_or_the_modules_that_hold_them(
    make_vit: Callable[..., VisionTransformer], kind: str, paths: list[str], expected: tuple[str, ...]
) -> None:
    student, teacher = make_vit(seed=0).train(), make_vit(seed=1).eval()
    student.blocks[0].attn.add_module("new", nn.Linear(1, 1))
    assert feature_points(student, teacher, paths, images=torch.zeros(2, 1, 8, 8), kind=kind) == expected
    assert student.training
    assert not teacher.training
    assert hooks_of(student) == hooks_of(teacher) == 0


def test_what_gives_no_tensor_per_image_of_the_same_shape_is_no_point() -> None:
    paths, images = ["attn", "inner", "merged", "idle", "head"], torch.zeros(2, 5, 4)
    assert feature_points(Mixed(4), Mixed(4), paths, images=images, kind="sites") == ("inner", "head")
    assert feature_points(Mixed(4), Mixed(3), paths, images=images, kind="sites") == ("head",)


@pytest.mark.parametrize(("kind", "paths"), [("blocks", ["head"]), ("sites", [""]), ("sites", [])])
def test_a_stage_without_points_is_refused_with_the_way_out(kind: str, paths: list[str]) -> None:
    other = {"blocks": "sites", "sites": "blocks"}[kind]
    with pytest.raises(OptionError, match=f'feature_points = "{kind}" .* Try feature_points = "{other}"'):
        feature_points(Net(), Net(), paths, images=torch.zeros(2, 6), kind=kind)


def test_training_on_features_alone_brings_the_students_to_the_teachers() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(64, 6), torch.zeros(64, dtype=torch.long)
    student, teacher = Net(0), Net(1)
    head = student.head.weight.detach().clone()
    batches = list(zip(images.split(16), labels.split(16), strict=True))
    run = Trainer(
        student,
        Loaders(train=batches, val=batches),
        settings=TrainSettings(
            epochs=30,
            lr=2e-2,
            weight_decay=0.0,
            task_loss_weight=0.0,
            distill_loss_weight=0.0,
            feature_loss_weight=1.0,
            grad_accum_steps=2,
        ),
        num_classes=3,
        device=CPU,
        teacher=teacher,
        feature_points=("blocks.0", "blocks.1"),
    )
    fit = run.fit()
    first, last = (fit.epochs[i].feature_loss for i in (0, -1))
    assert first is not None
    assert last is not None
    assert last < 0.3 * first
    assert fit.epochs[0].train_loss == pytest.approx(first)
    assert fit.epochs[0].distill_loss is None
    assert teacher.calls == 30 * 4  # once for each micro-batch
    torch.testing.assert_close(student.head.weight, head)
    assert hooks_of(student) == hooks_of(teacher) == 0


def test_the_figure_of_an_epoch_is_the_mean_over_the_images_of_its_micro_batches() -> None:
    images, labels = torch.randn(12, 6), torch.zeros(12, dtype=torch.long)
    student, teacher = Net(0), Net(1)
    batches = list(zip(images.split([8, 4]), labels.split([8, 4]), strict=True))
    start = [[model.blocks[0](part).detach().numpy() for model in (student, teacher)] for part, _ in batches]
    run = Trainer(
        student,
        Loaders(train=batches, val=batches),
        settings=TrainSettings(epochs=1, distill_loss_weight=0.0, feature_loss_weight=1.0, grad_accum_steps=2),
        num_classes=3,
        device=CPU,
        teacher=teacher,
        feature_points=("blocks.0",),
    )
    (report,) = run.fit().epochs
    assert report.feature_loss == pytest.approx((8 * mse_by_hand(*start[0]) + 4 * mse_by_hand(*start[1])) / 12)


@pytest.mark.parametrize(
    ("key", "wanted"), [("feature_loss", "'mse' or 'kernel'"), ("feature_points", "'blocks' or 'sites'")]
)
def test_an_unknown_choice_is_refused_with_the_known_ones(key: str, wanted: str) -> None:
    with pytest.raises(OptionError, match=f"setting \"{key}\": wanted {wanted}, got 'layers'"):
        resolve_settings({key: "layers"})
