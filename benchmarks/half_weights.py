"""Writes the weights of a dense run in float16: how the files `docs/results/*/dense.safetensors` were made.

python benchmarks/half_weights.py runs/vit/model.safetensors docs/results/vit/dense.safetensors
"""

import argparse
from pathlib import Path

from safetensors.torch import load_file, save_file


def main() -> None:
    """Refuses values that float16 cannot hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    tensors = load_file(asked.weights)
    halves = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    if lost := [name for name, half in halves.items() if not half.isfinite().all()]:
        parser.error(f"float16 cannot hold {', '.join(lost)}")
    save_file(halves, asked.out, metadata={"format": "pt"})
    asked.out.chmod(0o644)


if __name__ == "__main__":
    main()
