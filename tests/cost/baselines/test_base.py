import pytest
import torch
from torch import nn

from reparam.cost.baselines import base
from reparam.cost.baselines.base import BASELINES, REFERENCE, Inapplicable, choose_baselines, want_cpu, want_packages
from reparam.cost.workload import Workload
from reparam.errors import OptionError


def names(*wanted: str) -> list[str]:
    return [baseline.name for baseline in choose_baselines(wanted)]


def test_groups_stand_for_several_and_the_reference_comes_first() -> None:
    assert names("all")[0] == names("quick")[0] == REFERENCE
    assert sorted(names("all")) == list(BASELINES.names())
    assert set(names("quick")) == {"eager", "channels-last", "bf16"}
    assert names("none") == []


def test_a_name_brings_the_reference_along_and_nothing_stands_twice() -> None:
    assert names("openvino") == ["eager", "openvino"]
    assert names("quick", "bf16", "onnxruntime", "onnxruntime") == ["eager", "bf16", "channels-last", "onnxruntime"]


def test_an_unknown_name_is_told_with_the_closest_and_all_known_ones() -> None:
    with pytest.raises(OptionError, match=r'unknown baseline "onxruntime"\. Did you mean "onnxruntime"') as caught:
        choose_baselines(["quick", "onxruntime"])
    assert "compiled-bf16" in str(caught.value)
    with pytest.raises(OptionError, match=r'unknown baseline ""\. Known: quick, all, none'):
        choose_baselines([""])


def test_none_beside_others_is_a_contradiction() -> None:
    with pytest.raises(OptionError, match='"none" stands alone'):
        choose_baselines(["none", "quick"])


def test_the_tolerance_is_that_of_the_type() -> None:
    tolerances = {name: entry.tolerance for name, entry in BASELINES}
    assert tolerances["compiled"] < tolerances["compiled-bf16"] < tolerances["onnxruntime-int8"] < 1


def test_packages_that_are_missing_are_named_with_the_command_that_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else object())
    want_packages("openvino")
    with pytest.raises(Inapplicable, match=r'^onnx is not installed: pip install "reparam\[bench\]"$'):
        want_packages("openvino", "onnx")
    with pytest.raises(Inapplicable, match=r"^onnx and onnxscript are not installed"):
        want_packages("onnx", "onnxscript")


def test_an_engine_for_the_cpu_is_not_run_for_a_model_elsewhere() -> None:
    want_cpu(Workload(nn.Identity(), torch.ones(1), threads=1), "The engine")
    with pytest.raises(Inapplicable, match="The engine is run on the CPU only"):
        want_cpu(Workload(nn.Identity(), torch.ones(1, device="meta"), threads=1), "The engine")
