"""Shorthands resolve to the one model they can mean, and to candidates otherwise."""

import pytest
import timm

from reparam.errors import ModelError
from reparam.models.names import Resolved, resolve_name

EXACT = ["resnet18", "deit_tiny_patch16_224", "pvt_v2_b0", "deit_tiny_patch16_224.fb_in1k", "levit_128"]
SHORT = [
    ("deit_tiny", "deit_tiny_patch16_224"),
    ("deit_small", "deit_small_patch16_224"),
    ("deit_tiny_distilled", "deit_tiny_distilled_patch16_224"),
    ("swin_tiny", "swin_tiny_patch4_window7_224"),
    ("deit_tiny.fb_in1k", "deit_tiny_patch16_224.fb_in1k"),
    ("vit_base_patch8", "vit_base_patch8_224"),
]
AMBIGUOUS = [
    ("deit_base", ["deit_base_patch16_224", "deit_base_patch16_384"]),
    ("vit_tiny", ["vit_tiny_patch16_224", "vit_tiny_patch16_384"]),
    ("deit3_small", ["deit3_small_patch16_224", "deit3_small_patch16_384"]),
    ("vit_base", ["vit_base_patch8_224", "vit_base_patch16_224", "vit_base_patch32_384"]),
    ("swin_base", ["swin_base_patch4_window7_224", "swin_base_patch4_window12_384"]),
]
UNKNOWN = [
    ("deit_tny", "deit_tiny_patch16_224"),
    ("DeiT-Tiny", "deit_tiny_patch16_224"),
    ("tiny_distilled", "deit_tiny_distilled_patch16_224"),
    ("pvt_v2", "pvt_v2_b0"),
    ("resnet20", "resnet50"),
]


@pytest.mark.parametrize("name", EXACT)
def test_a_timm_name_is_taken_as_it_is(name):
    assert resolve_name(name) == Resolved(name=name)


@pytest.mark.parametrize(("short", "full"), SHORT)
def test_a_shorthand_stands_for_the_one_model_that_adds_patch_and_size(short, full):
    resolved = resolve_name(short)
    assert resolved == Resolved(name=full, note=f"{short} is short for {full}")
    assert timm.is_model(full)


@pytest.mark.parametrize(("short", "candidates"), AMBIGUOUS)
def test_an_ambiguous_shorthand_lists_what_it_may_mean_and_nothing_else(short, candidates):
    with pytest.raises(ModelError, match="Name one of them") as caught:
        resolve_name(short)
    message = str(caught.value)
    assert all(candidate in message for candidate in candidates)
    assert "distilled" not in message
    assert "clip" not in message


@pytest.mark.parametrize(("typed", "meant"), UNKNOWN)
def test_an_unknown_name_gets_close_names(typed, meant):
    with pytest.raises(ModelError, match="is unknown to timm") as caught:
        resolve_name(typed)
    assert meant in str(caught.value)


def test_a_name_like_nothing_says_where_the_list_is():
    with pytest.raises(ModelError, match="lists all names"):
        resolve_name("qqqqqqqqqq")


def test_a_long_list_of_candidates_is_cut():
    with pytest.raises(ModelError, match=r"and \d+ more"):
        resolve_name("vit")


def test_a_wrong_pretrained_tag_lists_the_right_ones():
    with pytest.raises(ModelError, match=r'no pretrained tag "fb_in22k". Its tags: fb_in1k\.'):
        resolve_name("deit_tiny.fb_in22k")


def test_a_renamed_model_is_followed_with_a_note():
    resolved = resolve_name("convnext_tiny_in22ft1k")
    assert resolved.name == "convnext_tiny.fb_in22k_ft_in1k"
    assert "is now called" in str(resolved.note)


@pytest.mark.parametrize("name", ["hf-hub:org/name", "local-dir:models/x", "nets/mine.py:make"])
def test_names_of_other_sources_are_left_alone(name):
    assert resolve_name(name) == Resolved(name=name)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("timm/resnet18", "hf-hub:timm/resnet18"),
        ("runs/mine", "local-dir:runs/mine"),
        ("nets/mine.py", "nets/mine.py:FUNCTION"),
        ("nets/mine.py:", "name is empty"),
        ("hf-hub:", "name is empty"),
        ("", "name is empty"),
    ],
)
def test_what_is_no_model_name_says_how_to_write_it(name, advice):
    with pytest.raises(ModelError) as caught:
        resolve_name(name)
    assert advice in str(caught.value)


def test_every_unique_shorthand_drops_only_patch_window_and_size():
    shorthand = {"tnt_s": "tnt_s_patch16_224", "mixer_b16": "mixer_b16_224"}
    assert {short: resolve_name(short).name for short in shorthand} == shorthand


def test_a_path_that_holds_no_model_is_told_as_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qqqq").mkdir()
    with pytest.raises(ModelError, match='There is a path "qqqq" here, but no model that reparam has written'):
        resolve_name("qqqq")
