"""Names every torch function without a formula, over one or two small models of each timm family."""

from collections import Counter, defaultdict
from collections.abc import Iterator

from timm.models import list_models, list_modules

from reparam.api.subject import resolve_subject
from reparam.cost.formulas import count_op
from reparam.trace.probe import probe

_SMALL = ("atto", "femto", "pico", "nano", "tiny", "_s", "small")


def small_models(family: str) -> Iterator[str]:
    """The shortest name of a family, and the first that says it is small."""
    names = list_models(module=family)
    first = min(names, key=len)
    yield first
    yield from [name for name in names if name != first and any(word in name for word in _SMALL)][:1]


def main() -> None:
    """Prints each function, how often it ran, and where."""
    calls, families = Counter[str](), defaultdict[str, set[str]](set)
    looked_at = 0
    for family in sorted(name for name in list_modules() if not name.startswith("_")):
        for name in small_models(family):
            subject = resolve_subject(name, only_look=True)
            looked_at += 1
            for op in probe(subject.model, subject.example_input).ops:
                if count_op(op) is None:
                    calls[op.name] += 1
                    families[op.name].add(family)
    print(f"{looked_at} models; functions without a formula: {len(calls)}")
    for name, times in calls.most_common():
        print(f"{name}: {times} calls in {', '.join(sorted(families[name]))}")


if __name__ == "__main__":
    main()
