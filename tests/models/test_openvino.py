import importlib
import sys
from types import ModuleType

import pytest

from reparam.models.openvino import import_openvino


def test_nothing_is_reported_to_the_makers_of_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("openvino")
    monkeypatch.setitem(sys.modules, "openvino", package)
    monkeypatch.delitem(sys.modules, "openvino_telemetry", raising=False)
    assert import_openvino() is package
    with pytest.raises(ImportError):
        importlib.import_module("openvino_telemetry")
