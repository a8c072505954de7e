"""The promise of the README on the real architecture: `reparam convert deit_tiny --recipe shiftaddvit`."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.api.convert import Conversion
from reparam.ops.base import Operator
from reparam.train.parameters import parameter_groups


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "deit_tiny-shiftaddvit"


@pytest.fixture(scope="module")
def conversion(folder: Path) -> Conversion:
    torch.manual_seed(0)
    return reparam.convert("deit_tiny", "shiftaddvit", weights="none", out=folder)


@pytest.fixture(scope="module")
def run(conversion: Conversion, folder: Path) -> Path:
    return folder


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def test_every_attention_and_every_mlp_is_converted(conversion: Conversion) -> None:
    made = [(type(m).__name__) for m in conversion.model.modules() if isinstance(m, Operator)]
    assert made.count("BinaryLinearAttention") == 12
    assert made.count("MoeMlp") == 12
    # 24 in attention, and the two of each MLP's shift expert.
    assert made.count("ShiftLinear") == 24 + 24


def test_every_linear_layer_of_the_dense_model_is_accounted_for(conversion: Conversion, run: Path) -> None:
    dense = reparam.load(run / "dense")
    linears = {path for path, module in dense.named_modules() if isinstance(module, nn.Linear)}
    last = conversion.plan.stages[-1]
    steps, skips = {s.site.path for s in last.steps}, {s.site.path: s.reason for s in last.skips}
    assert len(linears) == 49
    assert all((path in steps) != (path in skips) for path in linears)
    assert all(skips[path] for path in linears if path in skips)


@pytest.mark.slow
def test_no_softmax_attention_is_left_in_the_exported_graph(conversion: Conversion) -> None:
    with torch.no_grad():  # with gradients, the router's own softmax is on the path
        program = torch.export.export(conversion.model.eval(), (images(1),), strict=False)
    names = {str(node.target) for node in program.graph.nodes}
    assert not [name for name in names if "softmax" in name or "scaled_dot_product" in name]


def test_a_reload_gives_identical_logits(conversion: Conversion, run: Path) -> None:
    reloaded = reparam.load(run)
    with torch.no_grad():
        assert torch.equal(reloaded(images()), conversion.model.eval()(images()))


def test_one_optimiser_step_moves_every_new_parameter(run: Path) -> None:
    torch.manual_seed(0)
    model = reparam.load(run).train()
    new = [name for name, m in model.named_modules() if isinstance(m, Operator)]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = torch.optim.AdamW(parameter_groups(model, weight_decay=0.0), lr=1e-3)
    nn.functional.cross_entropy(model(images(8)), torch.arange(8)).backward()
    optimiser.step()
    still = [
        name
        for name, p in model.named_parameters()
        if any(name.startswith(f"{path}.") for path in new) and torch.equal(p, before[name])
    ]
    assert not still


def test_the_methods_of_timm_still_work(run: Path) -> None:
    model = reparam.load(run)
    with torch.no_grad():
        features = model.forward_features(images())  # type: ignore[operator]
        assert features.shape == (2, 197, 192)
        assert torch.equal(model.forward_head(features), model(images()))  # type: ignore[operator]
        model.reset_classifier(10)  # type: ignore[operator]
        assert model(images()).shape == (2, 10)
    assert {"pos_embed", "cls_token"} <= set(model.no_weight_decay())  # type: ignore[operator]
