"""The table of baselines. A new engine is one file in this package, or an entry point in the group reparam.baselines.

@baseline("half", title="eager, fp16", dtype="float16", tolerance=1e-2)
def half(dense: Workload) -> Run:
    model, batch = copy.deepcopy(dense.model).half(), dense.batch.half()
    return lambda: model(batch)
"""

import importlib.util
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass

from reparam.cost.workload import Workload
from reparam.errors import OptionError
from reparam.registry import Registry
from reparam.suggest import did_you_mean

Run = Callable[[], object]
#: The original in float32: what all others must agree with, and so part of every choice but "none".
REFERENCE = "eager"
#: Names that stand for several baselines. "quick" is what needs neither compiling nor exporting.
GROUPS = ("quick", "all", "none")
_QUICK = (REFERENCE, "channels-last", "bf16")
#: Relative error that rounding alone explains, by the type that an engine computes in; see `agreement.py`.
TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2, "float8": 2e-1, "int8": 2e-1}


class Inapplicable(Exception):
    """Why a baseline is not run: its packages, this device or this model do not allow it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """One way to run a dense model.

    `prepare` does all that is done once, and returns the run that is timed: input ready, output as the engine gives it.
    It raises Inapplicable where it cannot be tried. `tolerance` is the relative error that is allowed. `in_torch` says
    that torch allocates what it needs, so that its peak can be measured.
    """

    name: str
    title: str
    dtype: str
    tolerance: float
    in_torch: bool
    prepare: Callable[[Workload], Run]


BASELINES: Registry[Baseline] = Registry(
    "baseline", package="reparam.cost.baselines", group="reparam.baselines", error=OptionError
)


def baseline(
    name: str, *, title: str, dtype: str, tolerance: float | None = None, in_torch: bool = False
) -> Callable[[Callable[[Workload], Run]], Callable[[Workload], Run]]:
    """Files a function under `name`; the tolerance is by default the one of its type."""

    def file(prepare: Callable[[Workload], Run]) -> Callable[[Workload], Run]:
        allowed = TOLERANCES[dtype] if tolerance is None else tolerance
        entry = Baseline(
            name=name, title=title, dtype=dtype, tolerance=allowed, in_torch=in_torch, prepare=prepare
        )  # fmt: skip
        BASELINES.register(name)(entry)
        return prepare

    return file


def choose_baselines(wanted: Sequence[str]) -> tuple[Baseline, ...]:
    """The baselines of some names and groups, each once, the reference first.

    Raises:
        OptionError: a name that is neither a baseline nor a group; "none" beside others.
    """
    known = BASELINES.names()
    for name in wanted:
        if name not in known and name not in GROUPS:
            hint = did_you_mean(name, [*known, *GROUPS])
            raise OptionError(f'unknown baseline "{name}".{hint} Known: {", ".join([*GROUPS, *known])}.')
    if "none" in wanted:
        if len(set(wanted)) > 1:
            raise OptionError(f'baselines {", ".join(wanted)}: "none" stands alone')
        return ()
    asked = {REFERENCE, *wanted}
    chosen = [name for name in known if name in asked or "all" in asked or ("quick" in asked and name in _QUICK)]
    return tuple(BASELINES.get(name) for name in sorted(chosen, key=lambda name: name != REFERENCE))


def want_packages(*packages: str) -> None:
    """Raises Inapplicable when one of the packages of `reparam[bench]` is not installed."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise Inapplicable(f'{" and ".join(missing)} {are} not installed: pip install "reparam[bench]"')


def want_cpu(dense: Workload, engine: str) -> None:
    """Raises Inapplicable unless the model is on the CPU."""
    if dense.batch.device.type != "cpu":
        raise Inapplicable(f"{engine} is run on the CPU only")


@contextmanager
def hushed() -> Iterator[None]:
    """Without the notes and progress bars of a quantiser, which write through loggers and consoles of their own."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
