"""Finds softmax attention by dataflow; the owner is the deepest module whose forward holds the whole core."""

from collections.abc import Iterator

from torch import nn

from reparam.graph.attention_match import ANCHORS, AttentionMatch, match_attention
from reparam.graph.finders.base import Scene, finder, qualified_type
from reparam.graph.token_grid import find_token_grid
from reparam.graph.token_use import reads_only_prefix
from reparam.ops.site import AttentionForm, Site
from reparam.trace.record import Op, Trace

_OPAQUE = "multi_head_attention_forward"
Found = tuple[Op, AttentionMatch | str]


@finder("attention")
def find_attention(scene: Scene) -> Iterator[Site]:
    """Yields one site for each module that owns attention; several cores in one forward are refused."""
    cores: dict[str, list[Found]] = {}
    for op in scene.trace.ops:
        if all(path in scene.modules for path in op.stack):
            match = _match(scene.trace, op)
            if match is not None:
                cores.setdefault(_owner(scene, op, match), []).append((op, match))
    for path, found in cores.items():
        yield _site(scene, path, found)


def _match(trace: Trace, op: Op) -> AttentionMatch | str | None:
    if op.name == _OPAQUE:
        return "torch.nn.MultiheadAttention runs as one opaque operation; write the attention out with its products"
    return match_attention(trace, op) if op.name in ANCHORS else None


def _owner(scene: Scene, anchor: Op, match: AttentionMatch | str) -> str:
    if isinstance(match, str):
        return next(path for path in reversed(anchor.stack) if not isinstance(scene.modules[path], nn.Softmax))
    stacks = [op.stack for op in match.ops]
    return next(path for path in reversed(stacks[0]) if all(path in stack for stack in stacks))


def _site(scene: Scene, path: str, found: list[Found]) -> Site:
    op, match = found[0]
    refusal = _refuse(scene, path, found)
    return Site(
        path=path,
        kind="attention",
        type=qualified_type(scene.model.get_submodule(path)),
        input_shape=op.inputs[0].shape,
        output_shape=op.output.shape if isinstance(match, str) else match.out.shape,
        calls=len(scene.trace.calls_of(path)),
        refusal=refusal,
        attention=None if refusal else _whole_form(scene.trace, found),
    )


def _refuse(scene: Scene, path: str, found: list[Found]) -> str | None:
    calls = len(scene.trace.calls_of(path))
    if len(found) > calls:
        return f"{len(found)} attention cores run in {calls} {'call' if calls == 1 else 'calls'} of its forward"
    forms = set()
    for _, match in found:
        reason = match if isinstance(match, str) else _refuse_core(scene, path, match)
        if isinstance(match, str) or reason is not None:
            return reason
        forms.add(_form(scene.trace, match, [match]).model_copy(update={"reads_only_prefix": False}))
    return "it is called with different shapes, and one core cannot have two" if len(forms) > 1 else None


def _refuse_core(scene: Scene, path: str, match: AttentionMatch) -> str | None:
    if len(match.q.shape) != 4:
        return f"its queries have shape {match.q.shape}; wanted four axes (batch, heads, tokens, width)"
    if match.q.shape[:2] != match.k.shape[:2] or match.k.shape[:2] != match.v.shape[:2]:
        return f"queries {match.q.shape}, keys {match.k.shape} and values {match.v.shape} differ in batch or heads"
    if find_token_grid(scene.trace, match.v, dim=-1)[0] is not None:
        return "it attends over channels (cross-covariance), so it is already linear in the tokens"
    return _refuse_readers(scene, path, match)


def _refuse_readers(scene: Scene, path: str, match: AttentionMatch) -> str | None:
    """Scores and weights vanish with the core, so nothing else may read them."""
    inside = {op.index for op in match.ops}
    # The transpose of the keys comes first and may stay; the last output is the one that is replaced.
    weights = [op.output for op in match.ops[0 if match.k_is_transposed else 1 : -1]]
    readers = [op for ref in weights for op in scene.trace.users(ref) if op.index not in inside]
    if readers:
        return f"its attention weights are read by {readers[0].name!r} too"
    if any(ref in weights for call in scene.trace.calls_of(path) for ref in call.outputs):
        return "its forward returns the attention weights, which would no longer exist"
    return None


def _whole_form(trace: Trace, found: list[Found]) -> AttentionForm | None:
    matches = [match for _, match in found if isinstance(match, AttentionMatch)]
    return _form(trace, matches[0], matches) if matches else None


def _form(trace: Trace, match: AttentionMatch, calls: list[AttentionMatch]) -> AttentionForm:
    grid, reason = find_token_grid(trace, match.v, dim=-2)
    prefix = grid.prefix if grid else 0
    return AttentionForm(
        heads=match.q.shape[1],
        head_dim=match.q.shape[-1],
        value_dim=match.v.shape[-1],
        query_tokens=match.q.shape[-2],
        key_tokens=match.v.shape[-2],
        scale=match.scale,
        scale_divides=match.scale_divides,
        is_fused=match.is_fused,
        dropout=match.dropout,
        grid=grid,
        grid_missing_because=reason,
        reads_only_prefix=all(reads_only_prefix(trace, m.out, dim=-2, prefix=prefix) for m in calls),
    )
