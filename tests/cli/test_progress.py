import io

from rich.console import Console

from reparam.train.progress import EpochReport, StageReport, StepReport
from reparam_cli.render.training import BarProgress, LineProgress, progress_on
from tests.cli.stand_ins import EVALUATION

STAGE = StageReport(name="experts", index=1, stages=2, epochs=3, steps_per_epoch=40, before=EVALUATION)
STEP = StepReport(
    epoch=2,
    epochs=3,
    step=20,
    steps=40,
    loss=0.5123,
    top1=93.14,
    lr=1e-4,
    images_per_second=812.4,
    seconds_left=42.0,
    mult_share={"a": 0.5, "b": 0.75},
)
EPOCH = EpochReport(
    stage="experts",
    epoch=2,
    epochs=3,
    lr=1e-4,
    train_loss=0.51234,
    task_loss=0.4,
    distill_loss=None,
    balance_loss=None,
    train_top1=93.14,
    images_per_second=812.4,
    evaluation=EVALUATION,
    is_best=True,
    mult_share={"a": 0.5, "b": 0.75},
)


def _console(*, is_terminal: bool, width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=width, color_system=None, _environ={})


def _printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_pipe_gets_one_plain_line_per_epoch() -> None:
    console = _console(is_terminal=False, width=40)
    with progress_on(console) as progress:
        assert isinstance(progress, LineProgress)
        progress.message("evaluating the dense model")
        progress.stage_started(STAGE)
        for _ in range(10):
            progress.step(STEP)
        progress.epoch_finished(EPOCH)
    assert _printed(console).splitlines() == [
        "evaluating the dense model",
        "stage 2/2 experts: 3 epochs of 40 steps, from 91.25 % top-1",
        "experts 2/3  loss 0.5123  train 93.14 %  top-1 91.25 %  mult 62% shift 38%  812 images/s  best",
    ]


def test_a_terminal_gets_a_bar_with_the_figures_of_the_step() -> None:
    console = _console(is_terminal=True)
    with progress_on(console) as progress:
        assert isinstance(progress, BarProgress)
        progress.stage_started(STAGE)
        progress.step(STEP)
    assert "epoch 2/3" in _printed(console)
    assert "loss 0.512  top-1 93.1 %  mult 62% shift 38%  812/s  0:42 left" in _printed(console)


def test_a_second_stage_has_a_bar_of_its_own() -> None:
    console = _console(is_terminal=True)
    progress = BarProgress(console)
    with progress:
        progress.stage_started(STAGE)
        progress.step(STEP)
        progress.stage_started(STAGE)
        assert [task.completed for task in progress._bars.tasks] == [0]


def test_an_epoch_without_routers_has_no_shares() -> None:
    from dataclasses import replace

    console = _console(is_terminal=False)
    LineProgress(console).epoch_finished(replace(EPOCH, mult_share={}, is_best=False))
    assert _printed(console) == "experts 2/3  loss 0.5123  train 93.14 %  top-1 91.25 %  812 images/s\n"
