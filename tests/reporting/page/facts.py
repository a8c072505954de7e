"""A small run by hand: 8 multiplications become 2, of two blocks, with routers and two images."""

from typing import Any

import torch

from reparam.cost.latency import Latency
from reparam.ops.site import TokenGrid
from reparam.reporting.commands import Commands
from reparam.reporting.environment import Environment
from reparam.reporting.exponents import ExponentHistogram
from reparam.reporting.module_tree import Fate, ModuleNode
from reparam.reporting.page.records import (
    Figures,
    MappedImage,
    Missing,
    PageFacts,
    RoutingFacts,
    RunFacts,
    StageScore,
)
from reparam.reporting.pictures import data_uri
from reparam.reporting.routing_map import LayerMap
from reparam.train.metrics import StageHistory, StepPoint
from tests.train.reports import LAYERS, epoch_report, evaluation, stage_report

PIXEL = data_uri(torch.zeros(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
ENVIRONMENT = Environment(
    reparam="0.1.0", python="3.12.1", packages={"torch": "2.14"}, system="Linux", processor="a CPU", cores=2, threads=1,
    gpus=(),
)  # fmt: skip


def figures(*, ms: float | None = 2.0, **blocks: dict[str, int]) -> Figures:
    """Costs with these operations in blocks "a" and "b"."""
    modules = tuple((name, counts) for name, counts in blocks.items())
    total: dict[str, int] = {}
    for counts in blocks.values():
        for key, n in counts.items():
            total[key] = total.get(key, 0) + n
    latency = None if ms is None else Latency(
        median_ms=ms, iqr_ms=0.25, runs=30, batch_size=1, threads=1, device="cpu", dtype="float32"
    )  # fmt: skip
    return Figures(
        parameters=1000,
        operations=total,
        modules=modules,
        uncounted={},
        experts="measured",
        file_bytes=4000,
        latency=latency,
    )


def block(name: str, operator: str = "shift_linear") -> ModuleNode:
    fate = Fate(operator=operator, stage="all", rule="stage 0, rule 1", why=None)
    layer = ModuleNode(
        name="fc", before="Linear", after="ShiftLinear", parameters_before=10, parameters_after=10, fates=(fate,)
    )
    return ModuleNode(
        name=name, before="Block", after="Block", parameters_before=10, parameters_after=10, children=(layer,)
    )


def tree(*children: ModuleNode) -> ModuleNode:
    kept = ModuleNode(
        name="head", before="Linear", after="Linear", parameters_before=5, parameters_after=5,
        fates=(Fate(operator=None, stage="all", rule=None, why="no rule picks it"),),
    )  # fmt: skip
    return ModuleNode(
        name="", before="Net", after="Net", parameters_before=35, parameters_after=35, children=(*children, kept)
    )


def history(*, epochs: int = 2) -> tuple[StageHistory, ...]:
    steps = tuple(
        StepPoint(
            stage="all", epoch=1, step=u, update=u, loss=4.0 / u, top1=50.0, lr=1e-3 / u, images_per_second=9.0,
            mult_share=None,
        )
        for u in (2, 4)
    )  # fmt: skip
    done = tuple(
        epoch_report(e, "all", mult_share=dict(zip(LAYERS, (0.5 / e, 0.25), strict=True))) for e in range(1, epochs + 1)
    )
    report = stage_report("all", target_share=dict.fromkeys(LAYERS, 0.4))
    return (StageHistory(report=report, steps=steps, epochs=done),)


ROUTING = RoutingFacts(
    images=(
        MappedImage(uri=PIXEL, width=8, height=8, truth="cat", prediction="cat"),
        MappedImage(uri=PIXEL, width=8, height=8, truth="dog", prediction="cat"),
    ),
    layers=(
        LayerMap(
            path=LAYERS[0], grid=TokenGrid(prefix=1, height=2, width=3), multiplied=(("110", "011"), ("000", "000"))
        ),
        LayerMap(
            path=LAYERS[1], grid=TokenGrid(prefix=1, height=2, width=3), multiplied=(("111", "111"), ("001", "000"))
        ),
        LayerMap(path="blocks.2.mlp.router", no_grid="'flip' stands in between"),
    ),
    where="some/images",
)


def run(**changes: Any) -> RunFacts:
    facts: dict[str, Any] = {
        "name": "run",
        "folder": "runs/run",
        "model": "tiny_net",
        "recipe": "shiftaddvit",
        "summary": "Shifts.",
        "paper": "arXiv:2306.06446",
        "input_size": (3, 16, 16),
        "dense_digest": "d1",
        "dense_folder": "runs/run/dense",
        "dense": figures(ms=1.0, a={"mul.f32": 4, "add.f32": 4}, b={"mul.f32": 4, "add.f32": 4}),
        "model_figures": figures(
            a={"mul.f32": 1, "shift.i32": 3, "add.f32": 4}, b={"mul.f32": 1, "shift.i32": 3, "add.f32": 6}
        ),
        "blocks": ("a", "b"),
        "dense_evaluation": evaluation(81.25),
        "evaluation": evaluation(80.5),
        "stages": (StageScore(name="all", before=evaluation(40.0), best=evaluation(80.5), best_epoch=2, epochs=3),),
        "tree": tree(block("0"), block("1"), block("2", "moe_mlp")),
        "unseen": (),
        "exponents": (
            ExponentHistogram(path="blocks.0.fc", bits=5, lowest=-3, counts=(1, 0, 4), zeros=2),
            ExponentHistogram(path="blocks.1.fc", bits=5, lowest=-2, counts=(2, 2), zeros=0),
        ),
        "history": history(),
        "routing": ROUTING,
        "sensitivity": Missing(why="None yet", command="reparam sensitivity runs/run --data-dir DATA"),
        "baselines": None,
        "commands": Commands(lines=("reparam convert tiny_net --recipe shiftaddvit",), notes=("A note.",)),
    }  # fmt: skip
    return RunFacts(**{**facts, **changes})


def page(*runs: RunFacts) -> PageFacts:
    return PageFacts(runs=runs or (run(),), environment=ENVIRONMENT, made="2026-01-02 03:04 UTC")
