"""What a caller hands over as a model."""

from torch import nn

from reparam.errors import ModelError


def refuse_other(given: object, kinds: type | tuple[type, ...], *, wanted: str) -> None:
    """Raises ModelError for what is of none of these kinds; a record that holds a model is told to give that."""
    if isinstance(given, kinds):
        return
    inside = "; pass its .model" if isinstance(getattr(given, "model", None), nn.Module) else ""
    raise ModelError(f"wanted {wanted}, got a {type(given).__name__}{inside}")
