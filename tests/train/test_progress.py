from reparam.train.progress import Fanout, Silent, StepReport
from tests.train.reports import epoch_report, stage_report, step_report


class Notes(Silent):
    def __init__(self, name: str, told: list[tuple[str, object]]) -> None:
        self.name, self.told = name, told

    def message(self, text: str) -> None:
        self.told.append((self.name, text))

    def stage_started(self, stage: object) -> None:
        self.told.append((self.name, stage))

    def step(self, step: StepReport) -> None:
        self.told.append((self.name, step))

    def epoch_finished(self, epoch: object) -> None:
        self.told.append((self.name, epoch))


def test_every_report_goes_to_every_listener_in_order() -> None:
    told: list[tuple[str, object]] = []
    fanout = Fanout(Notes("first", told), Notes("second", told))
    reports = ["hello", stage_report(), step_report(1, 1), epoch_report(1)]
    fanout.message("hello")
    fanout.stage_started(stage_report())
    fanout.step(step_report(1, 1))
    fanout.epoch_finished(epoch_report(1))
    assert told == [(name, report) for report in reports for name in ("first", "second")]


def test_the_mean_share_is_over_layers_and_none_without_routers() -> None:
    assert step_report(1, 1, mult_share={"a": 0.25, "b": 0.75}).mean_mult_share == 0.5
    assert step_report(1, 1).mean_mult_share is None
