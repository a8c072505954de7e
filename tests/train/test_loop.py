import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from reparam.errors import DataError, OptionError
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.settings import TrainSettings
from reparam.train.data import Loaders, image_format, make_loaders
from reparam.train.evaluate import evaluate_model
from reparam.train.loop import Trainer
from reparam.train.progress import StepReport
from tests.train.loops import CPU, PLAIN, Notes, Routed, fixed, linear_problem, loaders, trainer
from tests.train.pico import pico_vit


def test_two_epochs_learn_the_images(make_vit: Callable[..., VisionTransformer], data: DataSettings) -> None:
    fit = trainer(make_vit(), data, replace(PLAIN, epochs=3)).fit()
    assert fit.epochs[-1].train_loss < fit.epochs[0].train_loss
    assert fit.best.loss < fit.before.loss
    assert fit.best.top1 > 90


def test_accumulated_micro_batches_step_like_one_batch() -> None:
    images, labels = linear_problem(16)
    settings = TrainSettings(
        epochs=1, opt="momentum", lr=0.5, momentum=0.0, clip_grad=None, distill_loss_weight=0.0, workers=0
    )
    torch.manual_seed(0)
    whole = nn.Linear(6, 4)
    split, uneven = copy.deepcopy(whole), copy.deepcopy(whole)
    cuts: list[tuple[nn.Module, list[int], int]] = [(whole, [16], 1), (split, [8, 8], 2), (uneven, [8, 5, 3], 4)]
    for model, sizes, steps in cuts:
        batches = zip(images.split(sizes), labels.split(sizes), strict=True)
        chosen = replace(settings, grad_accum_steps=steps)
        done = Trainer(model, fixed(*batches), settings=chosen, num_classes=4, device=CPU)
        done.fit()
        assert done.updates == 1
    for model in (split, uneven):
        torch.testing.assert_close(model.weight, whole.weight)
        torch.testing.assert_close(model.bias, whole.bias)


def test_the_step_is_the_gradient_step_of_the_smoothed_loss() -> None:
    images, labels = linear_problem(16)
    model = nn.Linear(6, 4)
    expected = copy.deepcopy(model)
    settings = TrainSettings(
        epochs=1,
        opt="momentum",
        lr=0.5,
        momentum=0.0,
        weight_decay=0.0,
        clip_grad=None,
        distill_loss_weight=0.0,
        smoothing=0.1,
    )
    Trainer(model, fixed((images, labels)), settings=settings, num_classes=4, device=CPU).fit()
    nn.functional.cross_entropy(expected(images), labels, label_smoothing=0.1).backward()
    for trained, start in zip(model.parameters(), expected.parameters(), strict=True):
        assert start.grad is not None
        torch.testing.assert_close(trained, start - 0.5 * start.grad)


def test_a_remainder_of_micro_batches_is_a_step_of_its_own(
    make_vit: Callable[..., VisionTransformer], data: DataSettings
) -> None:
    run = trainer(make_vit(), data, replace(PLAIN, epochs=1, grad_accum_steps=4))  # 36 images: 6 batches, 4 + 2
    run.fit()
    assert (run.schedule.steps, run.updates) == (2, 2)


def test_the_gradient_is_clipped_to_the_norm() -> None:
    images, labels = linear_problem(16)
    model = nn.Linear(6, 4)
    start = [p.detach().clone() for p in model.parameters()]
    settings = TrainSettings(
        epochs=1, opt="momentum", lr=1.0, momentum=0.0, weight_decay=0.0, clip_grad=1e-3, distill_loss_weight=0.0
    )
    Trainer(model, fixed((100 * images, labels)), settings=settings, num_classes=4, device=CPU).fit()
    moved = torch.cat([(p - q).flatten() for p, q in zip(model.parameters(), start, strict=True)])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(
    make_vit: Callable[..., VisionTransformer], data: DataSettings, workers: int
) -> None:
    settings = replace(PLAIN, epochs=1, no_aug=False, workers=workers)
    one, two, three = make_vit(), make_vit(), make_vit()
    trainer(one, data, settings).fit()
    trainer(two, data, settings).fit()
    trainer(three, data, replace(settings, seed=7)).fit()
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(one.parameters(), three.parameters(), strict=True))


