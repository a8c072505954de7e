"""A call of `reparam.bench` that was stopped keeps its finished tables, as long as they are about the same models."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import reparam
from reparam.api import bench as bench_file
from reparam.cost import measure
from reparam.cost.baselines.base import Run
from reparam.cost.rounds import Rounds
from reparam.models.build import build_model, build_spec

FACTORY = """
from timm.models.vision_transformer import VisionTransformer

def tiny(img_size=16, num_classes=3):
    sizes = dict(patch_size=4, embed_dim=16, depth=1, num_heads=2)
    return VisionTransformer(img_size=img_size, num_classes=num_classes, **sizes)
"""
RECIPE = """
name = "own"
summary = "Shift layers."
[[stage]]
name = "shift"
[[stage.rule]]
match = { kind = "linear" }
operator = "shift_linear"
options = { bits = 5 }
"""


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def _other_recipe(folder: Path) -> None:
    _edit(folder / "own.toml", "bits = 5", "bits = 4")


def _other_factory(folder: Path) -> None:
    _edit(folder / "models.py", "num_heads=2", "num_heads=4")


def _other_weights(folder: Path) -> None:
    weights = load_file(folder / "weights.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / "weights.safetensors")


def _nothing(folder: Path) -> None:
    pass


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes that were measured; the second time is interrupted. No engine runs but the eager one."""
    batches = list[int]()
    whole = measure.measure_batch

    def stops_once(batch: torch.Tensor, **options: Any) -> Any:
        batches.append(len(batch))
        if len(batches) == 2:
            raise KeyboardInterrupt
        return whole(batch, **options)

    def time_in_turns(runs: Mapping[Any, Run], **options: Any) -> dict[Any, Rounds]:
        return {key: Rounds(means_ms=(1.0, 1.0), runs=2) for key in runs}

    monkeypatch.setattr(bench_file, "measure_batch", stops_once)
    monkeypatch.setattr(measure, "time_in_turns", time_in_turns)
    return batches


def _bench(folder: Path, model: str, **asked: Any) -> None:
    both: dict[str, Any] = {
        "batch_size": [1, 2],
        "baselines": "eager",
        "lowered": "none",
        "threads": 1,
        "out": folder / "b.json",
    }
    reparam.bench(model, **both, **asked)


@pytest.mark.parametrize(
    ("change", "again"),
    [(_nothing, [2]), (_other_recipe, [1, 2]), (_other_factory, [1, 2]), (_other_weights, [1, 2])],
)
def test_tables_of_a_named_model_are_kept_while_recipe_factory_and_weights_stay(
    tmp_path: Path, measured: list[int], change: Callable[[Path], None], again: list[int]
) -> None:
    (tmp_path / "models.py").write_text(FACTORY, encoding="utf-8")
    (tmp_path / "own.toml").write_text(RECIPE, encoding="utf-8")
    model = f"{tmp_path / 'models.py'}:tiny"
    save_file(build_model(build_spec(model)).state_dict(), tmp_path / "weights.safetensors")
    asked: dict[str, Any] = {"recipe": tmp_path / "own.toml", "weights": str(tmp_path / "weights.safetensors")}
    asked["img_size"] = 16
    with pytest.raises(KeyboardInterrupt):
        _bench(tmp_path, model, **asked)
    change(tmp_path)
    _bench(tmp_path, model, **asked)
    assert measured == [1, 2, *again]


@pytest.mark.parametrize(("seed", "again"), [(0, [2]), (1, [1, 2])])
def test_tables_of_a_run_are_kept_while_its_weights_stay(
    tmp_path: Path, measured: list[int], seed: int, again: list[int]
) -> None:
    def convert(seed: int) -> None:
        sizes = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
        torch.manual_seed(seed)
        dense = build_model(build_spec("vit_tiny_patch16_224", num_classes=3, img_size=16, model_kwargs=sizes))
        reparam.convert(dense, "deepshift-q", out=tmp_path / "run")

    convert(0)
    with pytest.raises(KeyboardInterrupt):
        _bench(tmp_path, str(tmp_path / "run"))
    convert(seed)
    _bench(tmp_path, str(tmp_path / "run"))
    assert measured == [1, 2, *again]
