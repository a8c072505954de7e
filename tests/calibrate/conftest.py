"""What all calibration tests share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random weights are the same whatever ran before."""
    torch.manual_seed(0)
