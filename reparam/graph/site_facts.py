"""What the finders saw of a site, in words."""

from collections.abc import Iterator

from reparam.ops.site import AttentionForm, MlpForm, Site


def site_facts(site: Site) -> tuple[str, ...]:
    """Returns one sentence for each thing found: shapes, calls, sharing, and the form of an attention or MLP."""
    return tuple(_facts(site))


def _facts(site: Site) -> Iterator[str]:
    if not site.idle:
        yield f"{site.kind}: takes {site.input_shape}, gives {site.output_shape}"
    if site.calls > 1:
        yield f"runs {site.calls} times in one forward of the model"
    if site.shared_with:
        yield f"shares parameters with {', '.join(site.shared_with)}"
    if site.attention is not None:
        yield from _attention_facts(site.attention)
    if site.mlp is not None:
        yield _mlp_fact(site.mlp)


def _attention_facts(form: AttentionForm) -> Iterator[str]:
    heads = str(form.heads) if form.key_heads is None else f"{form.heads} (keys and values: {form.key_heads})"
    values = "" if form.value_dim == form.head_dim else f", values {form.value_dim}"
    yield f"heads {heads}, channels per head {form.head_dim}{values}"
    yield f"{form.query_tokens} queries attend to {form.key_tokens} keys, {'fused' if form.is_fused else 'written out'}"
    if form.scale not in (None, 1.0):
        yield f"scores times {form.scale:.4g}"
    if form.dropout:
        yield f"dropout {form.dropout:g} on its weights while training"
    if form.dropped:
        yield f"would vanish with the softmax: {', '.join(form.dropped)}"
    yield _grid_fact(form)
    if form.reads_only_prefix:
        yield "of its output the model reads class and register tokens only"


def _grid_fact(form: AttentionForm) -> str:
    if form.grid is None:
        return f"no token grid: {form.grid_missing_because}"
    prefix = f" after {form.grid.prefix} class or register tokens" if form.grid.prefix else ""
    return f"token grid {form.grid.height} x {form.grid.width}{prefix}"


def _mlp_fact(form: MlpForm) -> str:
    known = form.model_dump(exclude_defaults=True)
    written = [f"{name} {' '.join(v) if isinstance(v, tuple) else v}" for name, v in known.items() if v]
    return ", ".join(written)
