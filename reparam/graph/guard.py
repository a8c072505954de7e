"""What generated forwards check while they run: a branch taken while tracing must still be the right one."""

from typing import Any


def expect(value: Any, wanted: Any, owner: str) -> None:
    """Raises RuntimeError when a value that decided a branch, a loop or a size in `owner` has changed."""
    got = bool(value) if isinstance(wanted, bool) else value
    if got != wanted:
        raise RuntimeError(
            f"the forward of {owner} was converted for a branch or size in which a value was {wanted!r}, and now it is "
            f"{got!r}. Convert again with an example input of this shape."
        )
