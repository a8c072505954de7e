"""Models that are hard to cut in two, and what both halves of the tests need of them; images are 3x16x16."""

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn

from reparam.models.cifar_resnet import CifarResNet
from tests.pico import images


class Skipping(nn.Module):
    """The stem's output is added behind the blocks: between them there is no cut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.tail, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        return self.head(self.tail(self.second(self.first(stem).relu()).relu() + stem).mean((2, 3)))


class WritingInPlace(nn.Module):
    """Blocks that write to their own input, as pre-activation networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1)) for _ in range(3)))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class ReadingValues(nn.Module):
    """Takes one of two paths by a value."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 3)
        self.block = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if bool(x.mean() > 0):
            x = x + 1
        return self.head(self.block(x).mean((2, 3)))


def resnet() -> nn.Module:
    """Three blocks."""
    return CifarResNet(1, num_classes=3)


def timm_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A builder of one of timm's models with three classes."""
    return lambda: timm.create_model(name, num_classes=3, **options)


def lively(make: Callable[[], nn.Module]) -> nn.Module:
    """The model in eval mode with noise on every constant parameter and buffer that would hide what stands before."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
    return model


def batches(*sizes: int, side: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Batches of images and labels, all different."""
    return [
        (images(size, height=side, width=side, seed=i), torch.arange(size) % 3) for i, size in enumerate(sizes, start=1)
    ]
