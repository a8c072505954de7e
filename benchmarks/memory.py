"""Where the peak memory of `reparam convert deit_tiny` goes: each part left out, one fresh process each."""

import subprocess
import sys
import tempfile
from pathlib import Path

_WEIGHTS_MB = 5_717_416 * 4 / 1e6
_PREPARE = {
    "as it is": "",
    "without verification": "convert.rewrite = functools.partial(convert.rewrite, verify=False)",
    "without the golden check": "save.make_golden = no_golden",
    "on one thread": "torch.set_num_threads(1)",
    "garbage collected after planning": "after_planning(gc.collect)",
    "freed memory returned after planning": "after_planning(lambda: ctypes.CDLL('libc.so.6').malloc_trim(0))",
    "without saving": "out = None",
}
_CODE = """
import ctypes, functools, gc, resource
import torch, timm
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import reparam
from reparam.api import convert
from reparam.checkpoint import golden, save

def no_golden(*args, **options):
    raise golden.GoldenInputError("left out")

def after_planning(act):
    plan = convert.make_plan
    def make_plan(*args, **options):
        made = plan(*args, **options)
        act()
        return made
    convert.make_plan = make_plan

out = {out!r}
{prepare}
convert.convert("deit_tiny", "shiftaddvit", weights="none", out=out)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)
"""


def main() -> None:
    """Prints the table."""
    for name, prepare in _PREPARE.items():
        with tempfile.TemporaryDirectory() as folder:
            code = _CODE.format(out=str(Path(folder) / "run"), prepare=prepare)
            done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        peak = int(done.stdout.split()[-1]) * 1024 / 1e6
        print(f"{name:<40}{peak:7.1f} MB beyond the imports {peak / _WEIGHTS_MB:6.2f}x the fp32 weights")


if __name__ == "__main__":
    main()
