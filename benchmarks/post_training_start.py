"""What a better start saves: the same fine-tuning from each way in which layers can start, top-1 after every epoch.

    python benchmarks/post_training_start.py shift|attention digits|CHECKPOINT [--epochs N] [--out DIR]
        [--dataset hfds/NAME] [--val-split test] [--mean ...] [--std ...]

CHECKPOINT is a folder of a dense model; `digits` stands for the shipped one and scikit-learn's digits. Only a recipe's
first stage is trained, and a run that was stopped goes on where it stopped. Epochs saved: how much earlier than by the
first start its best top-1 is reached.
"""

import argparse
import csv
from pathlib import Path

import reparam
from reparam.api.demo import SETTINGS, shipped_model
from reparam.train.digits import write_digits
from reparam.train.summary import SUMMARY_NAME

Options = dict[str, str]
#: Recipe, the numbers of the rules that are started differently, and how.
EXPERIMENTS: dict[str, tuple[str, tuple[int, ...], dict[str, Options]]] = {
    "shift": (
        "shift-ptq",
        (2, 3),
        {
            "rounded": {"bits": "4", "init": "rounded", "bias_correction": "false"},
            "least-squares": {"bits": "4", "init": "least-squares"},
            "calibrated": {"bits": "4", "init": "calibrated", "bias_correction": "false"},
        },
    ),
    "attention": (
        "ladder-dwconv",
        (0,),
        {
            "zero": {},
            "zero, with scales": {"scales": "learned"},
            "calibrated": {"init": "calibrated"},
            "calibrated, with scales": {"init": "calibrated", "scales": "learned"},
        },
    ),
}


def main() -> None:
    """Prints a table as the rows come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("model")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("runs/starts"))
    parser.add_argument("--dataset", default="")
    parser.add_argument("--train-split", default="train")
    parser.add_argument("--val-split", default="validation")
    parser.add_argument("--mean", type=float, nargs="+")
    parser.add_argument("--std", type=float, nargs="+")
    asked = parser.parse_args()
    data, folder = _data(asked), shipped_model() if asked.model == "digits" else Path(asked.model)
    recipe, rules, starts = EXPERIMENTS[asked.experiment]
    settings = SETTINGS | {"epochs": asked.epochs, "batch_size": asked.batch_size, "warmup_epochs": 0, "workers": 0}
    settings |= {"lr": asked.lr} if asked.lr else {}
    print("| start | " + " | ".join(f"epoch {n}" for n in range(asked.epochs + 1)) + " | epochs saved |")
    print("|---|" + "---:|" * (asked.epochs + 2), flush=True)
    wanted = None
    for name, options in starts.items():
        out = asked.out / f"{asked.experiment}-{folder.name}-{name.replace(', ', '-').replace(' ', '-')}"
        found = _trained(
            folder,
            recipe,
            [f"stage.0.rule.{r}.{k}={v}" for r in rules for k, v in options.items()],
            data,
            settings,
            out,
        )
        wanted = wanted or (max(found), found.index(max(found)))
        first = next((epoch for epoch, top1 in enumerate(found) if top1 >= wanted[0]), None)
        saved = "never reached" if first is None else str(wanted[1] - first)
        print(f"| {name} | " + " | ".join(f"{top1:.2f}" for top1 in found) + f" | {saved} |", flush=True)


def _data(asked: argparse.Namespace) -> reparam.DataSettings:
    if asked.model != "digits":
        return reparam.DataSettings(
            dataset=asked.dataset,
            train_split=asked.train_split,
            val_split=asked.val_split,
            mean=asked.mean,
            std=asked.std,
        )
    if not (asked.out / "digits").is_dir():
        write_digits(asked.out / "digits")
    return reparam.DataSettings(data_dir=str(asked.out / "digits"))


def _trained(
    folder: Path, recipe: str, overrides: list[str], data: reparam.DataSettings, settings: dict[str, object], out: Path
) -> list[float]:
    """Top-1 before training and after each epoch."""
    if not out.exists():
        needs_images = any(line.endswith("init=calibrated") for line in overrides)
        reparam.convert(
            f"local-dir:{folder}", recipe, overrides=overrides, calibration=data if needs_images else None, out=out
        )
    result = reparam.finetune(out, data=data, settings=settings, stage=0, resume="auto")
    with (out / SUMMARY_NAME).open(newline="", encoding="utf-8") as file:
        epochs = [float(row["eval_top1"]) for row in csv.DictReader(file)]
    return [result.stages[0].before.top1, *epochs]


if __name__ == "__main__":
    main()
