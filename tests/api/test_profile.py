"""`reparam.profile`: counts that agree with the plan, sizes of files, and a latency measured here or none."""

import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam import Profile
from reparam.cost.energy_table import MemoryLevels, energy_tables
from reparam.cost.rounds import Rounds
from reparam.errors import CheckpointError, CostError, ModelError, OptionError
from reparam.train.progress import Silent
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


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes that were timed, by a clock that gives each run a millisecond more than the one before it."""
    sizes: list[int] = []

    def time_in_turns(runs: Mapping[Any, Callable[[], Tensor]], **options: Any) -> dict[Any, Rounds]:
        sizes.append({len(run()) for run in runs.values()}.pop())
        return _a_millisecond_more_each(runs)

    monkeypatch.setattr("reparam.cost.measure.time_in_turns", time_in_turns)
    monkeypatch.setattr("reparam.cost.expert_latency.time_in_turns", _a_millisecond_more_each)
    return sizes


def _a_millisecond_more_each(runs: Mapping[Any, object], **options: Any) -> dict[Any, Rounds]:
    return {key: Rounds(means_ms=(n, n, n), runs=3) for n, key in enumerate(runs, start=1)}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    reparam.convert("vit_tiny_patch16_224", "shiftaddvit", **NAMED, out=folder)
    return folder


def test_latencies_are_measured_on_the_batches_that_were_asked_for(timed: list[int]) -> None:
    model = reparam.convert(vit(), FULL, example_input=images()).model
    profiled = reparam.profile(model, batch_size=[3, 1], threads=2)
    assert profiled.latency is not None
    assert (profiled.latency.batch_size, profiled.latency.device, profiled.latency.threads) == (3, "cpu", 2)
    assert profiled.measured is not None
    assert [(m.side, m.engine, m.batch_size) for m in profiled.measured.measurements] == [
        ("converted", "eager", 3),
        ("converted", "eager", 1),
    ]
    assert timed == [3, 1]


def test_a_run_is_measured_beside_the_baselines_of_its_original(run_folder: Path, timed: list[int]) -> None:
    profiled = reparam.profile(run_folder, batch_size=2)
    measured, dense = profiled.measured, profiled.dense
    assert measured is not None
    assert dense is not None
    assert [(m.side, m.engine) for m in measured.measurements if m.latency] == [
        ("converted", "eager"),
        ("dense", "eager"),
        ("dense", "bf16"),
    ]
    (comparison,) = measured.comparisons
    assert (comparison.engine, comparison.dense_ms, comparison.converted_ms) == ("eager", 2.0, 1.0)
    assert (profiled.latency.median_ms, dense.latency.median_ms) == (1.0, 2.0)  # type: ignore[union-attr]
    assert dense.operations["mul.f32"] > profiled.operations["mul.f32"]
    assert dense.file_bytes == (run_folder / "dense" / "model.safetensors").stat().st_size
    assert {row.shares for row in measured.schedules} == {"timed batch", "balanced"}


def test_what_was_measured_stands_in_the_run_and_reads_back(run_folder: Path, timed: list[int]) -> None:
    profiled = reparam.profile(run_folder, baselines="none")
    written = Profile.model_validate_json((run_folder / "profile.json").read_bytes())
    assert written == profiled
    assert written.measured is not None
    assert not (run_folder / "dense" / "profile.json").exists()
    reparam.profile(run_folder, measure=False, write=False)
    assert Profile.model_validate_json((run_folder / "profile.json").read_bytes()) == profiled


def test_a_profile_that_fails_leaves_the_one_before(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run_folder / "profile.json").write_text("the one before")
    monkeypatch.setattr("reparam.api.profile.measure_models", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reparam.profile(run_folder)
    assert (run_folder / "profile.json").read_text() == "the one before"


def test_the_original_of_a_run_can_be_left_out(run_folder: Path, timed: list[int]) -> None:
    profiled = reparam.profile(run_folder, with_dense=False, write=False)
    assert profiled.dense is None
    assert profiled.measured is not None
    assert {m.side for m in profiled.measured.measurements} == {"converted"}
    assert profiled.measured.comparisons == ()


def test_a_stage_stands_beside_the_original_of_its_run(run_folder: Path, timed: list[int]) -> None:
    stage = run_folder / "stage-0-attention"
    stage.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(run_folder / name, stage / name)
    profiled = reparam.profile(stage, measure=False, write=False)
    assert profiled.dense is not None
    assert profiled.dense.name == str(run_folder / "dense")


def test_a_converted_model_without_its_original_is_measured_alone_and_that_is_said(
    run_folder: Path, timed: list[int], tmp_path: Path
) -> None:
    class Notes(Silent):
        def message(self, text: str) -> None:
            told.append(text)

    told: list[str] = []
    (tmp_path / "dense").mkdir()  # of nobody: the folder above is no run
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "alone").mkdir(exist_ok=True)
        shutil.copy(run_folder / name, tmp_path / "alone" / name)
        shutil.copy(run_folder / "dense" / name, tmp_path / "dense" / name)
    profiled = reparam.profile(tmp_path / "alone", progress=Notes())
    assert profiled.dense is None
    assert profiled.measured is not None
    assert [m.side for m in profiled.measured.measurements] == ["converted"]
    assert (
        told[0] == f"{tmp_path / 'alone'} has no dense original beside it, so it is measured alone, without baselines"
    )


def test_a_model_that_is_not_converted_is_run_by_the_baselines_itself(timed: list[int]) -> None:
    profiled = reparam.profile(vit(), example_input=images())
    assert profiled.measured is not None
    assert {m.side for m in profiled.measured.measurements} == {"dense"}
    assert [m.engine for m in profiled.measured.measurements if m.latency] == ["eager", "bf16"]
    assert (profiled.measured.comparisons, profiled.measured.schedules) == ((), ())


def test_without_baselines_it_still_runs_as_it_is(timed: list[int]) -> None:
    profiled = reparam.profile(vit(), example_input=images(), baselines="none")
    assert profiled.measured is not None
    assert [m.engine for m in profiled.measured.measurements] == ["eager"]
    assert profiled.latency == profiled.measured.measurements[0].latency


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch size 0: wanted 1 or more"),
        ({"batch_size": (4, -1)}, "batch size -1: wanted 1 or more"),
        ({"batch_size": ()}, "no batch size to measure"),
        ({"threads": 0}, "threads 0: wanted 1 or more"),
        ({"baselines": "quick,bf61"}, 'unknown baseline "bf61". Did you mean "bf16"?'),
    ],
)
def test_bad_requests_are_refused_before_anything_is_loaded(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=re.escape(words)):
        reparam.profile("no-such-model", **options)


def test_measuring_leaves_the_modes_of_a_module_alone(timed: list[int]) -> None:
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
