import copy
from collections.abc import Iterator

import pytest

import reparam
from reparam.reporting.module_tree import ModuleNode, module_tree
from tests import pico


def nodes(tree: ModuleNode, path: str = "") -> Iterator[tuple[str, ModuleNode]]:
    yield path, tree
    for child in tree.children:
        yield from nodes(child, f"{path}.{child.name}".lstrip("."))


@pytest.fixture(scope="module")
def tree() -> dict[str, ModuleNode]:
    dense = pico.vit()
    conversion = reparam.convert(
        copy.deepcopy(dense), "shiftaddvit", overrides=["stage.1.rule.2.bits=4"], example_input=pico.images()
    )
    return dict(nodes(module_tree(dense, conversion.model, conversion.plan)))


def test_a_converted_layer_tells_its_classes_its_rule_and_the_options_that_differ(tree: dict[str, ModuleNode]) -> None:
    node = tree["blocks.0.attn.qkv"]
    assert (node.before, node.after) == ("Linear", "ShiftLinear")
    (fate,) = node.fates
    assert (fate.operator, fate.stage, fate.rule) == ("shift_linear", "experts", "stage 1, rule 2")
    assert fate.options == {"bits": 4}


def test_what_stays_tells_why(tree: dict[str, ModuleNode]) -> None:
    (fate,) = tree["head"].fates
    assert fate.operator is None
    assert fate.why == "the classifier is one product per image and feels rounding most"


def test_new_modules_have_no_before_and_parts_of_a_swapped_one_are_not_told(tree: dict[str, ModuleNode]) -> None:
    assert tree["blocks.0.mlp.router"].before is None
    assert tree["blocks.0.mlp"].before == "Mlp"
    assert "blocks.0.mlp.fc1" not in tree


def test_parameters_are_those_of_the_module_with_its_parts(tree: dict[str, ModuleNode]) -> None:
    dense = pico.vit()
    assert tree[""].parameters_before == sum(p.numel() for p in dense.parameters())
    assert tree["blocks.1"].parameters_before == sum(p.numel() for p in dense.blocks[1].parameters())


def test_modules_without_parameters_are_left_out(tree: dict[str, ModuleNode]) -> None:
    assert "blocks.0.drop_path1" not in tree
    assert "blocks.0.norm1" in tree


def test_a_model_without_a_plan_has_no_fates() -> None:
    model = pico.vit()
    assert all(not node.fates and node.before is None for _, node in nodes(module_tree(None, model, None)))
