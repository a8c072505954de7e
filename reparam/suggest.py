"""What the user may have meant: the closest known names to a misspelt one."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], *, limit: int = 3) -> str:
    """Returns ` Did you mean "a" or "b"?`, or an empty string when nothing is close."""
    close = difflib.get_close_matches(name, sorted(known), n=limit, cutoff=0.6)
    if not close:
        return ""
    quoted = [f'"{candidate}"' for candidate in close]
    return f" Did you mean {' or '.join(quoted)}?"
