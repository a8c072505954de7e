"""The training objective, a weighted sum of four terms.

    L = w_task * CE(z, y) + w_distill * T**2 * KL(softmax(t / T) || softmax(z / T)) + w_feature * feature
        + w_balance * balance

z are the student's logits, t the teacher's, T the temperature; T**2 keeps the gradient's size when T changes
(Hinton et al., arXiv:1503.02531). Shapes: z, t (B, K); y (B,) indices or (B, K) probabilities.

The teacher runs in every step. Its logits are not cached: only images that come back unchanged could be looked up
(`no_aug`, without mixup), and there it takes about a fifth of the student's step (benchmarks/training_costs.py).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reparam.errors import OptionError, TrainError
from reparam.recipe.settings import TrainSettings
from reparam.train.features import FeatureDistillation


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The value of the objective and of each of its unweighted terms: scalars; a term that is off is None."""

    total: Tensor
    task: Tensor
    distill: Tensor | None = None
    feature: Tensor | None = None
    balance: Tensor | None = None


class Objective:
    """Computes `Terms` of one micro-batch. The teacher is set to eval, frozen, and run without a gradient graph.

    Args:
        settings: of the stage.
        teacher: the dense original, or None for no distillation.
        student: the model in training, whose features are distilled.
        feature_points: where its features are compared with the teacher's.
    Raises:
        OptionError: features are to be distilled and there are no points.
    """

    def __init__(
        self,
        settings: TrainSettings,
        *,
        teacher: nn.Module | None = None,
        student: nn.Module | None = None,
        feature_points: Sequence[str] = (),
    ) -> None:
        self.settings = settings
        is_taught = settings.distill_loss_weight or settings.feature_loss_weight
        self.teacher = teacher.eval().requires_grad_(False) if teacher and is_taught else None
        self._features: FeatureDistillation | None = None
        if self.teacher is not None and settings.feature_loss_weight:
            if student is None or not feature_points:
                raise OptionError(
                    f"feature_loss_weight = {settings.feature_loss_weight}: no points are given where features could "
                    "be compared; give some, or set feature_loss_weight to 0"
                )
            self._features = FeatureDistillation(student, self.teacher, feature_points, loss=settings.feature_loss)
        # Mixup smooths the labels itself; cross-entropy takes indices and probabilities alike.
        smoothing = 0.0 if settings.mixup or settings.cutmix else settings.smoothing
        self._criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)

    def recording(self) -> AbstractContextManager[None]:
        """Where the student's forward and the call of the objective belong; outside, no features are recorded."""
        return nullcontext() if self._features is None else self._features.recording()

    def __call__(self, logits: Tensor, images: Tensor, targets: Tensor, *, balance: Tensor | None = None) -> Terms:
        """Judges logits (B, K), computed from images (B, C, H, W), by targets; `balance` is the routers' loss.

        Features are those of the student's last forward, which must be the one that made the logits.
        """
        settings = self.settings
        task = self._criterion(logits.float(), targets)
        total = settings.task_loss_weight * task
        distill = feature = None
        if self.teacher is not None:
            taught = self._teach(images)
            if settings.distill_loss_weight:
                distill = distillation_loss(logits, taught, temperature=settings.kd_temperature)
                total = total + settings.distill_loss_weight * distill
            if self._features is not None:
                feature = self._features.loss()
                total = total + settings.feature_loss_weight * feature
        if balance is not None:
            total = total + settings.balance_loss_weight * balance
        return Terms(total=total, task=task, distill=distill, feature=feature, balance=balance)

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
