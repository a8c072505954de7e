import pytest
import torch
from sklearn.metrics import confusion_matrix, precision_score, recall_score

from reparam.errors import OptionError
from reparam.train.per_class import ClassResult, class_results, count_confusion_, empty_confusion

CPU = torch.device("cpu")


def test_the_counts_and_figures_are_those_of_scikit_learn() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(200, 6), torch.randint(0, 5, (200,))
    logits[:, 4] -= 9  # never predicted; class 5 has no images
    confusion = empty_confusion(6, device=CPU)
    for batch in range(0, 200, 64):
        count_confusion_(confusion, logits[batch : batch + 64], targets[batch : batch + 64])
    true, predicted = targets.numpy(), logits.argmax(-1).numpy()
    assert confusion.tolist() == confusion_matrix(true, predicted, labels=range(6)).tolist()
    rows = class_results(confusion, {})
    figures = {"labels": range(6), "average": None, "zero_division": 0}
    assert [row.recall or 0 for row in rows] == pytest.approx(100 * recall_score(true, predicted, **figures))
    assert [row.precision or 0 for row in rows] == pytest.approx(100 * precision_score(true, predicted, **figures))
    assert (rows[4].precision, rows[4].recall) == (None, 0)
    assert (rows[5].recall, rows[5].images) == (None, 0)


def test_a_class_is_mistaken_for_the_one_that_got_most_of_its_images_and_is_not_itself() -> None:
    confusion = torch.tensor([[9, 1, 3], [0, 4, 0], [2, 2, 0]])
    cat, dog, owl = class_results(confusion, {"owl": 2, "cat": 0, "dog": 1})
    assert cat == ClassResult(
        name="cat", images=13, recall=100 * 9 / 13, precision=100 * 9 / 11, mistaken_for="owl", mistaken=3
    )
    assert (dog.recall, dog.mistaken_for, dog.mistaken) == (100, None, 0)
    assert (owl.recall, owl.precision, owl.mistaken_for, owl.mistaken) == (0, 0, "cat", 2)


def test_more_classes_than_fit_are_refused_with_the_options_to_leave_out() -> None:
    with pytest.raises(OptionError, match=r"21841 outputs, .* leave --per-class and --confusion out"):
        empty_confusion(21841, device=CPU)
