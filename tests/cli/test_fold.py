import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reparam_cli.render.fold import fold_paths


@pytest.mark.parametrize(
    ("paths", "lines"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param(["head"], ["head"], id="one"),
        pytest.param([f"blocks.{i}.attn" for i in range(12)], ["blocks.0-11.attn"], id="range"),
        pytest.param(["b.0.x", "b.2.x", "b.3.x"], ["b.0,2-3.x"], id="gap"),
        pytest.param(["b.10.x", "b.9.x"], ["b.9-10.x"], id="numeric order"),
        pytest.param(["b.0.fc1", "b.0.fc2", "b.1.fc1", "b.1.fc2"], ["b.0-1.{fc1,fc2}"], id="last name"),
        pytest.param(["s.0.b.0.x", "s.0.b.1.x", "s.1.b.0.x", "s.1.b.1.x"], ["s.0-1.b.0-1.x"], id="full grid"),
        pytest.param(["s.0.b.0.x", "s.0.b.1.x", "s.1.b.0.x"], ["s.0.b.0-1.x", "s.1.b.0.x"], id="ragged grid"),
        pytest.param(["a.0.x", "b.0.x"], ["a.0.x", "b.0.x"], id="different middles stay apart"),
        pytest.param([f"layer_{i}.x" for i in range(12)], ["layer_0-11.x"], id="number behind an underscore"),
        pytest.param(["a_0.x", "b_1.x"], ["a_0.x", "b_1.x"], id="different stems stay apart"),
        pytest.param(["fc1.x", "fc2.x", "a_01.x", "a_1.x"], ["fc1.x", "fc2.x", "a_01.x", "a_1.x"], id="names"),
        pytest.param(["m.proj_1", "m.proj_2"], ["m.proj_1-2"], id="last name with a number"),
        pytest.param(["head", "head_dist"], ["{head,head_dist}"], id="top level"),
        pytest.param([""], [""], id="the model itself"),
    ],
)
def test_paths_fold_to_lines(paths: list[str], lines: list[str]) -> None:
    assert [line.text for line in fold_paths(paths)] == lines


_PARTS = ["0", "1", "2", "3", "a", "b", "a_0", "a_1", "b_2", "_3"]
_PATHS = st.lists(
    st.lists(st.sampled_from(_PARTS), min_size=1, max_size=4).map(".".join),
    unique=True,
    max_size=12,
)


@given(_PATHS)
def test_lines_unfold_to_exactly_the_given_paths(paths: list[str]) -> None:
    lines = fold_paths(paths)
    unfolded = [path for line in lines for path in _unfold(line.text)]
    assert sorted(unfolded) == sorted(paths)
    assert sum(line.count for line in lines) == len(paths)


def _unfold(text: str) -> list[str]:
    parts = []
    for part in re.split(r"\.(?![^{]*\})", text):
        if part.startswith("{"):
            parts.append(part[1:-1].split(","))
        elif numbered := re.fullmatch(r"(|.*_)([\d,-]+)", part):
            parts.append([f"{numbered[1]}{n}" for run in numbered[2].split(",") for n in _run(run)])
        else:
            parts.append([part])
    return [".".join(combination) for combination in itertools.product(*parts)]


def _run(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)
