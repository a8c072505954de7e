"""Reading a .safetensors file: never pickle, and every way it can be broken is one clear error."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from reparam.errors import ReparamError

#: Where torch itself places tensors. Some libraries round a product by the address of its operands (seen with MKL
#: on AMD), so that a model read to other addresses would not give its own bits.
_ALIGNMENT = 64


def read_safetensors(path: Path, *, error: type[ReparamError], advice: str) -> dict[str, Tensor]:
    """Returns the tensors in `path` by name, on the CPU, in memory that is aligned as torch's own.

    Raises:
        error: no such file, not a .safetensors file, truncated or corrupt.
    """
    if not path.is_file():
        raise error(f"{path}: there is no such file. {advice}")
    if path.suffix != ".safetensors":
        raise error(
            f"{path}: wanted a .safetensors file, got {path.suffix or 'no extension'}; other formats can run code "
            "when they are read. Convert it with safetensors.torch.save_file."
        )
    try:
        tensors = load_file(path)
    except Exception as cause:  # the parser meets arbitrary bytes: header, UTF-8, sizes, types
        raise error(f"{path}: not an intact safetensors file ({cause}). {advice}") from cause
    return {name: t.clone() if t.data_ptr() % _ALIGNMENT else t for name, t in tensors.items()}
