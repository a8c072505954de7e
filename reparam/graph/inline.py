"""Sites that are lines of a forward and not a module: an MLP whose layers are children of a module that does more."""

from reparam.ops.site import Site


def is_inline(site: Site) -> bool:
    """Whether a site is an MLP without a module of its own."""
    return site.mlp is not None and site.mlp.inline


def layers_of(site: Site) -> tuple[str, ...]:
    """Paths of the layers of an inline MLP; empty for any other site."""
    if site.mlp is None or not site.mlp.inline:
        return ()
    return tuple(f"{site.path}.{name}" if site.path else name for name in site.mlp.linears)
