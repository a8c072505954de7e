"""What a recipe is: metadata, ordered stages, and in each stage ordered rules; frozen data without tensors."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["linear", "conv2d", "attention", "mlp"]
Enclosure = Literal["attention", "mlp"]
OPERATOR_KEEP = "keep"


class Frozen(BaseModel):
    """Base of every recipe and plan record: immutable, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Match(Frozen):
    """Which sites a rule picks; every field that is given must hold."""

    kind: Kind | None = Field(None, description="Kind of site: linear, conv2d, attention or mlp.")
    type: str | None = Field(None, description="Qualified class name, as a glob: 'timm.layers.attention.*'.")
    path: str | None = Field(None, description="Dotted module path, as a glob, or 're:' and a full-match regex.")
    within: Enclosure | None = Field(None, description="Kind of the block that the site is a part of.")
    edge: Literal["first", "last"] | None = Field(
        None,
        description="Layers that read the model's input before any other, or that no other reads: stem, classifier.",
    )
    exclude: tuple[str, ...] = Field((), description="Paths (globs or 're:') that the rule leaves to later rules.")


class Rule(Frozen):
    """One decision: the sites that match become `operator` with `options`. The first matching rule wins."""

    match: Match = Field(Match(), description="Which sites this rule picks.")
    operator: str = Field(description="Registered operator, or 'keep' to leave the site as it is.")
    options: dict[str, Any] = Field({}, description="Options of the operator.")
    reason: str | None = Field(None, description="Why, in words; shown in the plan for 'keep'.")
    optional: bool = Field(False, description="A rule that matches nothing is an error unless this is true.")
    on_refusal: Literal["error", "keep"] = Field(
        "error", description="What a refused site means: an error, or kept as it is."
    )


class Stage(Frozen):
    """Rules applied together, then one fine-tuning."""

    name: str = Field(description="Short name, used for the stage's folder.")
    rules: tuple[Rule, ...] = Field((), alias="rule", description="Ordered rules; the first match wins.")
    finetune: dict[str, Any] = Field({}, description="Training settings that differ from the defaults.")

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Recipe(Frozen):
    """A named, ordered way to convert and fine-tune a model."""

    name: str = Field(description="Name, equal to the file's stem.")
    summary: str = Field(description="One sentence.")
    paper: str | None = Field(None, description="Source, such as 'arXiv:2306.06446'.")
    licence: str = Field("Apache-2.0", description="Licence of the recipe itself.")
    stages: tuple[Stage, ...] = Field(alias="stage", description="Ordered stages.", min_length=1)

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
