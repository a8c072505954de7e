"""What only a CUDA device can show: the grouped dispatch never makes the host wait, and agrees with the masked one."""

import pytest
import torch

from reparam.ops.moe import MoeMlp, MoeMlpOptions

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def mixture(dispatch: str) -> MoeMlp:
    torch.manual_seed(0)
    example = MoeMlp.examples()[0]
    options = MoeMlpOptions(dispatch=dispatch, router_init="normal", router_noise=0.0)  # type: ignore[arg-type]
    return MoeMlp.from_dense(example.dense(), example.site, options).cuda().bfloat16()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_training_step_never_synchronises_with_the_host() -> None:
    moe = mixture("auto").train()
    x = torch.randn(64, 197, 8, device="cuda", dtype=torch.bfloat16)
    assert moe._way(x) == "grouped"
    moe(x).float().square().mean().backward()  # warm-up: the first call may allocate and load kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        moe(x).float().square().mean().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_grouped_and_masked_dispatch_agree() -> None:
    x = torch.randn(4, 197, 8, device="cuda", dtype=torch.bfloat16)
    grouped, masked = (mixture(way).eval()(x).float() for way in ("grouped", "masked"))
    torch.testing.assert_close(grouped, masked, rtol=2e-2, atol=2e-2)
