import math

import numpy as np
import pytest
import torch
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from reparam.errors import TrainError
from reparam.recipe.settings import TrainSettings
from reparam.train.objective import Objective, distillation_loss


def kl_by_hand(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """T**2 * mean over rows of sum_k p_k * (ln p_k - ln q_k), in float64, written out."""
    total = 0.0
    for z, t in zip(student.astype(np.float64) / temperature, teacher.astype(np.float64) / temperature, strict=True):
        p = np.exp(t) / np.exp(t).sum()
        q = np.exp(z) / np.exp(z).sum()
        total += sum(p[k] * (math.log(p[k]) - math.log(q[k])) for k in range(len(p)))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_distillation_equals_the_formula_in_float64(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 7), 3 * torch.randn(5, 7)
    loss = distillation_loss(student, teacher, temperature=temperature)
    assert loss.item() == pytest.approx(kl_by_hand(student.numpy(), teacher.numpy(), temperature), rel=1e-5)


def test_distillation_gradient_is_t_times_the_difference_of_the_softmaxes() -> None:
    torch.manual_seed(1)
    student, teacher = torch.randn(4, 6, dtype=torch.float64, requires_grad=True), torch.randn(4, 6).double()
    distillation_loss(student, teacher, temperature=3.0).backward()
    expected = 3.0 * ((student / 3).softmax(-1) - (teacher / 3).softmax(-1)).detach() / 4
    torch.testing.assert_close(student.grad, expected, rtol=1e-5, atol=1e-7)


def test_distillation_from_itself_is_zero() -> None:
    logits = torch.randn(3, 4)
    assert distillation_loss(logits, logits, temperature=2.0).item() == pytest.approx(0, abs=1e-6)


def test_a_teacher_of_other_classes_is_refused_with_both_counts() -> None:
    with pytest.raises(TrainError, match="the teacher has 1000 outputs and the model 10"):
        distillation_loss(torch.zeros(2, 10), torch.zeros(2, 1000), temperature=2.0)


def test_the_total_is_the_weighted_sum_of_its_terms() -> None:
    settings = TrainSettings(
        task_loss_weight=0.5, distill_loss_weight=2.0, balance_loss_weight=0.1, kd_temperature=3.0, smoothing=0.0
    )
    torch.manual_seed(0)
    teacher, images, logits = nn.Linear(6, 4), torch.randn(5, 6), torch.randn(5, 4)
    targets, balance = torch.tensor([0, 1, 2, 3, 0]), torch.tensor(0.7)
    terms = Objective(settings, teacher=teacher)(logits, images, targets, balance=balance)
    task = nn.functional.cross_entropy(logits, targets)
    distill = kl_by_hand(logits.numpy(), teacher(images).detach().numpy(), 3.0)
    assert terms.task.item() == pytest.approx(task.item())
    assert terms.distill is not None
    assert terms.distill.item() == pytest.approx(distill, rel=1e-5)
    assert terms.total.item() == pytest.approx(0.5 * task.item() + 2.0 * distill + 0.1 * 0.7, rel=1e-5)


def test_smoothed_labels_cost_what_timm_says() -> None:
    logits, targets = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    terms = Objective(TrainSettings(smoothing=0.1))(logits, torch.empty(0), targets)
    torch.testing.assert_close(terms.total, LabelSmoothingCrossEntropy(0.1)(logits, targets))


def test_mixed_labels_cost_what_timm_says_and_are_not_smoothed_twice() -> None:
    logits, targets = torch.randn(5, 4), torch.rand(5, 4).softmax(-1)
    terms = Objective(TrainSettings(smoothing=0.1, mixup=0.8))(logits, torch.empty(0), targets)
    torch.testing.assert_close(terms.total, SoftTargetCrossEntropy()(logits, targets))


def test_the_teacher_is_frozen_in_eval_mode_and_the_student_alone_gets_a_gradient() -> None:
    teacher = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.9)).train()
    student, images = nn.Linear(6, 4), torch.randn(8, 6)
    objective = Objective(TrainSettings(), teacher=teacher)
    objective(student(images), images, torch.zeros(8, dtype=torch.long)).total.backward()
    assert not teacher.training
    assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())
    assert student.weight.grad is not None


def test_without_weight_the_teacher_is_never_run() -> None:
    class Unrunnable(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise AssertionError("the teacher ran")

    objective = Objective(TrainSettings(distill_loss_weight=0.0), teacher=Unrunnable())
    terms = objective(torch.zeros(2, 3), torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))
    assert terms.distill is None
    assert terms.balance is None
