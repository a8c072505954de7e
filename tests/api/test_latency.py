"""The setting `latency` from its text to the routers of a model that was saved and loaded again."""

import csv
from pathlib import Path
from typing import Any

import pytest
from timm.layers import GlobalResponseNormMlp
from torch import Tensor, nn

import reparam
from reparam.api import latency as api
from reparam.api.latency import latency_lines, set_expert_latencies_, write_latencies
from reparam.checkpoint.load import load
from reparam.checkpoint.save import save
from reparam.cost.expert_latency import ExpertLatency, model_experts
from reparam.graph.provenance import provenance_of
from reparam.ops.moe import MoeMlp
from reparam.ops.routing import Router
from reparam.recipe.data_settings import DataSettings
from tests.pico import ATTENTION, MLP, images, recipe, token_net, vit
from tests.train.pico import draw_folder


class Plane(nn.Module):
    """An MLP that normalises over the image between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = GlobalResponseNormMlp(8, 16, use_conv=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x.transpose(1, 2).unflatten(2, (4, 4))).flatten(2).transpose(1, 2)


def converted(dense: nn.Module, **options: Any) -> nn.Module:
    return reparam.convert(dense, recipe([{**MLP, "options": options}]), example_input=images()).model


def latencies(model: nn.Module) -> list[tuple[float, float]]:
    return [module.latency for module in model.modules() if isinstance(module, Router)]


def figures(multiply: float, shift: float) -> ExpertLatency:
    return ExpertLatency(
        multiply_ms=multiply,
        multiply_iqr_ms=0.0,
        shift_ms=shift,
        shift_iqr_ms=0.0,
        tokens=34,
        batch=2,
        threads=1,
        device="cpu",
    )


@pytest.mark.parametrize("setting", ["recipe", "measured", "modelled", "0.7,0.1"])
def test_a_saved_and_reloaded_model_routes_by_the_same_latencies(setting: str, tmp_path: Path) -> None:
    model = converted(vit(), latency=[3, 1])
    set_expert_latencies_(model, setting, images())
    save(model, tmp_path / "run", example_input=images())
    loaded = load(tmp_path / "run", base=vit())
    wanted = {"recipe": (3.0, 1.0), "0.7,0.1": (0.7, 0.1), "modelled": next(iter(model_experts(model).values())).pair}
    assert latencies(loaded) == latencies(model) == [wanted.get(setting, latencies(model)[0])] * 2
    assert provenance_of(loaded) == provenance_of(model)


def test_the_recipe_s_latencies_come_back_after_others_were_set() -> None:
    model = converted(vit(), latency=[3, 1])
    before = provenance_of(model)
    set_expert_latencies_(model, "5,2", images())
    assert latencies(model) == [(5.0, 2.0)] * 2
    assert set_expert_latencies_(model, "recipe", images()) == {}
    assert provenance_of(model) == before
    assert latencies(model) == [(3.0, 1.0)] * 2


def test_the_load_is_counted_by_the_new_latencies() -> None:
    mlp = next(m for m in converted(vit()).modules() if isinstance(m, MoeMlp))
    mlp.set_latency_((1.0, 3.0))
    assert mlp.op_count((4, 16)) == mlp.op_count((4, 16), mult_share=0.75) != mlp.op_count((4, 16), mult_share=0.4)


def test_each_mixture_gets_its_own_measurement_and_alike_ones_share_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = converted(vit())
    found = {"blocks.0.mlp": figures(3.21, 3.35), "blocks.1.mlp": figures(1.0, 3.0)}
    monkeypatch.setattr(api, "measure_experts", lambda model, example_input: found)
    lines = tuple(latency_lines(set_expert_latencies_(model, "measured", images())))
    assert latencies(model) == [(3.21, 3.35), (1.0, 3.0)]
    assert lines == (
        "expert latencies, measured here (cpu, 1 thread, batch 2): blocks.0.mlp: multiply 3.21 ms, shift 3.35 ms, "
        "alpha 0.49 : 0.51, target 51% multiplied",
        "expert latencies, measured here (cpu, 1 thread, batch 2): blocks.1.mlp: multiply 1 ms, shift 3 ms, "
        "alpha 0.25 : 0.75, target 75% multiplied",
    )


def test_modelled_latencies_are_called_modelled() -> None:
    (line,) = latency_lines(set_expert_latencies_(converted(vit()), "modelled", images()))
    assert line == (
        "expert latencies, modelled by energy per operation: 2 mixtures from blocks.0.mlp to blocks.1.mlp: multiply "
        "9.49 nJ, shift 2.18 nJ a token, alpha 0.81 : 0.19, target 19% multiplied"
    )


def test_an_mlp_of_routed_layers_is_taken_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = converted(token_net(Plane()))
    paths = list(model_experts(model))
    monkeypatch.setattr(
        api, "measure_experts", lambda *_: dict(zip(paths, (figures(1.0, 2.0), figures(4.0, 0.5)), strict=True))
    )
    set_expert_latencies_(model, "measured", images())
    assert len(paths) == 2
    assert latencies(model) == [(5.0, 2.5)] * 2


def test_a_model_without_mixtures_is_left_alone() -> None:
    shift = {"match": {"path": "*.fc1"}, "operator": "shift_linear"}
    model = reparam.convert(vit(), recipe([shift]), example_input=images()).model
    before = provenance_of(model)
    assert set_expert_latencies_(model, "measured", images()) == {}
    assert provenance_of(model) is before


def test_a_trained_run_keeps_the_latencies_of_its_setting_in_the_stage_and_at_the_end(tmp_path: Path) -> None:
    root = draw_folder(tmp_path / "images")
    data = DataSettings(data_dir=str(root), mean=(0.5,), std=(0.5,), train_interpolation="bilinear", crop_pct=1.0)
    settings = {"epochs": 1, "batch_size": 12, "workers": 0, "no_aug": True, "latency": "modelled"}
    done = reparam.finetune(
        "vit_tiny_patch16_224",
        recipe=recipe([ATTENTION], [MLP]),
        data=data,
        settings=settings,
        weights="none",
        out=tmp_path / "run",
        device="cpu",
        num_classes=3,
        img_size=8,
        in_chans=1,
        model_kwargs={"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
    )
    for folder in (done.out, done.stages[1].checkpoint):
        loaded = load(folder)
        ((path, costs),) = model_experts(loaded).items()
        assert latencies(loaded) == [costs.pair]
    assert latencies(load(done.stages[0].checkpoint)) == []
    assert {file.name for file in done.out.glob("latency-*")} == {"latency-stage-1-stage-1.csv"}
    (row,) = csv.DictReader((done.out / "latency-stage-1-stage-1.csv").read_text(encoding="utf-8").splitlines())
    assert (row["mixture"], row["source"]) == (path, "modelled")
    assert float(row["target_mult_share"]) == pytest.approx(costs.shift_pj / sum(costs.pair))


def test_what_was_measured_is_a_table_with_the_spread_and_the_device_of_each_mixture(tmp_path: Path) -> None:
    write_latencies(tmp_path / "t.csv", {"a": figures(3.0, 1.0), "b": figures(1.0, 1.0)})
    assert (tmp_path / "t.csv").read_text(encoding="utf-8").splitlines() == [
        "mixture,multiply_ms,multiply_iqr_ms,shift_ms,shift_iqr_ms,tokens,batch,threads,device,source,alpha_multiply,"
        "target_mult_share",
        "a,3.0,0.0,1.0,0.0,34,2,1,cpu,measured here,0.75,0.25",
        "b,1.0,0.0,1.0,0.0,34,2,1,cpu,measured here,0.5,0.5",
    ]
