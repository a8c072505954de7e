"""Real images without a download: scikit-learn's 1797 handwritten digits, written out as an image folder.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part), as shipped
inside scikit-learn. 8x8 pixels, 17 grey levels, ten classes.
"""

from pathlib import Path

from reparam.atomic import atomic_folder
from reparam.errors import DataError

#: Every fifth image of a class is for validation.
_HELD_OUT = 5
_GREY_LEVELS = 16


def write_digits(folder: Path) -> None:
    """Writes `folder`/{train,validation}/{0..9}/*.png (1433 and 364 images), complete or not at all.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # the optional "demo" extra
    except ImportError:
        raise DataError(
            'the digits come with scikit-learn, which is not installed: pip install "reparam[demo]"'
        ) from None
    from PIL import Image

    digits = load_digits()
    seen = dict.fromkeys(range(10), 0)
    with atomic_folder(folder) as draft:
        for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            split = "validation" if seen[int(label)] % _HELD_OUT == 0 else "train"
            seen[int(label)] += 1
            target = draft / split / str(label) / f"{number:04}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels / _GREY_LEVELS * 255).astype("uint8"), mode="L").save(target)
