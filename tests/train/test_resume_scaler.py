"""The scaler of half precision, whose scale moves with the steps, is part of the state."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer

from reparam.checkpoint.recovery import newest_state, write_state
from reparam.recipe.data_settings import DataSettings
from reparam.train.data import image_format, make_loaders
from reparam.train.loop import Trainer
from tests.train.loops import CPU, PLAIN
from tests.train.pico import pico_vit

SETTINGS = replace(PLAIN, clip_grad=None, recovery_interval=1, checkpoint_hist=99)
UPDATES, HALF = 12, 7


def trainer(data: DataSettings, folder: Path, *, device: torch.device = CPU, precision: str | None = None) -> Trainer:
    settings = SETTINGS if precision is None else replace(SETTINGS, amp=True, amp_dtype=precision)
    image = image_format(data, input_size=(1, 8, 8))
    return Trainer(
        pico_vit(),
        make_loaders(data, settings, image=image, num_classes=3, device=device),
        settings=settings,
        num_classes=3,
        device=device,
        stage="pico",
        keep=lambda state: write_state(folder, state, keep=settings.checkpoint_hist),
    )


def with_scaler(made: Trainer) -> Trainer:
    """A scaler that doubles its scale every two steps, in the place that Accelerate fills on a GPU alone."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    engine = made.engine
    engine.accelerator.scaler = scaler
    engine.optimizer = AcceleratedOptimizer(engine.optimizer.optimizer, scaler=scaler)
    return made


def forget_after(folder: Path, updates: int) -> None:
    for path in folder.iterdir():
        if int(path.name.rpartition("-")[2]) > updates:
            path.rename(path.with_name(f"gone-{path.name}"))


def go_on(made: Trainer, folder: Path) -> None:
    state = newest_state(folder, "pico", passed_over=lambda path: None)
    assert state is not None
    assert state.updates == HALF
    made.resume(state)
    made.fit()


def test_a_resumed_run_goes_on_with_the_scale_it_had(data: DataSettings, tmp_path: Path) -> None:
    straight, resumed = (with_scaler(trainer(data, tmp_path)) for _ in range(2))
    straight.fit()
    forget_after(tmp_path, HALF)
    go_on(resumed, tmp_path)
    assert resumed.updates == UPDATES
    assert resumed.engine.scaler is not None
    assert straight.engine.scaler is not None
    assert resumed.engine.scaler.get_scale() == straight.engine.scaler.get_scale() == 1024 * 2 ** (UPDATES // 2)
    assert all(map(torch.equal, resumed.model.state_dict().values(), straight.model.state_dict().values()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_half_precision_on_a_gpu_is_resumed_with_its_scale(data: DataSettings, tmp_path: Path) -> None:
    device = torch.device("cuda")
    straight, resumed = (trainer(data, tmp_path, device=device, precision="float16") for _ in range(2))
    straight.fit()
    forget_after(tmp_path, HALF)
    go_on(resumed, tmp_path)
    assert resumed.engine.scaler is not None
    assert straight.engine.scaler is not None
    assert resumed.engine.scaler.state_dict() == straight.engine.scaler.state_dict()
