"""Hugging Face's vision models, tiny and random, with attention written out (eager) and fused (sdpa)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.custom.case import LAWS, NAMED_LAWS, Case
from tests.custom.models import seeded

hf = pytest.importorskip("transformers", minversion="5.20", reason="the dev extra installs transformers")

_WIDTHS: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_IMAGE: dict[str, Any] = {"image_size": 16, "patch_size": 4}
_PLAIN = {**_WIDTHS, **_IMAGE, "intermediate_size": 32}
_PYRAMID: dict[str, Any] = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "hidden_sizes": [8, 16],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 2],
    "sr_ratios": [2, 1],
    "strides": [4, 2],
    "patch_sizes": [7, 3],
}
_SWIN: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [2, 1],
    "num_heads": [1, 2],
    "window_size": 4,
}


def build(model: str, config: str, implementation: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        settings = getattr(hf, config)(**options, attn_implementation=implementation)
        made: nn.Module = getattr(hf, model)(settings)
        return made

    return seeded(make)


def cases(implementation: str) -> dict[str, Case]:
    classify = {"num_labels": 3}
    dinov2 = {**_WIDTHS, **_IMAGE, "mlp_ratio": 2}
    named: dict[str, tuple[str, str, dict[str, Any], int, int]] = {
        "ViT": ("ViTForImageClassification", "ViTConfig", _PLAIN | classify, 2, 16),
        "DeiT": ("DeiTForImageClassification", "DeiTConfig", _PLAIN | classify, 2, 16),
        "DINOv2": ("Dinov2ForImageClassification", "Dinov2Config", dinov2 | classify, 2, 16),
        "BEiT": (
            "BeitForImageClassification",
            "BeitConfig",
            {**_PLAIN, **classify, "use_relative_position_bias": True},
            2,
            16,
        ),
        "CLIP": ("CLIPVisionModel", "CLIPVisionConfig", _PLAIN, 2, 16),
        "Swin": ("SwinForImageClassification", "SwinConfig", _SWIN | classify, 3, 32),
        "Segformer": (
            "SegformerForImageClassification",
            "SegformerConfig",
            {**_PYRAMID, **classify, "decoder_hidden_size": 8},
            2,
            32,
        ),
    }
    if implementation == "eager":  # transformers has no fused attention for it
        named["PVTv2"] = (
            "PvtV2ForImageClassification",
            "PvtV2Config",
            {**_PYRAMID, **classify, "image_size": 32},
            2,
            32,
        )
    return {
        f"{name}, {implementation}": Case(
            make=build(model, config, implementation, **options),
            attentions=attentions,
            mlps=attentions,
            size=size,
            # While exporting, transformers passes a mask of ones where it otherwise passes none.
            no_export="was converted for calls with" if name in {"ViT", "DeiT", "DINOv2"} else None,
        )
        for name, (model, config, options, attentions, size) in named.items()
    }


CASES = cases("eager") | cases("sdpa")


@pytest.mark.parametrize("law", NAMED_LAWS)
@pytest.mark.parametrize("name", CASES)
def test_a_hugging_face_model(name: str, law: str, tmp_path: Path) -> None:
    LAWS[law](CASES[name], tmp_path)
