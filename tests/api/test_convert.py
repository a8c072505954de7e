"""`reparam.convert` as users call it: a copy unless told otherwise, weights kept, a run folder when asked for."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import reparam
from reparam.errors import CheckpointError, PlanError, ReparamError, RewriteError, WeightsError
from reparam.graph import attention_surgery
from reparam.graph.provenance import provenance_of
from reparam.ops.base import Operator
from reparam.ops.fixed_point import INITIAL_ABSMAX, FixedPoint
from tests.pico import ATTENTION, FULL, LINEAR, images, inline_net, recipe, token_net, vit

PICO = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
NAMED = {"img_size": 16, "num_classes": 3, "model_kwargs": PICO}


def operators(model: nn.Module) -> list[str]:
    return sorted(m.name for m in model.modules() if isinstance(m, Operator) and m.name != "shift_linear")


def test_a_module_is_converted_as_a_copy_and_the_original_is_untouched() -> None:
    model = vit()
    before, state = model(images()), copy.deepcopy(model.state_dict())
    conversion = reparam.convert(model, "shiftaddvit", example_input=images())
    assert conversion.model is not model
    assert torch.equal(model(images()), before)
    assert list(model.state_dict()) == list(state)
    assert operators(model) == []
    assert operators(conversion.model) == ["binary_linear_attention"] * 2 + ["moe_mlp"] * 2
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in conversion.model.parameters()}
    assert not shared


def test_inplace_converts_the_module_itself() -> None:
    model = inline_net()
    assert reparam.convert(model, FULL, example_input=images(), inplace=True).model is model
    assert operators(model)


def test_the_plan_of_a_conversion_is_the_one_that_plan_makes() -> None:
    planned = reparam.plan(vit(), "shiftaddvit", example_input=images())
    assert reparam.convert(vit(), "shiftaddvit", example_input=images()).plan == planned


def test_totals_after_are_those_of_the_converted_model() -> None:
    conversion = reparam.convert(vit(), "shiftaddvit", example_input=images())
    profiled = reparam.profile(conversion.model, example_input=images(), measure=False)
    assert profiled.parameters == sum(p.numel() for p in conversion.model.parameters())
    assert (profiled.parameters, profiled.operations, profiled.uncounted) == (
        conversion.plan.after.parameters,
        conversion.plan.after.operations,
        conversion.plan.after.uncounted,
    )


def test_a_converted_model_remembers_how_it_was_made() -> None:
    conversion = reparam.convert(vit(), "shiftaddvit", example_input=images())
    provenance = provenance_of(conversion.model)
    assert provenance is not None
    assert provenance.plan == conversion.plan
    assert provenance.spec.name.endswith("VisionTransformer")


def test_a_named_model_is_built_with_random_weights_when_asked() -> None:
    conversion = reparam.convert("vit_tiny_patch16_224", "shiftaddvit", weights="none", **NAMED)
    assert operators(conversion.model) == ["binary_linear_attention"] * 2 + ["moe_mlp"] * 2
    assert not any(p.is_meta for p in conversion.model.parameters())
    assert conversion.model.eval()(images()).shape == (2, 3)


def test_weights_of_a_file_are_those_of_the_converted_model(tmp_path: Path) -> None:
    source = vit()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    named = reparam.convert(
        "vit_tiny_patch16_224", recipe([ATTENTION]), weights=str(tmp_path / "w.safetensors"), **NAMED
    )
    by_module = reparam.convert(source, recipe([ATTENTION]), example_input=images())
    assert torch.equal(named.model.eval()(images()), by_module.model(images()))


def test_weights_that_do_not_fit_are_named_and_leave_no_folder(tmp_path: Path) -> None:
    save_file({"head.weight": torch.zeros(3, 16)}, tmp_path / "w.safetensors")
    out = tmp_path / "run"
    with pytest.raises(WeightsError, match=r"31 missing: blocks\.0\.attn\.proj\.bias"):
        reparam.convert("vit_tiny_patch16_224", FULL, weights=str(tmp_path / "w.safetensors"), out=out, **NAMED)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_saved_conversion_loads_with_the_same_output_and_its_dense_origin_beside(tmp_path: Path) -> None:
    out = tmp_path / "run"
    conversion = reparam.convert("vit_tiny_patch16_224", "shiftaddvit", weights="none", out=out, **NAMED)
    loaded = reparam.load(out)
    assert torch.equal(loaded.eval()(images()), conversion.model.eval()(images()))
    dense = reparam.load(out / "dense")
    assert operators(dense) == []
    assert torch.equal(dense.head.weight, conversion.model.head.weight)


def test_the_dense_origin_is_measured_at_the_size_that_was_asked_for(tmp_path: Path) -> None:
    reparam.convert("test_resnet", "deepshift-q", weights="none", img_size=64, out=tmp_path / "run")
    made, dense = (reparam.profile(tmp_path / "run" / name, measure=False) for name in ("", "dense"))
    planned = reparam.plan("test_resnet", "deepshift-q", img_size=64)
    assert (dense.operations, made.operations) == (planned.before.operations, planned.after.operations)


def test_a_custom_model_is_saved_and_loaded_with_its_base(tmp_path: Path) -> None:
    conversion = reparam.convert(inline_net(), FULL, example_input=images(), out=tmp_path / "run")
    loaded = reparam.load(tmp_path / "run", base=inline_net)
    assert torch.equal(loaded.eval()(images()), conversion.model.eval()(images()))


def test_a_folder_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ReparamError):
        reparam.convert(vit(), FULL, example_input=images(), out=tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = attention_surgery._chosen

    def swapped(matches: Any, number: int, graph: Any, path: str) -> Any:
        match = honest(matches, number, graph, path)
        return dataclasses.replace(match, q=match.k, k=match.q)

    monkeypatch.setattr(attention_surgery, "_chosen", swapped)


def test_a_failed_conversion_leaves_the_module_and_the_disc_as_they_were(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = vit()
    before = model(images())
    broken(monkeypatch)
    with pytest.raises(RewriteError):
        reparam.convert(model, FULL, example_input=images(), inplace=True, out=tmp_path / "run")
    assert torch.equal(model(images()), before)
    assert operators(model) == []
    assert list(tmp_path.iterdir()) == []


def test_a_refused_model_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(PlanError):
        reparam.convert(token_net("weights read twice"), FULL, example_input=images(), out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_partial_conversion_keeps_what_is_refused_and_converts_the_rest() -> None:
    model = token_net("weights read twice")
    conversion = reparam.convert(model, recipe([ATTENTION, LINEAR]), example_input=images(), allow_partial=True)
    assert type(conversion.model.attn) is type(model.attn)
    assert type(conversion.model.head).__name__ == "ShiftLinear"


def test_a_converted_model_can_be_trained_a_few_steps_and_its_loss_falls() -> None:
    torch.manual_seed(0)
    model = reparam.convert(inline_net(), FULL, example_input=images()).model.train()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = images(6), torch.arange(6) % 3
    losses = []
    for _ in range(15):
        loss = nn.functional.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_a_model_of_the_hub_needs_the_hub_or_says_what_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reparam.models.hub.hub_is_reachable", lambda: False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match="--weights"):
        reparam.convert("deit_tiny", "shiftaddvit")


def test_an_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(CheckpointError):
        reparam.convert(vit(), FULL, example_input=images(), out=tmp_path / "run")


class TwoInputs(nn.Module):
    """Adds a second tensor to what the first one becomes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self.fc(x) + y
        return out


