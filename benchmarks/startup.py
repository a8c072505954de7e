"""Start-up times and peak memory of the commands, each in a fresh process, beside importing torch and timm alone."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

_PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
_IMPORTS = "import torch, timm"
_COMMAND = "import sys; from reparam_cli.main import run; sys.argv = ['reparam']; run({argv!r})"
_TIMM = """
import torch, timm
with torch.no_grad():
    timm.create_model({name!r}).eval()(torch.randn(2, 3, 224, 224))
"""
#: Command name, timm name, parameters.
_MODELS = (
    ("deit_tiny", "deit_tiny_patch16_224", 5_717_416),
    ("deit_base_patch16_224", "deit_base_patch16_224", 86_567_656),
)


def run_python(code: str) -> tuple[float, float]:
    """Returns seconds and peak memory in MB of one fresh interpreter."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", f"{code}\n{_PEAK}"], check=True, capture_output=True, text=True)
    return time.perf_counter() - start, int(done.stdout.split()[-1]) * 1024 / 1e6


def measure(name: str, codes: Sequence[str]) -> tuple[float, float]:
    """Prints and returns the median seconds and peak memory over `codes`, one process each."""
    runs = [run_python(code) for code in codes]
    seconds, peak = (statistics.median(values) for values in zip(*runs, strict=True))
    spread = f"{min(r[0] for r in runs):.2f} to {max(r[0] for r in runs):.2f}"
    print(f"{name:<52}{seconds:7.2f} s  ({spread})  peak {peak:7.1f} MB")
    return seconds, peak


def command(*argv: str) -> str:
    """Code that runs one command line."""
    return _COMMAND.format(argv=list(argv))


def measure_memory(rounds: int, base_seconds: float, base_peak: float) -> None:
    """`convert` beside building the dense model and running it once on two images."""
    for name, timm_name, parameters in _MODELS:
        weights = parameters * 4 / 1e6
        with tempfile.TemporaryDirectory() as folder:
            outs = [f"{folder}/{number}" for number in range(rounds)]
            options = ("--recipe", "shiftaddvit", "--weights", "none")
            converts = [command("convert", name, *options, "--out", out) for out in outs]
            _, plain_peak = measure(f"timm alone: build {timm_name}, run it", [_TIMM.format(name=timm_name)] * rounds)
            seconds, peak = measure(f"reparam convert {name}", converts)
        print(f"  {seconds - base_seconds:.2f} s beyond the imports")
        print(f"  peak beyond the imports, in fp32 weights of {weights:.0f} MB:")
        print(f"  convert {(peak - base_peak) / weights:.2f}x, timm alone {(plain_peak - base_peak) / weights:.2f}x")


def main() -> None:
    """Prints the table."""
    rounds = 5
    measure("import reparam", ["import reparam"] * rounds)
    measure("reparam --help", [command("--help")] * rounds)
    base_seconds, base_peak = measure("import torch, timm", [_IMPORTS] * rounds)
    for name, argv in (
        ("reparam plan deit_tiny", ("plan", "deit_tiny", "--recipe", "shiftaddvit")),
        ("reparam profile deit_tiny --no-latency", ("profile", "deit_tiny", "--no-latency")),
    ):
        seconds, _ = measure(name, [command(*argv)] * rounds)
        print(f"  {seconds - base_seconds:.2f} s beyond the imports")
    measure_memory(rounds, base_seconds, base_peak)


if __name__ == "__main__":
    main()
