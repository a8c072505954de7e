"""Other engines, where they are installed: they give the eager answer, and each form of a model is made once."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from reparam.cost.agreement import outputs_of, relative_error
from reparam.cost.baselines.base import BASELINES, Inapplicable
from reparam.cost.workload import Workload
from tests.pico import cnn, images


@pytest.fixture(scope="module")
def dense() -> Iterator[Workload]:
    with Workload(cnn().eval(), images(2), threads=1) as workload:
        yield workload


@pytest.mark.parametrize(
    "name", ["onnxruntime", "onnxruntime-int8", "openvino", "openvino-bf16", "openvino-int8", "torchao-int8"]
)
@pytest.mark.filterwarnings("ignore")  # the exporters' own use of what is deprecated
def test_an_engine_gives_the_eager_answer_within_its_tolerance(name: str, dense: Workload) -> None:
    baseline = BASELINES.get(name)
    try:
        run = baseline.prepare(dense)
    except Inapplicable as reason:
        pytest.skip(str(reason))
    wanted = outputs_of(dense.model(dense.batch))
    assert relative_error(outputs_of(run()), wanted) < baseline.tolerance
    assert baseline.in_torch == name.startswith("torchao")


def test_a_model_is_exported_once_and_its_files_are_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    exports: list[object] = []
    monkeypatch.setattr(torch.export, "export", lambda model, args: exports.append(model) or "exported")
    monkeypatch.setattr(torch.onnx, "export", lambda program, **options: Program())

    class Program:
        def save(self, path: Path) -> None:
            path.write_text("graph")

    with Workload(cnn(), images(), threads=1) as workload:
        first, second = workload.onnx_file(), workload.onnx_file()
        assert workload.exported() == "exported"
        assert first.read_text() == "graph"
    assert first == second
    assert len(exports) == 1
    assert not first.parent.exists()


def test_a_model_that_cannot_be_exported_is_not_exported_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[object] = []

    def export(model: object, args: object) -> object:
        tries.append(model)
        raise RuntimeError("data-dependent branching")

    monkeypatch.setattr(torch.export, "export", export)
    with Workload(cnn(), images(), threads=1) as workload, warnings.catch_warnings():
        for form in (workload.exported, workload.onnx_file, workload.onnx_file):
            with pytest.raises(RuntimeError, match="data-dependent"):
                form()
    assert len(tries) == 1
