"""OpenVINO without the reports that importing it sends to its makers, and the files that these keep at home."""

import sys
from types import ModuleType
from typing import cast


def import_openvino() -> ModuleType:
    """Returns the package; OpenVINO and NNCF go on without the one that reports, as where it is not installed."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: an import of it fails
    import openvino

    return cast(ModuleType, openvino)
