import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from reparam.reporting.pictures import data_uri


def opened(uri: str) -> Image.Image:
    kind, _, text = uri.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    assert kind == f"data:image/{image.format.lower()}"
    return image


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGB")])
def test_a_small_image_comes_back_to_the_last_bit(channels: int, mode: str) -> None:
    pixels = torch.randint(256, (channels, 8, 6), generator=torch.Generator().manual_seed(0))
    mean, std = [0.1 * (i + 1) for i in range(channels)], [0.2 + 0.1 * i for i in range(channels)]
    normalised = torch.stack([(p / 255 - m) / s for p, m, s in zip(pixels, mean, std, strict=True)])
    image = opened(data_uri(normalised, mean=mean, std=std))
    assert (image.format, image.mode, image.size) == ("PNG", mode, (6, 8))
    shown = np.asarray(image).reshape(8, 6, -1).transpose(2, 0, 1)
    np.testing.assert_array_equal(shown, pixels[: len(shown)].numpy())


def test_a_large_image_is_made_smaller() -> None:
    image = opened(data_uri(torch.zeros(3, 480, 320), mean=(0.5,) * 3, std=(0.5,) * 3))
    assert (image.format, image.size) == ("JPEG", (149, 224))
