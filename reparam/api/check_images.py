"""Images to compare models on: real ones where there is a data set, seeded random ones where there is none."""

from dataclasses import replace

import torch
from torch import Tensor

from reparam.models.inputs import InputSpec, seeded_inputs
from reparam.recipe.data_settings import DataSettings
from reparam.train.data import ImageFormat, sample_images

_SEED = 0


def images_for(image: ImageFormat, data: DataSettings, *, count: int) -> tuple[Tensor, str]:
    """Returns images (N, C, H, W) and what they are, in words.

    Real ones are spread evenly over the evaluation split.

    Raises:
        DataError: the data cannot be read.
    """
    if not data.data_dir and not data.dataset:
        (drawn,) = seeded_inputs([InputSpec(shape=(count, *image.input_size))], seed=_SEED)
        return drawn, f"random, of seed {_SEED}"
    # The sampler reads the training split, for its use in calibration.
    split = replace(data, train_split=data.val_split)
    return sample_images(split, image=image, count=count, device=torch.device("cpu"))
