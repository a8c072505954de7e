"""What it saves to begin each evaluation of a sensitivity analysis at the site, beside evaluating whole networks.

Both sides convert the same models once, beforehand, and evaluate them on the same random images; that their logits are
equal to the last bit is checked. Planning and converting are no part of the times, which are processor time: on a
machine that others use too, the clock on the wall tells of them.
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from reparam.models.build import build_model, build_spec
from reparam.recipe.load import load_recipe
from reparam.trace.probe import probe
from reparam.tradeoff.choices import Choice, find_choices
from reparam.tradeoff.convert_one import convert_one
from reparam.tradeoff.cuts import Cut, find_cuts
from reparam.tradeoff.evaluations import Evaluations
from reparam.tradeoff.measure import in_order, place

_MODELS = (("deit_tiny", "shiftaddvit"), ("cifar_resnet20", "deepshift-q"), ("resnet18", "deepshift-q"))
_GIGABYTE = 10**9


def main() -> None:
    """Prints one line for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{options.images} images, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    for name, recipe in _MODELS:
        _compare(name, recipe, images=options.images, rounds=options.rounds)


def _compare(name: str, recipe: str, *, images: int, rounds: int) -> None:
    torch.manual_seed(0)
    spec = build_spec(name)
    dense = build_model(spec).eval()
    assert spec.input_size is not None
    example = torch.empty(2, *spec.input_size, device="meta")
    trace = probe(dense, example)
    choices = in_order(find_choices(dense, [load_recipe(recipe)], example).choices, trace)
    data = [(torch.randn(32, *spec.input_size), torch.zeros(32, dtype=torch.long)) for _ in range(images // 32)]
    models = [convert_one(dense, choice, example) for choice in choices]
    times: dict[float, list[float]] = {0.0: [], 2.0: []}
    answers: dict[float, list[Tensor]] = {}
    for _ in range(rounds):  # interleaved, so that a busy machine slows both
        for memory, seconds in times.items():
            evaluations = Evaluations(
                dense, data, limit=images, cuts=find_cuts(trace), memory=memory * _GIGABYTE, device=torch.device("cpu")
            )
            start = time.process_time()
            answers[memory] = _evaluate(evaluations, choices, models, place(choices, trace, evaluations))
            seconds.append(time.process_time() - start)
    assert all(torch.equal(a, b) for a, b in zip(*answers.values(), strict=True)), "the bits differ"
    whole, prefix = (statistics.median(seconds) for seconds in times.values())
    print(
        f"{name}, {recipe}: {len(choices)} sites; whole networks {whole:.1f} s, with prefixes {prefix:.1f} s: "
        f"{whole / prefix:.2f}x; logits equal",
        flush=True,
    )


def _evaluate(
    evaluations: Evaluations, choices: Sequence[Choice], models: Sequence[nn.Module], cuts: Mapping[str, Cut | None]
) -> list[Tensor]:
    starts = [cuts[choice.key] for choice in choices]
    evaluations.dense_answers(starts[0])
    return [evaluations.logits(model, start) for model, start in zip(models, starts, strict=True)]


if __name__ == "__main__":
    main()
