"""The trained weights under docs/results: small, whole, and what their page says they are."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import reparam

RESULTS = Path(__file__).parents[1] / "docs" / "results"
DENSE = {
    "vit": (
        "vit_tiny_patch16_224",
        {
            "patch_size": 4,
            "embed_dim": 128,
            "depth": 6,
            "num_heads": 4,
            "class_token": False,
            "global_pool": "avg",
            "img_size": 32,
        },
    ),
    "pvt": ("pvt_v2_b0", {"embed_dims": (32, 64, 96, 128), "depths": (2, 2, 2, 2), "num_heads": (1, 2, 3, 4)}),
    "cifar_resnet20": ("cifar_resnet20", {}),
}
CONVERTED = sorted(path.parent for path in RESULTS.glob("*/*/config.json"))


@pytest.mark.parametrize("name", DENSE)
def test_the_dense_weights_are_the_starting_point_that_a_conversion_takes(name: str) -> None:
    model, arguments = DENSE[name]
    file = RESULTS / name / "dense.safetensors"
    made = reparam.convert(model, "none", weights=str(file), num_classes=10, model_kwargs=arguments).model
    wanted = load_file(file)
    found = made.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key].to(found[key].dtype)) for key in wanted)


@pytest.mark.parametrize("folder", CONVERTED, ids=lambda folder: folder.name)
def test_the_converted_models_load_and_give_the_logits_that_they_were_saved_with(folder: Path) -> None:
    model = reparam.load(folder)  # compares with the golden logits in the folder
    assert any(type(module).__name__ == "ShiftLinear" for module in model.modules())


def test_no_shipped_file_is_large_and_none_tells_of_the_machine_it_was_made_on() -> None:
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert len(CONVERTED) >= 2
    assert all(path.stat().st_size < 5_000_000 for path in files)
    assert not [path for path in files if path.suffix in {".json", ".csv"} and '"/' in path.read_text(encoding="utf-8")]