def test_a_model_of_several_inputs_is_saved_and_loaded(tmp_path: Path) -> None:
    x, y = torch.randn(2, 4), torch.randn(2, 3)
    conversion = reparam.convert(TwoInputs(), recipe([LINEAR]), example_input=(x, y), out=tmp_path / "run")
    first = reparam.load(tmp_path / "run", base=TwoInputs)
    reparam.save(first, tmp_path / "again")
    second = reparam.load(tmp_path / "again", base=TwoInputs)
    assert torch.equal(second(x, y), conversion.model.eval()(x, y))


def test_a_fine_tuned_run_is_not_replaced(tmp_path: Path) -> None:
    reparam.convert(vit(), "shiftaddvit", example_input=images(), out=tmp_path / "run")
    (tmp_path / "run" / "summary.csv").write_text("epoch\n")
    with pytest.raises(CheckpointError, match="holds a fine-tuned run"):
        reparam.convert(vit(), "shiftaddvit", example_input=images(), out=tmp_path / "run")
    assert (tmp_path / "run" / "summary.csv").exists()


def test_fixed_point_activations_take_their_range_from_the_example_input() -> None:
    wanted = recipe([{**LINEAR, "options": {"activation_bits": 8}}])
    model = reparam.convert(vit(), wanted, example_input=images()).model
    ranges = [m.absmax.item() for m in model.modules() if isinstance(m, FixedPoint)]
    assert len(set(ranges)) > 1
    assert INITIAL_ABSMAX not in ranges
