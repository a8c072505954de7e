"""What training spends beside the student's own step: reading an image, seeding its augmentation, the teacher, and
how long each expert of a mixture takes."""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rounds import interleave, print_ratios
from step_time import step_of

import reparam
from reparam.cost.expert_latency import measure_experts
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.settings import TrainSettings
from reparam.train.data import image_format, make_loaders
from reparam.train.order import Place
from reparam.train.randomness import Draw, seed_generators

SIDE, CLASSES, IMAGES = 32, 10, 300
#: 1.2 M parameters, 64 tokens.
VIT = {"patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4, "class_token": False, "global_pool": "avg"}


def time_loading() -> None:
    """Milliseconds of one core for an image of 32x32 that is read, padded, cropped and flipped, and for its seeds."""
    with tempfile.TemporaryDirectory() as folder:
        _write_images(Path(folder))
        data = DataSettings(data_dir=folder, mean=(0.5,), std=(0.25,))
        settings = TrainSettings(batch_size=10, workers=0, crop_padding=4, color_jitter=0.0)
        image = image_format(data, input_size=(3, SIDE, SIDE))
        loaders = make_loaders(data, settings, image=image, num_classes=CLASSES, device=torch.device("cpu"))
        samples = loaders.train._loader.dataset
        print(f"reading and augmenting one image   {_each(lambda i: samples[Place(1, i % IMAGES)]):.3f} ms")
    print(f"seeding its augmentation alone     {_each(lambda i: seed_generators(42, Draw.IMAGE, 1, i)):.3f} ms")


def _write_images(folder: Path) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "validation"):
        for i in range(IMAGES):
            path = folder / split / str(i % CLASSES) / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            smooth = np.kron(random.integers(0, 256, (8, 8, 3)), np.ones((4, 4, 1)))
            Image.fromarray(smooth.astype(np.uint8)).save(path, quality=75)


def _each(run: Callable[[int], object], *, count: int = 1000) -> float:
    """Milliseconds of processor time for one call."""
    for i in range(50):
        run(i)
    start = time.process_time()
    for i in range(count):
        run(i)
    return (time.process_time() - start) / count * 1e3


def time_teacher(*, batch: int, rounds: int) -> None:
    """The dense forward beside a step of the student, which is dense, too, or converted."""
    x = torch.randn(batch, 3, SIDE, SIDE)
    made = {recipe: _small(recipe).model for recipe in ("none", "shiftaddvit")}
    teacher = _small("none").model.eval()
    sides: dict[str, Callable[[], object]] = {f"step, {recipe}": step_of(model, x) for recipe, model in made.items()}
    sides["teacher's forward"] = torch.inference_mode()(lambda: teacher(x))
    print_ratios(f"batch {batch}", interleave(sides, rounds=rounds, warmup=1), baseline="step, shiftaddvit")


def _small(recipe: str) -> reparam.Conversion:
    shape = {"num_classes": CLASSES, "img_size": SIDE, "model_kwargs": VIT}
    return reparam.convert("vit_tiny_patch16_224", recipe, weights="none", **shape)


def print_experts() -> None:
    """Both experts of a mixture, on all tokens of a batch."""
    deit = reparam.convert("deit_tiny", "shiftaddvit", weights="none").model
    for name, model, side, batch in (
        ("small ViT", _small("shiftaddvit").model, SIDE, 1),
        ("small ViT", _small("shiftaddvit").model, SIDE, 64),
        ("deit_tiny", deit, 224, 8),
    ):
        found = next(iter(measure_experts(model, torch.randn(batch, 3, side, side)).values()))
        multiply, shift = found.pair
        print(
            f"{name}, batch {batch:<3} multiply {multiply:6.2f} ms  shift {shift:6.2f} ms  "
            f"target {shift / (multiply + shift):.0%} multiplied"
        )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} CPU threads")
    time_loading()
    time_teacher(batch=128, rounds=arguments.rounds)
    print_experts()


if __name__ == "__main__":
    main()
