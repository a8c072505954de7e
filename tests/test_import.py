"""The public names: loaded on first use, and the same for type checkers and for the running program."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import reparam

SOURCE = ast.parse(Path(reparam.__file__).read_text(encoding="utf-8"))


def test_importing_reparam_imports_nothing_outside_the_standard_library() -> None:
    program = (
        "import sys, reparam; reparam.errors.PlanError; "
        "print({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names)"
    )
    known = {"reparam", "__main__", "__mp_main__"}
    found = subprocess.run(
        [sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True, env=_checkout_only()
    )
    assert ast.literal_eval(found.stdout) - known == set()


def test_type_checkers_see_the_names_that_the_program_loads() -> None:
    guarded = next(node for node in SOURCE.body if isinstance(node, ast.If))
    imports = [node for node in guarded.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname: node.module for node in imports for alias in node.names if alias.asname == alias.name}
    assert seen == reparam._HOME


@pytest.mark.parametrize("name", sorted(reparam._HOME))
def test_every_public_name_exists(name: str) -> None:
    assert getattr(reparam, name) is not None
    assert name in dir(reparam)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'reparam' has no attribute 'convrt'"):
        _ = reparam.convrt


def _checkout_only() -> dict[str, str]:
    return {"PYTHONPATH": str(Path(reparam.__file__).parents[1])}


def test_no_extra_is_needed_to_know_the_names_of_formats_backends_and_baselines() -> None:
    """Filling a registry imports every file of its room, so none of them may want an optional package at once."""
    extras = (
        "onnx",
        "onnxruntime",
        "onnxscript",
        "openvino",
        "nncf",
        "torchao",
        "optimum",
        "scipy",
        "matplotlib",
        "triton",
    )
    code = f"""
import sys
sys.modules.update(dict.fromkeys({extras!r}))  # None: importing it raises
from reparam.cost.baselines.base import BASELINES
from reparam.exporting.base import FORMATS
from reparam.lowering.base import BACKENDS
print(*FORMATS.names(), *BACKENDS.names(), "openvino" in BASELINES.names())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["onnx", "packed", "pt2", "bf16", "cuda", "cuda-fp8", "float32", "int8", "True"], (
        done.stderr
    )
