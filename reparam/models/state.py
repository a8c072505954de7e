"""A model's tensors by name: which ones are the same memory, and how a set of them is put in place without copies."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from reparam.errors import ReparamError

_NAMED = 5


def storage_key(tensor: Tensor) -> tuple[object, ...]:
    """Equal for tensors that are the same view of the same memory; works on the meta device."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def aliases(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Maps each name whose tensor came before under another name to that first name. Empty tensors share nothing."""
    first: dict[tuple[object, ...], str] = {}
    found: dict[str, str] = {}
    for name, tensor in tensors.items():
        if tensor.numel() and (kept := first.setdefault(storage_key(tensor), name)) != name:
            found[name] = kept
    return found


def tie_(model: nn.Module, tied: Mapping[str, str]) -> None:
    """Makes each parameter or buffer in `tied` the very object of the one it maps to."""
    for name, kept in tied.items():
        put_(model, name, _owner(model, kept)[0][kept.rpartition(".")[2]])


def put_(model: nn.Module, name: str, tensor: Tensor | None) -> None:
    """Sets the parameter or buffer called `name`, as it is."""
    table, leaf = _owner(model, name)
    table[leaf] = tensor


def assign_(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    tied: Mapping[str, str],
    where: str,
    error: type[ReparamError],
    advice: str,
) -> None:
    """Makes `tensors` the model's own parameters and buffers, without copying, and ties those in `tied`.

    Args:
        tied: names that are not in `tensors`, and the name whose tensor they share.
        where: the file, for messages.

    Raises:
        error: missing, unexpected or mis-shaped names, all at once, the first five of each; the model is unchanged.
    """
    tied = {name: kept for name, kept in tied.items() if kept in tensors}
    full = dict(tensors) | {name: tensors[kept] for name, kept in tied.items()}
    wanted = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    faults = [
        _fault("missing", sorted(wanted.keys() - full.keys())),
        _fault("unexpected", sorted(full.keys() - wanted.keys())),
        _fault(
            "mis-shaped",
            [
                _misfit(n, wanted[n], full[n])
                for n in sorted(wanted.keys() & full.keys())
                if not _fits(wanted[n], full[n])
            ],
        ),
    ]
    if any(faults):
        raise error(f"{where} does not fit the model: {'; '.join(filter(None, faults))}. {advice}")
    model.load_state_dict(full, strict=True, assign=True)
    tie_(model, tied)


def on_meta(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers that have no data."""
    named: Iterable[tuple[str, Tensor]] = (*model.named_parameters(), *model.named_buffers())
    return [name for name, tensor in named if tensor.device.type == "meta"]


def shortened(names: list[str]) -> str:
    """The first five names and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _owner(model: nn.Module, name: str) -> tuple[dict[str, Tensor | None], str]:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    table: dict[str, Tensor | None] = module._buffers if leaf in module._buffers else module._parameters  # type: ignore[assignment]  # dict is invariant
    return table, leaf


def _fits(wanted: Tensor, got: Tensor) -> bool:
    return wanted.shape == got.shape and wanted.is_floating_point() == got.is_floating_point()


def _misfit(name: str, wanted: Tensor, got: Tensor) -> str:
    if wanted.shape != got.shape:
        return f"{name} (wanted {_shape(wanted)}, got {_shape(got)})"
    return f"{name} (wanted {_type(wanted)}, got {_type(got)})"


def _fault(kind: str, names: list[str]) -> str:
    return f"{len(names)} {kind}: {shortened(names)}" if names else ""


def _shape(tensor: Tensor) -> str:
    return " x ".join(str(length) for length in tensor.shape) or "a scalar"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
