import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from reparam.errors import DataError, OptionError
from reparam.ops.routing import Router
from reparam.train.evaluate import Evaluation, evaluate_model, wilson_interval

CPU = torch.device("cpu")


class Echo(nn.Module):
    """Takes its logits from the first row of the image."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0]


def batches(logits: Tensor, labels: list[int], *, size: int) -> list[tuple[Tensor, Tensor]]:
    images, targets = logits[:, None, None, :], torch.tensor(labels)
    return list(zip(images.split(size), targets.split(size), strict=True))


def test_accuracy_and_loss_equal_the_count_by_hand_over_unequal_batches() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(11, 8), [i % 8 for i in range(11)]
    evaluation = evaluate_model(Echo(), batches(logits, labels, size=4), CPU)
    rank = [
        sorted(range(8), key=lambda k, row=row: -row[k]).index(y)
        for row, y in zip(logits.tolist(), labels, strict=True)
    ]
    loss = [-row.double().log_softmax(-1)[y].item() for row, y in zip(logits, labels, strict=True)]
    assert evaluation.top1 == pytest.approx(100 * sum(r == 0 for r in rank) / 11)
    assert evaluation.top5 == pytest.approx(100 * sum(r < 5 for r in rank) / 11)
    assert evaluation.loss == pytest.approx(sum(loss) / 11, rel=1e-6)
    assert evaluation.images == 11
    assert evaluation.device == "cpu"
    assert evaluation.images_per_second > 0
    assert evaluation.model_images_per_second is not None
    assert evaluation.model_images_per_second > 0


def test_the_speed_of_the_model_leaves_out_loading_and_the_batch_that_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    class Slow(Echo):
        seconds: Iterator[float]

        def forward(self, images: Tensor) -> Tensor:
            nonlocal now
            now += next(self.seconds)
            return super().forward(images)

    class Loader(list[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            nonlocal now
            for batch in super().__iter__():
                now += 5.0
                yield batch

    model = Slow()
    model.seconds = iter([4.0, 0.5, 0.5])
    loader = Loader(batches(torch.eye(3).repeat(3, 1), [0, 1, 2] * 3, size=3))
    evaluation = evaluate_model(model, loader, CPU)
    assert evaluation.model_images_per_second == 6 / 1.0
    assert evaluation.images_per_second == 9 / 20.0


def test_results_per_class_are_counted_over_all_batches_when_asked_for() -> None:
    logits = torch.eye(4)[[0, 0, 1, 1, 1, 2, 2, 0, 1]]
    labels = [0, 0, 1, 0, 1, 1, 0, 1, 0]
    evaluation = evaluate_model(Echo(), batches(logits, labels, size=4), CPU, classes={"cat": 0, "dog": 1, "owl": 3})
    assert evaluation.confusion == ((2, 2, 1, 0), (1, 2, 1, 0), (0, 0, 0, 0), (0, 0, 0, 0))
    assert [row.name for row in evaluation.per_class] == ["cat", "dog", "2", "owl"]
    assert sum(row.images for row in evaluation.per_class) == evaluation.images == 9


def test_results_per_class_are_left_out_unless_asked_for() -> None:
    evaluation = evaluate_model(Echo(), batches(torch.eye(3), [0, 1, 2], size=3), CPU)
    assert evaluation.per_class == ()
    assert evaluation.confusion is None


def test_a_model_of_too_many_classes_for_a_matrix_is_evaluated_without_one() -> None:
    logits = torch.zeros(1, 5000)
    assert evaluate_model(Echo(), batches(logits, [4999], size=1), CPU).images == 1
    with pytest.raises(OptionError, match="5000 outputs"):
        evaluate_model(Echo(), batches(logits, [4999], size=1), CPU, classes={})


def test_images_that_fill_up_a_distributed_batch_count_nowhere() -> None:
    class Filled(list[tuple[Tensor, Tensor]]):
        sampler = SimpleNamespace(num_valid_samples=4)

    filled = Filled(batches(torch.eye(3).repeat(3, 1), [0, 1, 2, 0, 0, 0, 0, 0, 0], size=3))
    evaluation = evaluate_model(Echo(), filled, CPU, classes={})
    assert (evaluation.images, evaluation.top1) == (4, 100)
    assert evaluation.confusion == ((2, 0, 0), (0, 1, 0), (0, 0, 1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_batch_makes_the_host_wait_for_a_gpu() -> None:
    device, logits = torch.device("cuda"), torch.eye(3, device="cuda").repeat(4, 1)
    loaded = [(x, y.to(device)) for x, y in batches(logits, [0, 1, 2] * 4, size=3)]
    evaluate_model(Echo(), loaded, device, classes={})  # warm-up

    class Watchful(Echo):
        def forward(self, images: Tensor) -> Tensor:
            torch.cuda.set_sync_debug_mode("error")
            return super().forward(images)

    class Loader(list[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield from super().__iter__()
            torch.cuda.set_sync_debug_mode("default")

    evaluation = evaluate_model(Watchful(), Loader(loaded), device, classes={})
    assert evaluation.confusion == ((4, 0, 0), (0, 4, 0), (0, 0, 4))
    assert evaluation.model_images_per_second is not None


def test_top5_of_three_classes_is_everything() -> None:
    assert evaluate_model(Echo(), batches(torch.eye(3), [2, 0, 1], size=3), CPU).top5 == 100


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    # scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
    [(0, 10, 0.0, 27.7533), (10, 10, 72.2467, 100.0), (81, 263, 25.5283, 36.6205), (950, 1000, 93.4686, 96.1870)],
)
def test_the_interval_is_wilsons(correct: int, images: int, low: float, high: float) -> None:
    assert wilson_interval(correct, images) == pytest.approx((low, high), abs=1e-3)


def test_the_model_is_evaluated_in_eval_mode_and_left_as_it_was() -> None:
    class Watchful(Echo):
        seen: list[tuple[bool, bool]]

        def forward(self, images: Tensor) -> Tensor:
            self.seen.append((self.training, torch.is_grad_enabled()))
            return super().forward(images)

    model = Watchful()
    model.seen = []
    evaluate_model(model.train(), batches(torch.eye(3), [0, 1, 2], size=3), CPU)
    assert model.seen == [(False, False)]
    assert model.training


def test_shares_of_routers_are_reported_per_layer() -> None:
    class Routed(Echo):
        def __init__(self) -> None:
            super().__init__()
            self.router = Router(3, init="zero")
            self.router.weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])

        def forward(self, images: Tensor) -> Tensor:
            self.router(images[:, 0, 0])
            return super().forward(images)

    evaluation = evaluate_model(Routed(), batches(torch.eye(3), [0, 1, 2], size=2), CPU)
    assert evaluation.mult_share == pytest.approx({"router": 1 / 3})
    assert evaluation.mean_mult_share == pytest.approx(1 / 3)


def test_a_label_beyond_the_outputs_is_told_as_such() -> None:
    with pytest.raises(DataError, match="a label lies outside the model's outputs"):
        evaluate_model(Echo(), batches(torch.eye(3), [0, 1, 3], size=3), CPU)


def test_no_images_is_an_error_not_a_zero() -> None:
    with pytest.raises(DataError, match="no images"):
        evaluate_model(Echo(), [], CPU)


def test_an_evaluation_reads_back_from_its_json() -> None:
    evaluation = evaluate_model(Echo(), batches(torch.eye(3), [0, 1, 2], size=3), CPU)
    assert type(evaluation).model_validate_json(evaluation.model_dump_json()) == evaluation


def test_the_json_holds_the_classes_and_not_the_matrix() -> None:
    evaluation = evaluate_model(Echo(), batches(torch.eye(3), [0, 1, 1], size=3), CPU, classes={"a": 0})
    text = evaluation.model_dump_json()
    assert "confusion" not in text
    assert Evaluation.model_validate_json(text) == evaluation.model_copy(update={"confusion": None})
