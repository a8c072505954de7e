"""What tests of the training loop share: trainers on small data, and models whose steps can be computed by hand."""

from typing import Any

import torch
from torch import Tensor, nn

from reparam.ops.routing import Router
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.settings import TrainSettings
from reparam.train.data import Loaders, image_format, make_loaders
from reparam.train.loop import Trainer
from reparam.train.progress import EpochReport, Silent, StepReport

CPU = torch.device("cpu")
PLAIN = TrainSettings(epochs=2, batch_size=6, workers=0, lr=3e-3, no_aug=True, distill_loss_weight=0.0)


class Notes(Silent):
    """Keeps every report."""

    def __init__(self) -> None:
        self.steps: list[StepReport] = []
        self.epochs: list[EpochReport] = []

    def step(self, step: StepReport) -> None:
        self.steps.append(step)

    def epoch_finished(self, epoch: EpochReport) -> None:
        self.epochs.append(epoch)


class Routed(nn.Module):
    """A linear model of (B, 1, 8, 8) images behind a router."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router, self.head = Router(64, init="normal"), nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(1)
        logits: Tensor = self.head(tokens * self.router(tokens).gate)
        return logits


def loaders(data: DataSettings, settings: TrainSettings = PLAIN) -> Loaders:
    image = image_format(data, input_size=(1, 8, 8))
    return make_loaders(data, settings, image=image, num_classes=3, device=CPU)


def trainer(model: nn.Module, data: DataSettings, settings: TrainSettings = PLAIN, **options: Any) -> Trainer:
    return Trainer(model, loaders(data, settings), settings=settings, num_classes=3, device=CPU, **options)


def fixed(*batches: tuple[Tensor, Tensor]) -> Loaders:
    """Loaders that give the same batches each epoch, for training and for evaluation."""
    return Loaders(train=list(batches), val=list(batches))


def linear_problem(images: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(images, 6, generator=generator), torch.randint(4, (images,), generator=generator)
