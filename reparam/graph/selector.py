"""Whether a rule picks a site: kind, type, path and enclosure must all hold."""

import re
from fnmatch import fnmatchcase

from reparam.ops.site import Site
from reparam.recipe.schema import Match


def picks(match: Match, site: Site) -> bool:
    """Returns whether every given field of `match` holds for `site` and no exclusion does."""
    return mismatch(match, site) is None


def mismatch(match: Match, site: Site) -> str | None:
    """Returns the first field of `match` that does not hold for `site`, in words; None when the rule picks it."""
    if match.kind not in (None, site.kind):
        return f'it wants kind = "{match.kind}", and this is a site of kind "{site.kind}"'
    if match.type is not None and not fnmatchcase(site.type, match.type):
        return f'it wants type = "{match.type}", and this is a {site.type}'
    if match.path is not None and not path_matches(match.path, site.path):
        return f'it wants path = "{match.path}"'
    if match.within not in (None, site.within):
        return f'it wants within = "{match.within}", and this lies within {_enclosure(site)}'
    if match.edge is not None and not (site.is_first if match.edge == "first" else site.is_last):
        return (
            f'it wants edge = "{match.edge}", and other layers come {"before" if match.edge == "first" else "behind"}'
        )
    excluding = next((pattern for pattern in match.exclude if path_matches(pattern, site.path)), None)
    return None if excluding is None else f'it excludes "{excluding}"'


def _enclosure(site: Site) -> str:
    return "no attention and no mlp" if site.within is None else f'"{site.within}"'


def path_matches(pattern: str, path: str) -> bool:
    """Returns whether a dotted path fits a glob, or fully matches the regular expression after `re:`."""
    if pattern.startswith("re:"):
        return re.fullmatch(pattern.removeprefix("re:"), path) is not None
    return fnmatchcase(path, pattern)
