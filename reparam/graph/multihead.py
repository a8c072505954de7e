"""Puts an unfolded `nn.MultiheadAttention` in the place of the original, with a core that an operator or softmax makes.

Before                                                  After
    attn = nn.MultiheadAttention(E, H)                      attn = OpenMultiheadAttention(in_proj, core, out_proj)
"""

from collections.abc import Sequence
from contextlib import ExitStack

from torch import nn
from torch.nn.utils import parametrize

from reparam.graph.fast_path import keep_padding
from reparam.ops.open_multihead import OpenMultiheadAttention, Projection, SoftmaxCore, given, projection_of, read_call
from reparam.trace.record import ModuleCall


def why_not_opened(module: nn.Module, calls: Sequence[ModuleCall], shared_with: Sequence[str]) -> str | None:
    """Returns why the module behind an opaque attention cannot be unfolded, None when it can."""
    if not isinstance(module, nn.MultiheadAttention):
        return "it calls F.multi_head_attention_forward itself, which is opaque; use torch.nn.MultiheadAttention"
    if type(module).forward is not nn.MultiheadAttention.forward:
        return "its class overrides the forward of torch.nn.MultiheadAttention, which would be lost"
    if parametrize.is_parametrized(module):
        return "its weights are computed by a parametrization, which would be lost"
    if module.bias_k is not None:
        return "it appends a learned key and value to the tokens' own (add_bias_kv)"
    if module.add_zero_attn:
        return "it appends a key and a value of zeros to the tokens' own (add_zero_attn)"
    if shared_with and _projection(module, calls) != "self":
        return f'its projections must be split, and it shares parameters with "{shared_with[0]}"'
    return None


def open_multihead(
    module: nn.MultiheadAttention, calls: Sequence[ModuleCall], core: nn.Module
) -> OpenMultiheadAttention:
    """Unfolds a module for the calls that were recorded; parameters that need no splitting are the original ones."""
    takes = [given(read_call(call.args, call.kwargs)) for call in calls]
    return OpenMultiheadAttention(module, core, projection=_projection(module, calls), takes=frozenset().union(*takes))


def exact_multihead(module: nn.MultiheadAttention, calls: Sequence[ModuleCall]) -> OpenMultiheadAttention:
    """Unfolds a module with softmax attention as its core."""
    return open_multihead(module, calls, SoftmaxCore(module.dropout))


def _projection(module: nn.MultiheadAttention, calls: Sequence[ModuleCall]) -> Projection:
    found: set[Projection] = set()
    for call in calls:
        inputs = [read_call(call.args, call.kwargs)[name] for name in ("query", "key", "value")]
        # Without a batch torch gives each input an axis first, and no longer sees that they were one tensor.
        found.add(projection_of(*inputs) if inputs[0].dim() == 3 else "separate")
    return found.pop() if len(found) == 1 and module._qkv_same_embed_dim else "separate"


def put_multihead(model: nn.Module, path: str, opened: OpenMultiheadAttention, undo: ExitStack) -> None:
    """Swaps the module at `path` for `opened`, wherever it is registered, and leaves in `undo` what takes it back."""
    dense = model.get_submodule(path)
    for alias in [name for name, module in model.named_modules(remove_duplicate=False) if module is dense]:
        undo.callback(model.set_submodule, alias, dense)
        model.set_submodule(alias, opened)
    keep_padding(model, opened, undo)
