"""`reparam.explain` on a converted, a refused and an untouched module, before conversion and after."""

from pathlib import Path

import pytest
import torch

import reparam
from reparam.errors import CheckpointError, ModelError, RecipeError
from tests.pico import ATTENTION, FULL, LINEAR, Attention, cnn, images, inline_net, recipe, token_net, vit

PICO = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
NAMED = {"img_size": 16, "num_classes": 3, "model_kwargs": PICO}
#: Nothing may be lost with the softmax.
STRICT = recipe([{**ATTENTION, "options": {"drop": []}}])


def test_a_converted_module_is_told_the_rule_that_matched() -> None:
    explanation = reparam.explain(vit(), "blocks.0.attn", example_input=images())
    first = explanation.verdicts[0]
    assert (explanation.recipe, explanation.type) == ("shiftaddvit", "timm.layers.attention.Attention")
    assert (first.outcome, first.operator, first.rule) == ("becomes", "binary_linear_attention", "stage 0, rule 0")
    assert not first.is_done


def test_a_refused_module_is_told_the_first_test_that_failed_and_what_to_write() -> None:
    explanation = reparam.explain(token_net("bias"), "attn", recipe=STRICT, example_input=images())
    (verdict,) = explanation.verdicts
    assert verdict.outcome == "refused"
    assert verdict.reason is not None
    assert "position bias" in verdict.reason
    assert "would vanish with the softmax: bias" in explanation.facts
    first = verdict.changes[0]
    assert first.text == "to convert it without what is in the way, put this in place of stage 0, rule 0"
    assert first.toml is not None
    assert 'options = { drop = ["bias"] }' in first.toml


def test_a_layer_whose_reader_was_converted_is_told_from_one_that_never_ran() -> None:
    explanation = reparam.explain(
        token_net("linear over heads"), "attn.mix_last", recipe=recipe([ATTENTION], [LINEAR]), example_input=images()
    )
    last = explanation.verdicts[-1]
    assert (last.outcome, last.reason) == ("idle", "nothing reads it since an earlier stage")
    assert [change.text for change in last.changes] == ["nothing to change: what read it is converted"]


def test_what_may_not_be_dropped_is_no_way_out() -> None:
    explanation = reparam.explain(token_net("causal"), "attn", recipe=recipe([ATTENTION]), example_input=images())
    (verdict,) = explanation.verdicts
    assert verdict.outcome == "refused"
    assert not any("without what is in the way" in change.text for change in verdict.changes)


def test_an_untouched_module_is_told_why_it_is_no_site() -> None:
    explanation = reparam.explain(vit(), "blocks.0.norm1", example_input=images())
    assert explanation.verdicts == ()
    assert set(explanation.no_site) == {"attention", "mlp", "linear", "conv2d"}
    assert "softmax" in explanation.no_site["attention"]


def test_a_named_model_is_explained_like_the_module_it_builds() -> None:
    by_name = reparam.explain("vit_tiny_patch16_224", "blocks.*.mlp", recipe="shiftaddvit", **NAMED)
    by_module = reparam.explain(vit(), "blocks.*.mlp", recipe="shiftaddvit", example_input=images())
    assert by_name == by_module
    assert by_name.alike == ("blocks.1.mlp",)


def test_a_recipe_that_would_change_nothing_is_explained_and_not_refused() -> None:
    explanation = reparam.explain(cnn(), "6", recipe="shiftaddvit", example_input=images())
    assert [verdict.outcome for verdict in explanation.verdicts] == ["no rule", "no rule"]
    missed = explanation.verdicts[1].missed
    assert missed == {"stage 1, rule 2": 'it wants within = "attention", and this lies within no attention and no mlp'}


def test_a_run_is_explained_by_its_own_plan_and_what_is_done_is_told_from_what_is_to_come(tmp_path: Path) -> None:
    reparam.convert("vit_tiny_patch16_224", "shiftaddvit", weights="none", out=tmp_path / "run", **NAMED)
    done = reparam.explain(tmp_path / "run", "blocks.0.attn")
    assert [(v.outcome, v.is_done) for v in done.verdicts] == [("becomes", True), ("became", True)]
    assert done.facts == reparam.explain(vit(), "blocks.0.attn", example_input=images()).facts
    inside = reparam.explain(str(tmp_path / "run"), "blocks.0.mlp.fc1")
    assert [v.outcome for v in inside.verdicts] == ["no rule", "inside"]
    untouched = reparam.explain(str(tmp_path / "run"), "blocks.0.norm1")
    assert set(untouched.no_site) == {"attention", "mlp", "linear", "conv2d"}
    dense = reparam.explain(str(tmp_path / "run" / "dense"), "blocks.0.attn", model_kwargs={})
    assert not any(verdict.is_done for verdict in dense.verdicts)


def test_a_converted_module_object_is_explained_and_so_are_the_parts_of_operators() -> None:
    torch.manual_seed(0)
    model = reparam.convert(vit(), FULL, example_input=images(), stages=1).model
    explanation = reparam.explain(model, "blocks.0.attn")
    assert [(v.outcome, v.is_done) for v in explanation.verdicts] == [("becomes", True)]
    core = next(name for name, module in model.named_modules() if type(module).__name__ == "BinaryLinearAttention")
    part = reparam.explain(model, core)
    assert (part.verdicts, part.no_site, part.within) == ((), {}, 'attention "blocks.0.attn"')


def test_a_run_takes_no_recipe_and_a_model_without_a_known_input_an_example() -> None:
    model = reparam.convert(vit(), FULL, example_input=images()).model
    with pytest.raises(
        ModelError, match='by recipe "toy" and is explained by its own plan; leave out recipe, img_size'
    ):
        reparam.explain(model, "head", recipe="deepshift-q", img_size=32)
    with pytest.raises(ModelError, match="nothing says what InlineNet takes as input"):
        reparam.explain(inline_net(), "head")


def test_unknown_models_paths_recipes_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r'Did you mean "blocks\.0\.attn"'):
        reparam.explain(vit(), "block.0.attn", example_input=images())
    with pytest.raises(ModelError, match="deit_tinny"):
        reparam.explain("deit_tinny", "head")
    with pytest.raises(RecipeError, match="shiftadvit"):
        reparam.explain(vit(), "head", recipe="shiftadvit", example_input=images())
    with pytest.raises(ModelError, match=r'"re:blocks\[" is no regular expression'):
        reparam.explain(vit(), "re:blocks[", example_input=images())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a reparam checkpoint"):
        reparam.explain(tmp_path, "head")


def test_overrides_reach_the_rules() -> None:
    rules = recipe([{**LINEAR, "options": {"bits": 5}}])
    explanation = reparam.explain(
        vit(), "head", recipe=rules, example_input=images(), overrides=["stage.0.rule.0.bits=3"]
    )
    assert explanation.verdicts[0].options["bits"] == 3


def test_the_model_is_not_changed() -> None:
    model = token_net(Attention("fused")).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reparam.explain(model, "attn", recipe=recipe([ATTENTION]), example_input=images())
    assert model.training
    assert type(model.attn) is Attention
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
