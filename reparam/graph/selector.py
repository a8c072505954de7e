"""Whether a rule picks a site: kind, type, path and enclosure must all hold."""

import re
from fnmatch import fnmatchcase

from reparam.ops.site import Site
from reparam.recipe.schema import Match


def picks(match: Match, site: Site) -> bool:
    """Returns whether every given field of `match` holds for `site` and no exclusion does."""
    return (
        (match.kind is None or match.kind == site.kind)
        and (match.type is None or fnmatchcase(site.type, match.type))
        and (match.path is None or path_matches(match.path, site.path))
        and (match.within is None or match.within == site.within)
        and not any(path_matches(pattern, site.path) for pattern in match.exclude)
    )


def path_matches(pattern: str, path: str) -> bool:
    """Returns whether a dotted path fits a glob, or fully matches the regular expression after `re:`."""
    if pattern.startswith("re:"):
        return re.fullmatch(pattern.removeprefix("re:"), path) is not None
    return fnmatchcase(path, pattern)
