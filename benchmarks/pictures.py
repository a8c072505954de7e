"""What accuracy benchmarks share: a model of a checkpoint, images to measure it on, and images to calibrate it with."""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import reparam
from reparam.api.evaluate import format_of
from reparam.checkpoint.record import read_record
from reparam.train.data import make_eval_loader, sample_images
from reparam.train.regime import count_outputs

Pictures = list[tuple[Tensor, Tensor]]
_BATCH = 250


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the checkpoint and where images come from."""
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data-dir")
    parser.add_argument("--dataset", default="")
    parser.add_argument("--val-split", default="validation")
    parser.add_argument("--mean", type=float, nargs="+")
    parser.add_argument("--std", type=float, nargs="+")
    parser.add_argument("--images", type=int, default=10_000, help="the first of the evaluation split")
    parser.add_argument("--calibration-images", type=int, default=128, help="spread over the training split")


def opened(asked: argparse.Namespace) -> tuple[nn.Module, Pictures, Tensor]:
    """The model in eval mode, batches of images and labels, and the calibration images."""
    data = reparam.DataSettings(
        data_dir=asked.data_dir, dataset=asked.dataset, val_split=asked.val_split, mean=asked.mean, std=asked.std
    )
    cpu = torch.device("cpu")
    model = reparam.load(asked.checkpoint).eval()
    image = format_of(read_record(asked.checkpoint), data)
    outputs = count_outputs(model, image.input_size, device=cpu)
    loader, _ = make_eval_loader(data, image=image, num_classes=outputs, batch_size=_BATCH, workers=0, device=cpu)
    held: Pictures = []
    for batch in loader:
        held.append(batch)
        if sum(len(labels) for _, labels in held) >= asked.images:
            break
    calibration, _ = sample_images(data, image=image, count=asked.calibration_images, device=cpu)
    return model, held, calibration


@torch.no_grad()
def top1(model: nn.Module, pictures: Pictures) -> float:
    """Top-1 in percent, in eval mode, on the device of the model."""
    model.eval()
    place = next(model.parameters()).device
    right = sum(int((model(x.to(place)).argmax(1).cpu() == y).sum()) for x, y in pictures)
    return 100 * right / sum(len(y) for _, y in pictures)
