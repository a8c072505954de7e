"""The training objective, a weighted sum of three terms.

    L = w_task * CE(z, y) + w_distill * T**2 * KL(softmax(t / T) || softmax(z / T)) + w_balance * balance

z are the student's logits, t the teacher's, T the temperature; T**2 keeps the gradient's size when T changes
(Hinton et al., arXiv:1503.02531). Shapes: z, t (B, K); y (B,) indices or (B, K) probabilities.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reparam.errors import TrainError
from reparam.recipe.settings import TrainSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The value of the objective and of each of its unweighted terms: scalars; a term that is off is None."""

    total: Tensor
    task: Tensor
    distill: Tensor | None = None
    balance: Tensor | None = None


class Objective:
    """Computes `Terms` of one micro-batch. The teacher is set to eval, frozen, and run without a gradient graph."""

    def __init__(self, settings: TrainSettings, *, teacher: nn.Module | None = None) -> None:
        self.settings = settings
        self.teacher = teacher.eval().requires_grad_(False) if teacher and settings.distill_loss_weight else None
        # Mixup smooths the labels itself; cross-entropy takes indices and probabilities alike.
        smoothing = 0.0 if settings.mixup or settings.cutmix else settings.smoothing
        self._criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)

    def __call__(self, logits: Tensor, images: Tensor, targets: Tensor, *, balance: Tensor | None = None) -> Terms:
        """Judges logits (B, K), computed from images (B, C, H, W), by targets; `balance` is the routers' loss."""
        settings = self.settings
        task = self._criterion(logits.float(), targets)
        total = settings.task_loss_weight * task
        distill = None
        if self.teacher is not None:
            distill = distillation_loss(logits, self._teach(images), temperature=settings.kd_temperature)
            total = total + settings.distill_loss_weight * distill
        if balance is not None:
            total = total + settings.balance_loss_weight * balance
        return Terms(total=total, task=task, distill=distill, balance=balance)

    def _teach(self, images: Tensor) -> Tensor:
        assert self.teacher is not None
        with torch.inference_mode():
            logits: Tensor = self.teacher(images)
        # A tensor born in inference mode cannot be saved for backward; its copy can.
        return logits.clone()


def distillation_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Returns T**2 * KL(teacher || student) at temperature T, the mean over the batch, a scalar.

    Raises:
        TrainError: the two have different classes.
    """
    if student.shape != teacher.shape:
        raise TrainError(
            f"the teacher has {teacher.shape[-1]} outputs and the model {student.shape[-1]}: they must answer the same "
            "question. Convert from a dense model with the right --num-classes, or set distill_loss_weight to 0."
        )
    log_student = nn.functional.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = nn.functional.log_softmax(teacher.float() / temperature, dim=-1)
    divergence = nn.functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2