def test_the_teacher_and_its_modes_are_left_alone(
    make_vit: Callable[..., VisionTransformer], data: DataSettings
) -> None:
    teacher = make_vit(seed=5).eval()
    before = copy.deepcopy(teacher.state_dict())
    fit = trainer(make_vit(), data, replace(PLAIN, epochs=1, distill_loss_weight=1.0), teacher=teacher).fit()
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert fit.epochs[0].distill_loss is not None
    assert fit.epochs[0].train_loss == pytest.approx(fit.epochs[0].task_loss + fit.epochs[0].distill_loss)


def test_the_best_model_and_the_newest_are_saved_as_they_come(data: DataSettings) -> None:
    saved: list[tuple[bool, float]] = []
    model = Routed()
    held = loaders(data)

    def save(kept: nn.Module, *, is_best: bool) -> None:
        assert kept is model
        saved.append((is_best, evaluate_model(kept, held.val, CPU).top1))

    fit = Trainer(model, held, settings=replace(PLAIN, epochs=4, lr=0.02), num_classes=3, device=CPU, save=save).fit()
    assert len(saved) == 5
    assert saved[0] == (True, fit.before.top1)
    assert [top1 for is_best, top1 in saved if is_best][-1] == fit.best.top1
    assert [report.is_best for report in fit.epochs] == [is_best for is_best, _ in saved[1:]]


def test_a_model_that_training_only_harms_keeps_its_start_as_the_best() -> None:
    images, labels = torch.eye(4).repeat(4, 1), torch.arange(4).repeat(4)
    model = nn.Linear(4, 4)
    model.weight.data, model.bias.data = 9 * torch.eye(4), torch.zeros(4)
    wrong = Loaders(train=[(images, (labels + 1) % 4)], val=[(images, labels)])
    fit = Trainer(model, wrong, settings=replace(PLAIN, opt="momentum", lr=0.1), num_classes=4, device=CPU).fit()
    assert fit.best == fit.before
    assert fit.best_epoch == 0


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("make", [pico_vit, Routed])
def test_a_compiled_model_trains_like_one_that_is_not(
    data: DataSettings, make: Callable[[], nn.Module], backend: str
) -> None:
    settings = replace(PLAIN, epochs=1, balance_loss_weight=0.1)
    plain, compiled = make(), make()
    one, other = (
        trainer(model, data, replace(settings, torchcompile=way)).fit()
        for model, way in ((plain, None), (compiled, backend))
    )
    assert other.epochs[0].train_loss == pytest.approx(one.epochs[0].train_loss, rel=1e-4)
    balances = [fit.epochs[0].balance_loss or 0.0 for fit in (one, other)]
    assert balances[1] == pytest.approx(balances[0], rel=1e-4)
    assert bool(balances[0]) is (make is Routed)
    assert other.epochs[0].mult_share.keys() == one.epochs[0].mult_share.keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_an_interrupt_leaves_the_saves_of_the_epochs_before(data: DataSettings) -> None:
    saved: list[int] = []

    class Impatient(Notes):
        def step(self, step: StepReport) -> None:
            if step.epoch == 2:
                raise KeyboardInterrupt

    run = trainer(Routed(), data, progress=Impatient(), save=lambda m, *, is_best: saved.append(run.epoch))
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert len(saved) == 2  # before the first epoch, and after it


def test_the_moving_average_is_what_is_evaluated_and_saved(
    make_vit: Callable[..., VisionTransformer], data: DataSettings
) -> None:
    kept: list[nn.Module] = []
    model = make_vit()
    run = trainer(model, data, replace(PLAIN, epochs=1, model_ema=True), save=lambda m, *, is_best: kept.append(m))
    fit = run.fit()
    assert kept[-1] is not model
    assert not torch.equal(kept[-1].get_parameter("head.weight"), model.head.weight)
    again = evaluate_model(kept[-1], run.loaders.val, CPU)
    assert again.loss == pytest.approx(fit.epochs[0].evaluation.loss)


def test_steps_are_told_at_each_interval_and_at_the_end_of_the_epoch(data: DataSettings) -> None:
    notes = Notes()
    trainer(Routed(), data, replace(PLAIN, log_interval=4), progress=notes).fit()
    assert [(s.epoch, s.step, s.steps) for s in notes.steps] == [(1, 4, 6), (1, 6, 6), (2, 4, 6), (2, 6, 6)]
    assert notes.steps[-1].seconds_left == 0
    assert all(0 <= s.top1 <= 100 and s.images_per_second > 0 for s in notes.steps)
    assert all(later.lr < earlier.lr for earlier, later in pairwise(notes.steps))


