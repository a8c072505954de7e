"""The wheel, built from the source distribution and installed into an empty environment, works from any folder."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import reparam

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution, so that both are known to be complete."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel; its dependencies are this interpreter's, so nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheel") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    # A path file adds the folder to the search path but runs no path files inside it: an editable reparam stays unseen.
    _site_packages(folder).joinpath("dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_the_wheel_holds_packages_recipes_and_licence_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "reparam",
        "reparam_cli",
        f"reparam-{reparam.__version__}.dist-info",
    }
    assert {Path(name).name for name in names if name.startswith("reparam/_recipes/")} >= {
        path.name for path in (ROOT / "recipes").iterdir() if path.suffix in {".toml", ".json"}
    }
    assert "reparam/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_demos_model_is_in_the_wheel(wheel: Path) -> None:
    shipped = [path for path in (ROOT / "reparam" / "_demo").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    names = zipfile.ZipFile(wheel).namelist()
    assert {path.relative_to(ROOT).as_posix() for path in shipped} <= set(names)
    assert any(name.startswith("reparam/_demo/") and name.endswith(".safetensors") for name in names)


def test_the_reports_page_is_in_the_wheel(wheel: Path) -> None:
    page = ROOT / "reparam" / "reporting" / "page"
    parts = {path.relative_to(ROOT).as_posix() for path in page.iterdir() if path.suffix in {".html", ".css", ".js"}}
    assert len(parts) == 4
    assert parts <= set(zipfile.ZipFile(wheel).namelist())


def test_the_command_lists_the_recipes_from_another_folder(environment: Path, tmp_path: Path) -> None:
    done = _run([str(environment / "bin" / "reparam"), "recipes", "list"], folder=tmp_path)
    for recipe in (ROOT / "recipes").glob("*.toml"):
        assert f"{recipe.stem} " in done


def test_the_packages_that_run_are_the_wheels(environment: Path, tmp_path: Path) -> None:
    program = "import reparam, reparam_cli; print(reparam.__file__, reparam_cli.__file__, sep='\\n')"
    for path in _run([str(environment / "bin" / "python"), "-c", program], folder=tmp_path).splitlines():
        assert Path(path).is_relative_to(_site_packages(environment))


def _run(command: list[str], *, folder: Path) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment = {**inherited, "COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _site_packages(environment: Path) -> Path:
    return Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
