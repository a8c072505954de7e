"""Small records in the shapes that the API returns, so that the command line is tested without a model."""

from typing import Any

from reparam.graph.records import Plan, Skip, StagePlan, Step, Totals
from reparam.ops.site import Site
from reparam.recipe.schema import Match, Recipe, Rule, Stage
from reparam.train.evaluate import Evaluation

RECIPE = Recipe(
    name="toy",
    summary="A toy.",
    stages=(
        Stage(
            name="attention",
            rules=(Rule(match=Match(kind="attention"), operator="binary_linear_attention"),),
            finetune={"epochs": 2},
        ),
        Stage(
            name="shift",
            rules=(
                Rule(match=Match(path="head"), operator="keep", reason="the classifier feels rounding most"),
                Rule(match=Match(kind="linear"), operator="shift_linear", options={"bits": 4}),
                Rule(match=Match(path="nowhere"), operator="keep", optional=True),
            ),
        ),
    ),
)


def site(path: str, kind: Any = "linear", **extra: Any) -> Site:
    return Site(path=path, kind=kind, type="torch.nn.Linear", input_shape=(1, 4), output_shape=(1, 4), **extra)


def plan_of(blocks: int = 12) -> Plan:
    indices = range(blocks)
    attention = StagePlan(
        name="attention",
        steps=tuple(
            Step(
                site=site(f"blocks.{i}.attn", "attention"),
                operator="binary_linear_attention",
                options={"codes": "sign", "conv_kernel": 5},
                rule="stage 0, rule 0",
            )
            for i in indices
        ),
        skips=tuple(
            Skip(site=site(f"blocks.{i}.mlp.fc1"), cause="no rule", reason="no rule picks it") for i in indices
        ),
    )
    shift = StagePlan(
        name="shift",
        steps=tuple(
            Step(
                site=site(f"blocks.{i}.mlp.{name}"),
                operator="shift_linear",
                options={"bits": 4},
                rule="stage 1, rule 1",
            )
            for i in indices
            for name in ("fc1", "fc2")
        ),
        skips=(
            Skip(site=site("head"), cause="keep", reason="the classifier feels rounding most", rule="stage 1, rule 0"),
            *(
                Skip(
                    site=site(f"blocks.{i}.attn.qkv"),
                    cause="refused",
                    reason=f"its weight is shared with blocks.{i}.attn.twin",
                    rule="stage 1, rule 1",
                )
                for i in indices
            ),
        ),
        unused_rules=("stage 1, rule 2",),
    )
    return Plan(
        recipe=RECIPE,
        fingerprint="0" * 64,
        input_shape=(1, 3, 224, 224),
        stages=(attention, shift),
        before=Totals(parameters=5_717_416, operations={"mul.f32": 1_258_000_000, "add.f32": 1_260_000_000}),
        after=Totals(
            parameters=5_900_000,
            operations={"mul.f32": 420_000_000, "add.f32": 1_300_000_000, "shift.f32": 800_000_000},
            uncounted={"aten.sin": 2},
        ),
    )


EVALUATION = Evaluation(
    top1=91.25,
    top5=99.5,
    loss=0.3125,
    images=400,
    top1_interval=(88.0, 93.6),
    images_per_second=812.4,
    device="cpu",
    mult_share={"blocks.0.mlp": 0.625, "blocks.1.mlp": 0.5},
)
