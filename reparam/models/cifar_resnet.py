"""ResNets for 32x32 images as in the original paper's CIFAR part, which timm lacks: the models that AdderNet,
DeepShift and ShiftAddNet report.

A 3x3 stem, three groups of n basic blocks at 16, 32 and 64 channels, depth 6n + 2; shortcuts have no parameters: a
shortcut that halves the image takes every other pixel and adds zero channels (option A).
Source: He et al., arXiv:1512.03385, section 4.2.  Shapes: images (B, 3, 32, 32) -> logits (B, K).
"""

import statistics
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

_WIDTHS = (16, 32, 64)
#: Of CIFAR-10's training images.
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class BasicBlock(nn.Module):
    """y = relu(x' + bn2(conv2(relu(bn1(conv1(x)))))), x' the shortcut; the first convolution may halve the image."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.stride = 1 if in_channels == channels else 2
        self.added = channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, I, H, W) to (B, O, H / stride, W / stride)."""
        out = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        if self.added:
            before = self.added // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added - before))
        result: Tensor = self.act2(out + x)
        return result


class CifarResNet(nn.Module):
    """A ResNet of depth 6 * blocks + 2 with the methods that timm's models have for features and heads."""

    def __init__(self, blocks: int, *, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, _WIDTHS[-1]
        self.pretrained_cfg = {
            "architecture": f"cifar_resnet{6 * blocks + 2}",
            "input_size": (in_chans, 32, 32),
            "num_classes": num_classes,
            "mean": _of_channels(_MEAN, in_chans),
            "std": _of_channels(_STD, in_chans),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "first_conv": "conv1",
            "classifier": "fc",
        }
        self.conv1 = nn.Conv2d(in_chans, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.act1 = nn.ReLU(inplace=True)
        for number, width in enumerate(_WIDTHS, start=1):
            first = _WIDTHS[max(0, number - 2)]
            layers = [BasicBlock(first if block == 0 else width, width) for block in range(blocks)]
            self.add_module(f"layer{number}", nn.Sequential(*layers))
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.reset_classifier(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """Puts a new last layer; 0 classes leave the pooled features (B, 64)."""
        if global_pool != "avg":
            raise ValueError(f'global_pool: wanted "avg", got "{global_pool}"')
        self.num_classes = num_classes
        self.fc: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Returns the last map (B, 64, H / 4, W / 4)."""
        x = self.act1(self.bn1(self.conv1(x)))
        for number in range(1, len(_WIDTHS) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Returns logits (B, K), or the pooled features (B, 64)."""
        pooled: Tensor = self.global_pool(x).flatten(1)
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, K) of images (B, C, H, W)."""
        return self.forward_head(self.forward_features(x))


def _of_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values if channels == len(values) else (statistics.fmean(values),) * channels


def _factory(depth: int) -> Callable[..., CifarResNet]:
    def build(**options: Any) -> CifarResNet:
        return CifarResNet((depth - 2) // 6, **options)

    return build


#: By the names under which the command line knows them.
CIFAR_RESNETS: dict[str, Callable[..., CifarResNet]] = {
    f"cifar_resnet{depth}": _factory(depth) for depth in (20, 32, 44, 56, 110)
}
