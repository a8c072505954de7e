"""`reparam.profile`: counts that agree with the plan, sizes of files, and a latency measured here or none."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import reparam
from reparam.cost.energy_table import MemoryLevels, energy_tables
from reparam.errors import CheckpointError, CostError, ModelError
from tests.pico import FULL, cnn, images, inline_net, vit

PICO = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
NAMED: dict[str, Any] = {"img_size": 16, "weights": "none", "model_kwargs": PICO}


def test_the_counts_of_a_module_are_those_of_its_plan() -> None:
    plan = reparam.plan(vit(), FULL, example_input=images())
    profiled = reparam.profile(vit(), example_input=images(), measure=False)
    assert (profiled.parameters, profiled.operations) == (plan.before.parameters, plan.before.operations)
    assert profiled.uncounted == plan.before.uncounted
    assert (profiled.name, profiled.latency, profiled.file_bytes) == ("VisionTransformer", None, None)


def test_counts_are_per_image_whatever_the_batch() -> None:
    one, eight = (reparam.profile(cnn(), example_input=images(b), measure=False).operations for b in (1, 8))
    assert one == eight


def test_a_checkpoint_is_counted_as_converted_and_its_file_is_weighed(tmp_path: Path) -> None:
    conversion = reparam.convert(
        "vit_tiny_patch16_224", "shiftaddvit", weights="none", img_size=16, model_kwargs=PICO, out=tmp_path / "run"
    )
    profiled = reparam.profile(tmp_path / "run", measure=False)
    assert profiled.operations == conversion.plan.after.operations
    assert profiled.file_bytes == (tmp_path / "run" / "model.safetensors").stat().st_size
    assert profiled.operations["shift.f32"] > 0


def test_a_latency_is_measured_on_the_batch_that_was_asked_for() -> None:
    model = reparam.convert(vit(), FULL, example_input=images()).model
    latency = reparam.profile(model, batch_size=3).latency
    assert latency is not None
    assert (latency.batch_size, latency.device) == (3, "cpu")
    assert latency.median_ms > 0


def test_measuring_leaves_the_modes_of_a_module_alone() -> None:
    model = inline_net().train()
    model.blocks[0].eval()
    reparam.profile(model, example_input=images())
    assert model.training
    assert not model.blocks[0].training
    assert model.blocks[1].training


def test_a_module_whose_input_nothing_tells_is_refused() -> None:
    with pytest.raises(ModelError, match=r"nothing says what .*Linear takes as input; pass example_input="):
        reparam.profile(nn.Sequential(nn.Linear(4, 4))[0], measure=False)


def test_a_model_by_name_is_counted_without_weights() -> None:
    profiled = reparam.profile("deit_tiny", measure=False)
    assert profiled.name == "deit_tiny_patch16_224"
    assert profiled.parameters == 5_717_416
    assert profiled.operations["mul.f32"] / 1e9 == pytest.approx(1.3, abs=0.05)


def test_integer_inputs_are_counted_as_they_are() -> None:
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8))
    profiled = reparam.profile(model, example_input=torch.zeros(2, 5, dtype=torch.int64), measure=False)
    assert profiled.operations["mul.f32"] == 5 * 64


def test_an_evaluation_that_reparam_did_not_write_is_named(tmp_path: Path) -> None:
    reparam.save(reparam.convert("vit_tiny_patch16_224", "none", **NAMED).model, tmp_path / "run")
    (tmp_path / "run" / "evaluate.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"evaluate\.json is not what reparam wrote"):
        reparam.profile(tmp_path / "run", measure=False)


def test_measured_shares_of_a_run_replace_the_balanced_load(tmp_path: Path) -> None:
    model = reparam.convert("vit_tiny_patch16_224", "shiftaddvit", **NAMED).model
    reparam.save(model, tmp_path / "run")
    balanced = reparam.profile(tmp_path / "run", measure=False)
    shares = {f"blocks.{i}.mlp.router": 1.0 for i in range(2)}
    measured = reparam.profile(tmp_path / "run", measure=False, mult_share=shares)
    assert (balanced.experts, measured.experts) == ("balanced", "measured")
    tokens, layer = 17, 16 * 64
    # All tokens multiplied instead of 40 %: of two images, 14 of 34 tokens before.
    assert measured.operations["mul.f32"] - balanced.operations["mul.f32"] == 2 * 2 * layer * (tokens - 7)


def test_the_modules_of_a_profile_sum_to_its_operations() -> None:
    profiled = reparam.profile(vit(), example_input=images(), measure=False)
    total: Counter[str] = sum((Counter(module.operations) for module in profiled.modules), Counter())
    assert dict(total) == profiled.operations
    by_path = {module.path: module for module in profiled.modules}
    assert by_path["blocks.1.mlp.fc1"].type == "Linear"
    assert by_path["blocks.1.mlp.fc1"].operations["mul.f32"] == 17 * 16 * 64


def test_every_installed_table_prices_the_operations_in_floats_and_in_int8() -> None:
    profiled = reparam.profile(vit(), example_input=images(), measure=False)
    operations = profiled.operations
    assert [energy.table for energy in profiled.energies] == sorted(energy_tables())
    horowitz, int8 = profiled.energies[1], profiled.int8_energies[1]
    additions = (operations["add.f32"] + operations["cmp.f32"]) * 0.9
    assert horowitz.picojoules == pytest.approx(operations["mul.f32"] * 3.7 + additions)
    assert int8.picojoules == pytest.approx(
        operations["mul.f32"] * 0.2 + operations["add.f32"] * 0.1 + operations["cmp.f32"] * 0.9
    )
    assert set(horowitz.unpriced) == {"exp.f32", "div.f32", "sqrt.f32"}


def test_memory_is_priced_where_it_is_said_and_only_by_tables_that_price_it() -> None:
    memory = MemoryLevels(weights="dram")
    profiled = reparam.profile(vit(), example_input=images(), measure=False, memory=memory)
    (energy,) = profiled.energies
    assert energy.table == "horowitz-45nm"
    assert energy.by_operation["read.weight.f32"] == pytest.approx(profiled.parameters * 32 * 1300 / 64)
    with pytest.raises(CostError, match='"ecoformer" has no memory "dram"'):
        reparam.profile(vit(), example_input=images(), measure=False, memory=memory, tables=["ecoformer"])


def test_the_paper_s_accounting_is_a_table_like_others_and_runs_where_it_is_asked_for() -> None:
    profiled = reparam.profile(vit(), example_input=images(), measure=False, tables=["shiftaddvit-eyeriss"])
    (energy,), (int8,) = profiled.energies, profiled.int8_energies
    assert (energy.table, int8.table) == ("shiftaddvit-eyeriss", "shiftaddvit-eyeriss, 8 bits")
    assert 0 < int8.picojoules < energy.picojoules
    with pytest.raises(CostError, match=r'unknown energy table "shiftadvit"'):
        reparam.profile(vit(), example_input=images(), measure=False, tables=["shiftadvit"])
