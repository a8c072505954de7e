"""Finds `nn.MultiheadAttention`, which runs as one opaque operation, and says what its core looks like inside."""

import math
from collections.abc import Iterator, Sequence

from torch import nn

from reparam.graph.finders.base import Scene, finder, qualified_type
from reparam.graph.multihead import why_not_opened
from reparam.graph.score_losses import bias_kind
from reparam.graph.token_grid import find_token_grid
from reparam.graph.token_use import reads_only_prefix
from reparam.ops.site import AttentionForm, Dropped, Site
from reparam.trace.record import ModuleCall, Op, Ref, Trace

MULTIHEAD = "multi_head_attention_forward"


@finder("multihead")
def find_multihead(scene: Scene) -> Iterator[Site]:
    """Yields one attention site for each module that runs torch's opaque attention."""
    owned: dict[str, list[Op]] = {}
    for op in scene.trace.ops:
        if op.name == MULTIHEAD and all(path in scene.modules for path in op.stack):
            owned.setdefault(op.stack[-1], []).append(op)
    for path, ops in owned.items():
        yield _site(scene, path, ops)


def _site(scene: Scene, path: str, ops: Sequence[Op]) -> Site:
    module, calls = scene.modules[path], scene.trace.calls_of(path)
    refusal = why_not_opened(module, calls, scene.shared_with(path)) or _weights_reader(scene.trace, ops)
    return Site(
        path=path,
        kind="attention",
        type=qualified_type(module),
        input_shape=calls[0].inputs[0].shape,
        output_shape=calls[0].outputs[0].shape,
        calls=len(calls),
        shared_with=scene.shared_with(path),
        refusal=refusal,
        attention=None if refusal else _form_of_all(scene.trace, module, list(zip(calls, ops, strict=True))),
    )


def _weights_reader(trace: Trace, ops: Sequence[Op]) -> str | None:
    """Why the attention weights that a call returns cannot become None."""
    weights = [ref for op in ops for ref in op.outputs[1:]]
    readers = [op for ref in weights for op in trace.users(ref)]
    if readers:
        return f"its attention weights are read by {readers[0].name!r}; call it with need_weights=False"
    if any(ref in weights for ref in trace.outputs):
        return "the model returns its attention weights, which would no longer exist"
    return None


def _form_of_all(trace: Trace, module: nn.Module, runs: Sequence[tuple[ModuleCall, Op]]) -> AttentionForm:
    assert isinstance(module, nn.MultiheadAttention)
    forms = [_form(trace, module, call, op) for call, op in runs]
    changes: dict[str, object] = {
        "dropped": tuple(sorted({kind for form in forms for kind in form.dropped})),
        "reads_only_prefix": all(form.reads_only_prefix for form in forms),
    }
    if any(form.grid != forms[0].grid for form in forms):
        changes |= {"grid": None, "grid_missing_because": "it is called with different token grids"}
    return forms[0].model_copy(update=changes)


def _form(trace: Trace, module: nn.MultiheadAttention, call: ModuleCall, op: Op) -> AttentionForm:
    query, key, value = op.args[:3]
    # The opaque operation takes tokens first, (L, N, E) or (L, E), whatever the module takes.
    grid, reason = find_token_grid(trace, value, dim=0)
    out = call.outputs[0]
    tokens = 1 if module.batch_first and len(out.shape) == 3 else 0
    return AttentionForm(
        heads=module.num_heads,
        head_dim=module.head_dim,
        value_dim=module.head_dim,
        query_tokens=query.shape[0],
        key_tokens=key.shape[0],
        scale=1.0 / math.sqrt(module.head_dim),
        is_fused=not op.kwargs["need_weights"],
        dropout=module.dropout,
        dropped=_dropped(trace, op),
        grid=grid,
        grid_missing_because=reason,
        reads_only_prefix=reads_only_prefix(trace, out, dim=tokens, prefix=grid.prefix if grid else 0),
    )


def _dropped(trace: Trace, op: Op) -> tuple[Dropped, ...]:
    """Which masks would vanish with the softmax."""
    found: set[Dropped] = set()
    mask, padding = op.kwargs["attn_mask"], op.kwargs["key_padding_mask"]
    if isinstance(mask, Ref):
        found.add("causal" if op.kwargs["is_causal"] else bias_kind(trace, mask))
    if isinstance(padding, Ref):
        found.add("input_mask" if trace.depends_on_input(padding) else "mask")
    return tuple(sorted(found))
