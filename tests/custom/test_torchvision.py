"""torchvision's transformers, small: ViT uses nn.MultiheadAttention, Swin hides attention behind torch.fx.wrap."""

from functools import partial
from pathlib import Path

import pytest

from tests.custom.case import LAWS, NAMED_LAWS, Case
from tests.custom.models import seeded

torchvision = pytest.importorskip("torchvision", reason="torchvision comes with timm, but is not installed")
from torchvision.models import MaxVit, SwinTransformer, VisionTransformer  # noqa: E402  # after the skip
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2  # noqa: E402

vit = partial(
    VisionTransformer,
    image_size=16,
    patch_size=4,
    num_layers=2,
    num_heads=2,
    hidden_dim=16,
    mlp_dim=32,
    num_classes=3,
)
swin = partial(
    SwinTransformer,
    patch_size=[4, 4],
    embed_dim=8,
    depths=[2, 1],
    num_heads=[1, 2],
    window_size=[4, 4],
    num_classes=3,
)
swin_v2 = partial(swin, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)
maxvit = partial(
    MaxVit,
    input_size=(32, 32),
    stem_channels=8,
    partition_size=4,
    block_channels=[8, 16],
    block_layers=[1, 1],
    head_dim=4,
    stochastic_depth_prob=0.1,
    num_classes=3,
)

CASES = {
    "vit_b_16": Case(make=seeded(vit), attentions=2, mlps=2),
    "swin_t": Case(make=seeded(swin), attentions=3, mlps=3, size=32),
    "swin_v2_t": Case(make=seeded(swin_v2), attentions=3, mlps=3, size=32),
    "maxvit_t": Case(make=seeded(maxvit), attentions=4, mlps=4, size=32),
}


@pytest.mark.parametrize("law", NAMED_LAWS)
@pytest.mark.parametrize("name", CASES)
def test_a_torchvision_model(name: str, law: str, tmp_path: Path) -> None:
    LAWS[law](CASES[name], tmp_path)
