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
#: fp32 weights of DeiT-Tiny.
_WEIGHTS_MB = 5_717_416 * 4 / 1e6


def run_python(code: str) -> tuple[float, float]:
    """Returns seconds and peak memory in MB of one fresh interpreter."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", f"{code}\n{_PEAK}"], check=True, capture_output=True, text=True)
    return time.perf_counter() - start, int(done.stdout.split()[-1]) * 1024 / 1e6


def measure(name: str, code: str, *, rounds: int) -> tuple[float, float]:
    """Prints and returns the median seconds and peak memory of `code`."""
    runs = [run_python(code) for _ in range(rounds)]
    seconds, peak = (statistics.median(values) for values in zip(*runs, strict=True))
    spread = f"{min(r[0] for r in runs):.2f} to {max(r[0] for r in runs):.2f}"
    print(f"{name:<44}{seconds:7.2f} s  ({spread})  peak {peak:7.1f} MB")
    return seconds, peak


def command(argv: Sequence[str]) -> str:
    """Code that runs one command line."""
    return _COMMAND.format(argv=list(argv))


def main() -> None:
    """Prints the table."""
    rounds = 5
    measure("import reparam", "import reparam", rounds=rounds)
    measure("reparam --help", command(["--help"]), rounds=rounds)
    base_seconds, base_peak = measure("import torch, timm", _IMPORTS, rounds=rounds)
    recipe = ["deit_tiny", "--recipe", "shiftaddvit"]
    seconds, _ = measure("reparam plan deit_tiny", command(["plan", *recipe]), rounds=rounds)
    print(f"{'':<44}{seconds - base_seconds:7.2f} s beyond the imports")
    with tempfile.TemporaryDirectory() as folder:
        outs = iter(range(rounds))
        code = command(["convert", *recipe, "--weights", "none", "--out", "OUT"])
        runs = [run_python(code.replace("'OUT'", repr(f"{folder}/{number}"))) for number in outs]
    seconds, peak = (statistics.median(values) for values in zip(*runs, strict=True))
    print(f"{'reparam convert deit_tiny':<44}{seconds:7.2f} s  peak {peak:7.1f} MB")
    beyond = peak - base_peak
    print(f"{'':<44}{seconds - base_seconds:7.2f} s and {beyond:.1f} MB beyond the imports")
    print(f"{'':<44}{beyond / _WEIGHTS_MB:7.2f}x the fp32 weights ({_WEIGHTS_MB:.1f} MB)")


if __name__ == "__main__":
    main()
