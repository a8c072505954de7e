"""What each way of starting adders from a trained CNN keeps of its accuracy, before any training.

python benchmarks/adder_start.py runs/dense hfds/PATH-TO/cifar10
"""

import argparse
from pathlib import Path

import torch

import reparam
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.settings import TrainSettings
from reparam.train.data import first_images, image_format, make_loaders
from reparam.train.evaluate import evaluate_model
from reparam.train.fitting import fit_model_, reestimate_norms_

CPU = torch.device("cpu")
IMAGES = 512
SETTINGS = TrainSettings(batch_size=128, validation_batch_size=500, workers=1, color_jitter=0.0, crop_padding=4)


def main() -> None:
    """Prints top-1 on the whole test split for each start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run that holds the trained dense model")
    parser.add_argument("dataset", help="such as hfds/PATH-TO/cifar10, with splits train and test")
    parser.add_argument("--steps", type=int, nargs="*", default=[0, 100, 300])
    arguments = parser.parse_args()
    dense = reparam.load(arguments.run)
    data = DataSettings(dataset=arguments.dataset, train_split="train", val_split="test")
    image = image_format(data, input_size=(3, 32, 32), model=dense.pretrained_cfg)
    loaders = make_loaders(data, SETTINGS, image=image, num_classes=dense.num_classes, device=CPU)
    torch.manual_seed(0)
    calibration = first_images(loaders.train, IMAGES, device=CPU)

    def converted(*overrides: str) -> torch.nn.Module:
        torch.manual_seed(0)
        changes = [f"stage.0.rule.2.{override}" for override in overrides]
        return reparam.convert(dense, "addernet", example_input=calibration[:2], overrides=changes).model

    def show(name: str, model: torch.nn.Module) -> None:
        print(f"{name:<64}{evaluate_model(model, loaders.val, CPU).top1:6.2f} %", flush=True)

    show("dense", dense)
    for name, overrides in (("random, norms re-estimated", ["init=normal"]), ("slopes for assumed inputs", [])):
        model = converted(*overrides)
        reestimate_norms_(model, [calibration])
        show(name, model)
    for steps in arguments.steps:
        model = converted()
        fitted = fit_model_(model, dense, calibration, steps=steps)
        mean = sum(fitted.correlations.values()) / len(fitted.correlations)
        show(f"slopes for real inputs, {steps} steps, correlation {mean:.2f}", model)


if __name__ == "__main__":
    main()
