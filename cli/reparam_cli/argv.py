"""What the parser cannot express: `--debug` anywhere, and several values after one flag, as timm takes them."""

import re
from collections.abc import Iterator, Sequence

DEBUG = "--debug"
_PAIR = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
_NUMBER = re.compile(r"-?[\d.]+(e-?\d+)?", re.IGNORECASE)
#: Flag -> what a second, third, ... value looks like; anything else ends the list.
MANY_VALUED = {"--model-kwargs": _PAIR, "--mean": _NUMBER, "--std": _NUMBER}


def take_debug(argv: Sequence[str]) -> tuple[list[str], bool]:
    """Returns the arguments without `--debug`, and whether it was there; what follows `--` is left alone."""
    end = argv.index("--") if "--" in argv else len(argv)
    options = [word for word in argv[:end] if word != DEBUG]
    return [*options, *argv[end:]], len(options) < end


def repeat_many_valued(argv: Sequence[str]) -> list[str]:
    """Writes `--model-kwargs a=1 b=2` as `--model-kwargs a=1 --model-kwargs b=2`."""
    return list(_repeat(argv))


def _repeat(argv: Sequence[str]) -> Iterator[str]:
    flag = None
    wants_value = False
    for word in argv:
        is_value = wants_value
        if flag and not is_value and MANY_VALUED[flag].fullmatch(word):
            yield flag
        elif not is_value:
            flag = word if word in MANY_VALUED else None
        wants_value = flag == word and not is_value
        yield word