def test_mixup_trains_and_counts_accuracy_by_the_labels(
    make_vit: Callable[..., VisionTransformer], data: DataSettings
) -> None:
    fit = trainer(make_vit(), data, replace(PLAIN, mixup=0.8, cutmix=1.0)).fit()
    assert fit.epochs[1].train_loss < 2
    assert 0 <= fit.epochs[1].train_top1 <= 100


@pytest.mark.parametrize("change", [{"aa": "rand-m9-mstd0.5"}, {"drop_path": 0.5}])
def test_rand_augment_and_stochastic_depth_make_another_training_and_no_other_evaluation(
    data: DataSettings, change: dict[str, Any]
) -> None:
    augmented = replace(PLAIN, no_aug=False)
    plain, changed = (trainer(pico_vit(drop_path_rate=0.1), data, replace(augmented, **own)) for own in ({}, change))
    first, second = plain.fit(), changed.fit()
    assert second.before.loss == first.before.loss
    assert second.epochs[0].train_loss != pytest.approx(first.epochs[0].train_loss, rel=1e-3)
    assert second.epochs[1].train_loss < second.epochs[0].train_loss


def test_channels_last_is_the_same_training_in_another_layout(data: DataSettings) -> None:
    runs = [trainer(pico_vit(), data, replace(PLAIN, channels_last=on)) for on in (False, True)]
    curves = [[epoch.train_loss for epoch in run.fit().epochs] for run in runs]
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    kernels = [module.weight for module in runs[1].model.modules() if isinstance(module, nn.Conv2d)]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_autocast_trains_and_leaves_the_model_in_full_precision_with_its_own_forward(
    make_vit: Callable[..., VisionTransformer], data: DataSettings
) -> None:
    model = make_vit()
    trainer(model, data, replace(PLAIN, amp=True)).fit()
    assert "forward" not in vars(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model(torch.zeros(1, 1, 8, 8)).dtype == torch.float32
    trainer(make_vit(), data, PLAIN).fit()  # the precision of one stage does not bind the next


def test_checkpointed_gradients_equal_plain_ones(
    make_vit: Callable[..., VisionTransformer], data: DataSettings
) -> None:
    plain, recomputed = make_vit(), make_vit()
    trainer(plain, data, replace(PLAIN, epochs=1)).fit()
    trainer(recomputed, data, replace(PLAIN, epochs=1, grad_checkpointing=True)).fit()
    for p, q in zip(plain.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_no_epochs_is_an_evaluation_and_a_save(data: DataSettings) -> None:
    saved: list[bool] = []
    fit = trainer(Routed(), data, replace(PLAIN, epochs=0), save=lambda m, *, is_best: saved.append(is_best)).fit()
    assert fit.best == fit.before
    assert fit.epochs == ()
    assert saved == [True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sched": "cosinus"}, 'sched = "cosinus"'),
        ({"opt": "adamv"}, 'unknown optimiser "adamv"'),
        ({"opt": "sgd", "momentum": 0.0}, 'opt = "sgd": Nesterov'),
        ({"drop_path": 0.1}, "built without stochastic depth"),
        ({"grad_checkpointing": True}, "Routed does not offer it"),
        ({"mixup": 0.5, "batch_size": 5}, "batch_size must be even, got 5"),
        ({"amp": True, "amp_dtype": "float16"}, "needs a GPU"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_the_model_or_timm_does_not_take_are_option_errors(
    data: DataSettings, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        trainer(Routed(), data, replace(PLAIN, **change))


def test_no_batches_is_a_data_error() -> None:
    images, labels = linear_problem(8)
    empty = Loaders(train=[], val=[(images, labels)])
    with pytest.raises(DataError, match="no full batch"):
        Trainer(nn.Linear(6, 4), empty, settings=PLAIN, num_classes=4, device=CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_trains_on_a_gpu(
    make_vit: Callable[..., VisionTransformer], data: DataSettings, precision: str
) -> None:
    device, settings = torch.device("cuda"), replace(PLAIN, epochs=3, amp=True, amp_dtype=precision)
    image = image_format(data, input_size=(1, 8, 8))
    held = make_loaders(data, settings, image=image, num_classes=3, device=device)
    fit = Trainer(make_vit(), held, settings=settings, num_classes=3, device=device).fit()
    assert fit.best.device == "cuda"
    assert fit.best.loss < fit.before.loss
