"""Finds softmax attention by dataflow; the owner is the deepest module whose forward holds the whole core."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from reparam.graph.attention_match import ANCHORS, FUSED, AttentionMatch, Operand, match_attention
from reparam.graph.axis_origin import Origin, axis_origins
from reparam.graph.finders.base import Scene, finder, qualified_type
from reparam.graph.layout import Heads
from reparam.graph.token_grid import find_token_grid
from reparam.graph.token_use import reads_only_prefix
from reparam.ops.site import AttentionForm, Site
from reparam.trace.record import ModuleCall, Op, Ref, Trace

#: What two calls of one attention may differ in.
_PER_CALL = {"query_tokens", "key_tokens", "grid", "grid_missing_because", "reads_only_prefix", "dropped", "scale"}


@dataclass(frozen=True, slots=True)
class _Found:
    """One core as it ran in one call of its owner, or why it cannot be taken."""

    anchor: Op
    match: AttentionMatch | str


@finder("attention")
def find_attention(scene: Scene) -> Iterator[Site]:
    """Yields one site for each attention core; several in one forward are numbered."""
    for path, calls in _cores_by_owner(scene).items():
        counts = {len(found) for found in calls}
        for number in range(max(counts)):
            runs = [found[number] for found in calls if len(found) > number]
            yield _site(scene, path, number, runs, is_uneven=len(counts) > 1)


def why_no_attention(scene: Scene, path: str) -> str | None:
    """Returns the first test that the module at `path` fails to be attention, None when it is a site."""
    if path in _cores_by_owner(scene):
        return None
    calls = scene.trace.calls_of(path)
    ops = [op for call in calls for op in scene.trace.ops[call.first_op : call.end_op]]
    if not calls:
        return "it was not called in the run"
    anchors = [op for op in ops if op.name in ANCHORS]
    if not anchors:
        return "no softmax and no fused attention runs in its forward"
    if any(match_attention(scene.trace, op) is not None for op in anchors):
        return "its attention belongs to a module inside it"
    return "its softmax does not stand between a product of queries and keys and a product with values"


def _cores_by_owner(scene: Scene) -> dict[str, list[list[_Found]]]:
    """For each owner, the cores of each of its calls, in the order in which they ran."""
    owned: dict[str, list[_Found]] = {}
    for op in scene.trace.ops:
        if all(path in scene.modules for path in op.stack):
            match = _match(scene.trace, op)
            if match is not None:
                owned.setdefault(_owner(scene, op, match), []).append(_Found(op, match))
    return {path: _by_call(scene.trace.calls_of(path), found) for path, found in owned.items()}


def _by_call(calls: Sequence[ModuleCall], found: Sequence[_Found]) -> list[list[_Found]]:
    grouped = [[core for core in found if call.first_op <= core.anchor.index < call.end_op] for call in calls]
    return [cores for cores in grouped if cores]


def _match(trace: Trace, op: Op) -> AttentionMatch | str | None:
    return match_attention(trace, op) if op.name in ANCHORS else None


def _owner(scene: Scene, anchor: Op, match: AttentionMatch | str) -> str:
    if isinstance(match, str):
        return next(path for path in reversed(anchor.stack) if not isinstance(scene.modules[path], nn.Softmax))
    stacks = [op.stack for op in match.ops]
    return next(path for path in reversed(stacks[0]) if all(path in stack for stack in stacks))


def _site(scene: Scene, path: str, number: int, runs: Sequence[_Found], *, is_uneven: bool) -> Site:
    anchor, match = runs[0].anchor, runs[0].match
    refusal, no_gain = _judge(scene, path, runs, is_uneven=is_uneven)
    return Site(
        path=path,
        kind="attention",
        type=qualified_type(scene.model.get_submodule(path)),
        input_shape=anchor.inputs[0].shape,
        output_shape=anchor.output.shape if isinstance(match, str) else match.out.shape,
        calls=len(scene.trace.calls_of(path)),
        number=number,
        refusal=refusal,
        no_gain=no_gain,
        attention=None if refusal or no_gain else _form_of_all(scene.trace, runs),
    )


def _judge(scene: Scene, path: str, runs: Sequence[_Found], *, is_uneven: bool) -> tuple[str | None, str | None]:
    """(why it cannot be taken, why nothing would be gained)."""
    if path in scene.trace.reads:
        names = ", ".join(sorted(scene.trace.reads[path]))
        return f"its forward reads values of tensors ({names}), so another input may run another attention", None
    if is_uneven:
        return "its forward runs it in some calls and not in others", None
    for run in runs:
        if isinstance(run.match, str):
            return run.match, None
        if _attends_across_batch(scene.trace, run.match):
            return "it attends across the batch", None
        if _attends_over_channels(scene.trace, run.match):
            return None, "it attends over channels (cross-covariance), so it is already linear in the tokens"
        reason = _refuse_core(scene, path, run.match)
        if reason is not None:
            return reason, None
    forms = {
        _form(scene.trace, r.match).model_dump_json(exclude=_PER_CALL) for r in runs if not isinstance(r.match, str)
    }
    return ("it is called with different head counts or widths" if len(forms) > 1 else None), None


def _refuse_core(scene: Scene, path: str, match: AttentionMatch) -> str | None:
    heads = _heads(scene.trace, match.q)
    for name, operand in (("keys", match.k), ("values", match.v)):
        reason = _refuse_leading(match.q.shape, operand.shape, heads, name)
        if reason is not None:
            return reason
    if heads.axis is not None and match.k.shape[heads.axis] != match.v.shape[heads.axis]:
        return f"its keys have {match.k.shape[heads.axis]} heads and its values {match.v.shape[heads.axis]}"
    return _refuse_readers(scene, path, match)


def _refuse_leading(query: tuple[int, ...], other: tuple[int, ...], heads: Heads, name: str) -> str | None:
    """Keys and values share the queries' leading axes, but may have fewer heads."""
    for axis, (wanted, got) in enumerate(zip(query[:-2], other[:-2], strict=True)):
        if wanted != got and not (axis == heads.axis and wanted % got == 0):
            return f"queries {query} and {name} {other} differ in batch or windows"
    return None


