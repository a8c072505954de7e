"""Reports of a run that never was, for whoever listens."""

from typing import Any

from reparam.train.evaluate import Evaluation
from reparam.train.progress import EpochReport, Progress, StageReport, StepReport

STEPS = 4
LAYERS = ("blocks.0.mlp.router", "blocks.1.mlp.router")


def evaluation(top1: float, loss: float = 1.0) -> Evaluation:
    return Evaluation(
        top1=top1, top5=99.0, loss=loss, images=400, top1_interval=(1.0, 99.0), images_per_second=812.0, device="cpu"
    )


def stage_report(name: str = "attention", index: int = 0, **changes: Any) -> StageReport:
    common = {"stages": 2, "epochs": 3, "steps_per_epoch": STEPS, "before": evaluation(40.0, 2.0)}
    return StageReport(**{"name": name, "index": index, "dense": evaluation(81.25), **common, **changes})


def step_report(epoch: int, step: int, **changes: Any) -> StepReport:
    update = (epoch - 1) * STEPS + step
    common = {"epochs": 3, "steps": STEPS, "top1": 50.0 + update, "images_per_second": 800.0, "seconds_left": 9.0}
    return StepReport(**{"epoch": epoch, "step": step, "loss": 3.0 / update, "lr": 1e-4 / update, **common, **changes})


def epoch_report(epoch: int, stage: str = "attention", **changes: Any) -> EpochReport:
    common = {
        "epochs": 3,
        "lr": 1e-5,
        "train_loss": 2.0 / epoch,
        "task_loss": 1.5 / epoch,
        "distill_loss": 0.5 / epoch,
        "feature_loss": 0.75 / epoch,
        "balance_loss": None,
        "train_top1": 60.0 + epoch,
        "images_per_second": 790.0,
        "evaluation": evaluation(70.0 + epoch, 1.0 / epoch),
        "is_best": True,
    }
    return EpochReport(**{"stage": stage, "epoch": epoch, **common, **changes})


def tell(listener: Progress, stage: StageReport, *, epochs: int, every: int = 2, shares: bool = False) -> None:
    """Tells of whole epochs of a stage, with a step report after every so many steps."""
    listener.stage_started(stage)
    for epoch in range(1, epochs + 1):
        share = {layer: (i + 1) / (epoch + 2) for i, layer in enumerate(LAYERS)} if shares else {}
        for step in range(every, STEPS + 1, every):
            listener.step(step_report(epoch, step, mult_share=share))
        listener.epoch_finished(epoch_report(epoch, stage.name, mult_share=share))
