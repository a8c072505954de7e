import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reparam.graph.selector import path_matches
from reparam.tradeoff.folding import path_pattern

PARTS = st.sampled_from(["blocks", "0", "1", "2", "10", "attn", "qkv", "proj", "f[1]", "a+b"])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map(".".join)


@given(picked=st.sets(PATHS, min_size=1, max_size=12), others=st.sets(PATHS, max_size=12))
def test_a_pattern_picks_its_paths_and_no_other(picked: set[str], others: set[str]) -> None:
    pattern = path_pattern(picked)
    assert {path for path in picked | others if path_matches(pattern, path)} == picked


@pytest.mark.parametrize(
    ("paths", "pattern"),
    [
        (["head"], "head"),
        (["a.b"], "a.b"),
        (["blocks.0.fc", "blocks.2.fc", "blocks.10.fc"], r"re:blocks\.(0|2|10)\.fc"),
        ([f"b.{i}.{n}" for i in range(2) for n in ("qkv", "proj")], r"re:b\.(0|1)\.(proj|qkv)"),
        (["b.0.qkv", "b.1.qkv", "b.1.proj"], r"re:b\.1\.(proj|qkv)|b\.0\.qkv"),
    ],
    ids=["one", "one with a dot", "numbers in order", "a grid", "no grid"],
)
def test_full_grids_are_written_as_one(paths: list[str], pattern: str) -> None:
    found = path_pattern(paths)
    assert all(re.fullmatch(found.removeprefix("re:"), path) for path in paths)
    assert len(found) <= len(pattern)