def _attends_across_batch(trace: Trace, match: AttentionMatch) -> bool:
    return len(match.q.shape) < 3 or _counts(trace, match.k, -2) == {"batch"}


def _attends_over_channels(trace: Trace, match: AttentionMatch) -> bool:
    return _counts(trace, match.q, -1) == {"tokens"} or _counts(trace, match.v, -2) == {"channels"}


def _counts(trace: Trace, operand: Operand, axis: int) -> set[str]:
    """What one canonical axis of an operand counts."""
    own = operand.axes[axis]
    return set() if own is None else {origin.kind for origin in axis_origins(trace, operand.ref, own)}


def _heads(trace: Trace, query: Operand) -> Heads:
    """Heads are the leading axis that was split off the channels; without one, all leading axes count as batch."""
    origins = [_origins(trace, query, axis) for axis in range(len(query.axes) - 2)]
    if len(origins) == 1:
        merged = [part.size for part in origins[0] if part.kind == "channels"]
        is_behind = len(origins[0]) > 1 and origins[0][-1].kind == "channels"
        return Heads(axis=None, merged=merged[-1] if is_behind else 1)
    # An axis that holds the batch too (HaloNet's batch * heads) has another size for another batch.
    of_channels = [axis for axis, parts in enumerate(origins) if {part.kind for part in parts} == {"channels"}]
    if of_channels:
        # An axis of size 1 may come from anywhere, so it counts only where no other does.
        return Heads(axis=max(of_channels, key=lambda axis: (query.shape[axis] > 1, axis)))
    is_unclear = any(part.kind == "unknown" for parts in origins[1:] for part in parts)
    return Heads(axis=len(origins) - 1 if is_unclear or query.shape[-3] == 1 else None)


def _origins(trace: Trace, operand: Operand, axis: int) -> tuple[Origin, ...]:
    own = operand.axes[axis]
    return () if own is None else axis_origins(trace, operand.ref, own)


def _refuse_readers(scene: Scene, path: str, match: AttentionMatch) -> str | None:
    """Scores and weights vanish with the core, so nothing else may read them; the owner may return them unread."""
    inside, vanishing = core_parts(scene.trace, match)
    readers = [op for ref in vanishing for op in scene.trace.users(ref) if op.index not in inside]
    if readers:
        return f"its attention weights are read by {readers[0].name!r} too"
    if any(ref in vanishing for ref in scene.trace.outputs):
        return "the model returns its attention weights, which would no longer exist"
    return None


def core_parts(trace: Trace, match: AttentionMatch) -> tuple[set[int], list[Ref]]:
    """The operations that vanish with a core, and their results other than its output.

    Beside the core's own these are what is computed from its scores and read by them alone: a maximum, a sum.
    """
    inside = {op.index for op in match.ops}
    results = [ref for op in match.ops if op is not match.ops[-1] for ref in op.outputs]
    for ref in results:
        for reader in trace.users(ref):
            users = [user.index for made in reader.outputs for user in trace.users(made)]
            if (
                reader.index not in inside
                and users
                and all(match.ops[0].index < u <= match.ops[-1].index for u in users)
            ):
                inside.add(reader.index)
                results.extend(reader.outputs)
    return inside, results


def _form_of_all(trace: Trace, runs: Sequence[_Found]) -> AttentionForm:
    forms = [_form(trace, run.match) for run in runs if not isinstance(run.match, str)]
    first = forms[0]
    changes: dict[str, object] = {
        "dropped": tuple(sorted({kind for form in forms for kind in form.dropped})),
        "reads_only_prefix": all(form.reads_only_prefix for form in forms),
    }
    if any(form.grid != first.grid for form in forms):
        changes |= {"grid": None, "grid_missing_because": "it is called with different token grids"}
    return first.model_copy(update=changes)


def _form(trace: Trace, match: AttentionMatch) -> AttentionForm:
    heads = _heads(trace, match.q)
    tokens = match.v.axes[-2]
    assert tokens is not None
    grid, reason = find_token_grid(trace, match.v.ref, dim=tokens)
    count = heads.merged if heads.axis is None else match.q.shape[heads.axis]
    key_count = count if heads.axis is None else match.k.shape[heads.axis]
    out_tokens = match.out_axes.index(len(match.out_axes) - 2)
    return AttentionForm(
        heads=count,
        head_dim=match.q.shape[-1],
        value_dim=match.v.shape[-1],
        query_tokens=match.q.shape[-2],
        key_tokens=match.v.shape[-2],
        key_heads=None if key_count == count else key_count,
        scale=match.scale,
        is_fused=match.ops[0].name == FUSED,
        dropout=match.dropout,
        dropped=match.dropped,
        head_axis=heads.axis,
        merged_heads=heads.merged > 1,
        grid=grid,
        grid_missing_because=reason,
        reads_only_prefix=reads_only_prefix(trace, match.out, dim=out_tokens, prefix=grid.prefix if grid else 0),
    )
