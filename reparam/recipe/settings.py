"""Training settings: one table for the recipe's `finetune`, the flags of `reparam finetune`, and `args.yaml`.

Names and meanings are timm's (`train.py`); what differs is the default, because fine-tuning a pretrained
model wants a low rate, few epochs and its dense original as the teacher.
"""

from dataclasses import dataclass, field, fields
from typing import Any


def setting(default: Any, help: str, *, short: str | None = None) -> Any:
    """One setting: its default, its one-line help, and a short flag; the long one is its dashed name."""
    return field(default=default, metadata={"help": help, "short": short})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How a stage is trained. Lengths are epochs unless the name says otherwise; `lr` is absolute, not scaled."""

    epochs: int = setting(10, "Epochs to train each stage.")
    batch_size: int = setting(
        128, "Images per micro-batch on this process; a step sees this times `grad_accum_steps`.", short="b"
    )
    validation_batch_size: int = setting(0, "Images per evaluation batch; 0 means the training batch size.", short="vb")
    grad_accum_steps: int = setting(1, "Micro-batches per optimiser step.")
    seed: int = setting(42, "Seed of every random number, wherever it is drawn.")
    stop_if_top1_drop_above: float | None = setting(
        None, "Stop after a stage whose best top-1 is more points than this below the dense model's."
    )
    recovery_interval: int = setting(
        0, "Steps between two states that a run can be resumed from; 0 keeps one after each epoch."
    )
    checkpoint_hist: int = setting(2, "How many of these states to keep.")
    max_bad_images: int = setting(0, "Training images that may be unreadable; they are named and left out.")

    opt: str = setting("adamw", "Optimiser, by timm's name.")
    lr: float = setting(1e-4, "Peak learning rate, absolute.")
    weight_decay: float = setting(
        0.05, "Decay of matrices; shifts, signs, thresholds, routers, norms, biases get none."
    )
    momentum: float = setting(0.9, "Momentum of SGD-like optimisers.")
    clip_grad: float | None = setting(1.0, "Largest gradient norm; none for no clipping.")
    layer_decay: float | None = setting(None, "Factor on the learning rate from one layer to the one below.")
    sched: str = setting("cosine", "Learning-rate schedule, by timm's name.")
    warmup_epochs: int = setting(0, "Epochs of linear warm-up.")
    warmup_lr: float = setting(1e-7, "Learning rate at the start of warm-up.")
    min_lr: float = setting(1e-6, "Learning rate at the end of the schedule.")
    cooldown_epochs: int = setting(0, "Epochs at `min_lr` after the schedule.")

    fit_images: int = setting(
        0, "Training images on which each converted layer is first fitted to the dense one it replaces; 0 turns it off."
    )
    fit_steps: int = setting(100, "Optimiser steps of that fit in each layer.")

    smoothing: float = setting(0.1, "Label smoothing.")
    mixup: float = setting(0.0, "Mixup alpha; 0 turns it off.")
    cutmix: float = setting(0.0, "CutMix alpha; 0 turns it off.")
    no_aug: bool = setting(False, "Train on resized images without augmentation.")
    scale: tuple[float, float] = setting((0.08, 1.0), "Range of the random crop's area.")
    ratio: tuple[float, float] = setting((0.75, 4 / 3), "Range of the random crop's aspect ratio.")
    crop_padding: int = setting(
        0, "Pad training images by so many pixels and crop them back, instead of a random area; CIFAR's 4."
    )
    in_memory: bool = setting(
        False, "Hold all images decoded on the device; for small data sets, with crop_padding and flips alone."
    )
    hflip: float = setting(0.5, "Probability of a horizontal flip.")
    vflip: float = setting(0.0, "Probability of a vertical flip.")
    color_jitter: float = setting(0.4, "Colour jitter factor; 0 turns it off.")
    aa: str | None = setting(None, "AutoAugment policy, such as rand-m9-mstd0.5-inc1.")
    reprob: float = setting(0.0, "Probability of random erasing.")
    drop_path: float | None = setting(
        None, "Largest stochastic-depth rate, at the last block; none keeps the model's own."
    )

    model_ema: bool = setting(
        False, "Keep a warmed-up exponential moving average of the weights; evaluate and save it."
    )
    model_ema_decay: float = setting(0.9998, "Decay of the moving average once it is warm.")

    distill_loss_weight: float = setting(
        1.0, "Weight of the logit distillation from the dense original; 0 turns it off."
    )
    task_loss_weight: float = setting(1.0, "Weight of the loss on the labels.")
    kd_temperature: float = setting(2.0, "Softmax temperature of the distillation.")
    feature_loss_weight: float = setting(
        0.0, "Weight of the distillation of features, the outputs of modules inside; 0 turns it off."
    )
    feature_loss: str = setting(
        "mse", "How features are compared: mse value by value, kernel by how alike the images are (PKKD, for adders)."
    )
    feature_points: str = setting(
        "blocks", "Where features are compared: blocks, the modules that hold the converted layers, or sites, these."
    )
    balance_loss_weight: float = setting(0.01, "Weight of the latency-aware load-balancing loss.")
    latency: str = setting(
        "recipe",
        "Latencies of the multiply and the shift expert that balance the load: recipe, measured, modelled, or two "
        "numbers such as 0.6,0.4.",
    )

    amp: bool = setting(False, "Train under autocast.")
    amp_dtype: str = setting("bfloat16", "Autocast type: bfloat16 or float16.")
    channels_last: bool = setting(False, "Keep images and convolutions channels-last.")
    grad_checkpointing: bool = setting(False, "Recompute activations in backward to save memory.")
    fsdp: bool = setting(
        False, "Share parameters, gradients and optimiser states out over the processes instead of copying them."
    )
    torchcompile: str | None = setting(None, "Compile the model for training with this backend, such as inductor.")
    workers: int = setting(2, "Loader processes.", short="j")
    log_interval: int = setting(50, "Steps between two refreshed progress figures.")
    log_with: str = setting("", "Trackers, comma-separated: tensorboard, wandb, trackio.")


#: What `log_with` may name; each is an extra of the package, too.
TRACKERS = ("tensorboard", "wandb", "trackio")
SETTING_NAMES: tuple[str, ...] = tuple(f.name for f in fields(TrainSettings))
