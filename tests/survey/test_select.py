import pytest
import timm

from reparam.errors import ModelError
from reparam.survey.select import families, select


def test_names_shorthands_and_globs_are_sorted_and_counted_once() -> None:
    assert select(["resnet1?", "deit_tiny", "resnet18"]) == ["deit_tiny_patch16_224", "resnet18"]
    assert select("resnet1[04]t") == ["resnet10t", "resnet14t"]
    assert select("vit_tiny_patch16_224.augreg_in21k") == ["vit_tiny_patch16_224"]
    assert select("*") == sorted(timm.list_models())


@pytest.mark.parametrize("pattern", ["resnett18", "resnett*"])
def test_a_pattern_that_picks_nothing_names_close_ones_in_one_sentence(pattern: str) -> None:
    with pytest.raises(ModelError, match=r"resnett.*resnet") as caught:
        select(["resnet18", pattern])
    assert "\n" not in str(caught.value)


def test_families_hold_every_name_once_the_largest_first() -> None:
    found = families(timm.list_models())
    assert sorted(name for names in found.values() for name in names) == sorted(timm.list_models())
    assert "resnet18" in found["resnet"]
    assert "deit_tiny_patch16_224" in found["deit"]
    sizes = [len(names) for names in found.values()]
    assert sizes == sorted(sizes, reverse=True)
