import pytest
import torch
from torch import Tensor, nn

from reparam.errors import DataError
from reparam.ops.routing import Router
from reparam.train.evaluate import evaluate_model, wilson_interval

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
