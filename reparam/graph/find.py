"""All sites of a model, each told which attention or MLP it is a part of."""

from reparam.graph.finders.base import FINDERS, Scene
from reparam.graph.inline import is_inline, layers_of
from reparam.ops.base import Operator
from reparam.ops.site import Site
from reparam.recipe.schema import Enclosure


def find_sites(scene: Scene) -> tuple[Site, ...]:
    """Runs every finder; sites come in the order of the module tree, owners before their parts."""
    sites = [site for _, find in FINDERS for site in find(scene)]
    enclosures = _enclosures(scene, sites)
    # The owner of an inline MLP does more, and may be an attention's too: only the layers are the MLP's.
    inline = {path for site in sites for path in layers_of(site)}
    order = {path: number for number, path in enumerate(scene.modules)}
    sites.sort(key=lambda site: (order[site.path], site.kind))
    within = ("mlp" if site.path in inline else _innermost(site, enclosures) for site in sites)
    return tuple(site.model_copy(update={"within": part}) for site, part in zip(sites, within, strict=True))


def _enclosures(scene: Scene, sites: list[Site]) -> dict[str, Enclosure]:
    found: dict[str, Enclosure] = {}
    for site in sites:
        if (site.kind == "attention" or site.kind == "mlp") and not is_inline(site):
            found[site.path] = site.kind
    for path, module in scene.model.named_modules():
        if isinstance(module, Operator) and module.kind == "attention":
            # The core sits in its owner, whose other children are still the attention's own layers.
            found[path.rpartition(".")[0]] = "attention"
    return found


def _innermost(site: Site, enclosures: dict[str, Enclosure]) -> Enclosure | None:
    owners = [path for path in enclosures if path != site.path and (site.path.startswith(f"{path}.") or not path)]
    return enclosures[max(owners, key=len)] if owners else None
