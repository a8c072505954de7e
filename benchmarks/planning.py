"""Planning models of about a billion parameters: seconds and peak memory of `reparam plan`, each in a fresh process."""

from startup import command, measure

#: timm name and millions of parameters; the last has more than four billion.
_MODELS = (
    ("vit_giant_patch14_reg1_tipsv2", 1136),
    ("eva_giant_patch14_224", 1013),
    ("swinv2_cr_giant_224", 2598),
    ("eva02_enormous_patch14_clip_224", 4351),
)
_ROUNDS = 3


def main() -> None:
    """Prints the table."""
    base_seconds, base_peak = measure("import torch, timm", ["import torch, timm"] * _ROUNDS)
    for name, millions in _MODELS:
        argv = ("plan", name, "--recipe", "shiftaddvit", "--allow-partial", "--json")
        seconds, peak = measure(f"reparam plan {name}", [command(*argv)] * _ROUNDS)
        beyond = f"{seconds - base_seconds:.1f} s and {peak - base_peak:.0f} MB beyond the imports"
        print(f"  {millions} M parameters: {beyond}")


if __name__ == "__main__":
    main()
