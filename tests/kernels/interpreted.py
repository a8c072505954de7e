"""Runs code in a process of its own in which Triton interprets its kernels, for it reads that once."""

import os
import subprocess
import sys
from pathlib import Path


def run_interpreted(code: str) -> None:
    """Fails with what the process wrote, unless it ends well."""
    paths = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
