"""Images as a model sees them, as data URIs for a page that needs no other file."""

import base64
import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

#: Pixels of the longer side; a page holds several of them.
_LONGEST_SIDE = 224
#: Below this, a PNG is about as small, and sharp.
_SMALL = 64


def data_uri(image: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> str:
    """Returns an image (C, H, W), normalised by `mean` and `std`, as a PNG or JPEG; of 4 channels the first 3."""
    scale, offset = (torch.tensor(list(values)).reshape(-1, 1, 1) for values in (std, mean))
    pixels = ((image.cpu().float() * scale + offset).clamp(0, 1) * 255).round().byte()[:3]
    picture = Image.fromarray(pixels[0].numpy() if len(pixels) < 3 else pixels.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    kind, options = ("PNG", {"optimize": True}) if max(picture.size) <= _SMALL else ("JPEG", {"quality": 82})
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
