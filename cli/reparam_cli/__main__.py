"""`python -m reparam_cli`, for launchers, which start a module once for each process; only the first prints results."""

import contextlib
import os
from pathlib import Path

from reparam_cli.main import main

with Path(os.devnull).open("w") as nowhere:
    is_first = os.environ.get("RANK", "0") == "0"
    with contextlib.nullcontext() if is_first else contextlib.redirect_stdout(nowhere):
        main()
