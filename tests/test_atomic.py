"""Files and folders appear whole or not at all."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reparam.atomic import _exchange, atomic_file, atomic_folder, check_file, refuse_foreign, write_text, writing
from reparam.errors import CheckpointError

needs_full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
CHECKPOINT = '{"reparam": {}}'


def fill(folder: Path, weights: str) -> None:
    (folder / "config.json").write_text(CHECKPOINT)
    (folder / "model.safetensors").write_text(weights)


def break_off(_done: object) -> None:
    raise ZeroDivisionError


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_written_and_its_folder_made(tmp_path):
    write_text(tmp_path / "new" / "summary.csv", "epoch,loss\n")
    assert (tmp_path / "new" / "summary.csv").read_text() == "epoch,loss\n"
    assert names(tmp_path / "new") == ["summary.csv"]


def test_a_file_that_can_be_written_is_left_as_it_was_by_the_check(tmp_path):
    check_file(tmp_path / "new" / "page.md")
    assert names(tmp_path / "new") == []
    (tmp_path / "old.md").write_text("old")
    check_file(tmp_path / "old.md")
    assert (tmp_path / "old.md").read_text() == "old"


def test_a_file_that_cannot_be_written_is_told_by_the_check(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        check_file(tmp_path / "file" / "page.md")
    with pytest.raises(CheckpointError, match="got a folder"):
        check_file(tmp_path)


def test_a_failed_file_leaves_the_old_one_and_nothing_else(tmp_path):
    target = tmp_path / "summary.csv"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(target) as draft:
        break_off(draft.write_text("half"))
    assert target.read_text() == "old"
    assert names(tmp_path) == ["summary.csv"]


def test_a_file_does_not_replace_a_folder(tmp_path):
    with pytest.raises(CheckpointError, match="wanted a file to write, got a folder"), atomic_file(tmp_path):
        pytest.fail("the body must not run")


def test_a_folder_appears_only_when_it_is_complete(tmp_path):
    target = tmp_path / "run"
    with atomic_folder(target) as draft:
        fill(draft, "w")
        assert not target.exists()
    assert names(target) == ["config.json", "model.safetensors"]
    assert names(tmp_path) == ["run"]


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "run") as draft:
        break_off(fill(draft, "half"))
    assert names(tmp_path) == []


def test_a_failed_replacement_leaves_the_old_checkpoint(tmp_path):
    target = tmp_path / "run"
    target.mkdir()
    fill(target, "old")
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as draft:
        break_off(fill(draft, "half"))
    assert (target / "model.safetensors").read_text() == "old"
    assert names(tmp_path) == ["run"]


def test_a_checkpoint_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "run"
    target.mkdir()
    fill(target, "old")
    (target / "evaluate.json").write_text("{}")
    with atomic_folder(target) as draft:
        fill(draft, "new")
    assert (target / "model.safetensors").read_text() == "new"
    assert names(target) == ["config.json", "model.safetensors"]
    assert names(tmp_path) == ["run"]


def test_other_files_are_carried_over_when_asked_for(tmp_path):
    target = tmp_path / "run"
    (target / "dense").mkdir(parents=True)
    fill(target, "old")
    fill(target / "dense", "dense")
    (target / "summary.csv").write_text("epoch\n")
    with (target / "summary.csv").open("a") as still_open, atomic_folder(target, keep_others=True) as draft:
        fill(draft, "new")
        still_open.write("0\n")
    assert (target / "model.safetensors").read_text() == "new"
    assert (target / "dense" / "model.safetensors").read_text() == "dense"
    assert (target / "summary.csv").read_text() == "epoch\n0\n"


def test_files_are_carried_over_without_hard_links_too(tmp_path, monkeypatch):
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    target = tmp_path / "run"
    target.mkdir()
    fill(target, "old")
    (target / "summary.csv").write_text("epoch\n")
    with atomic_folder(target, keep_others=True) as draft:
        fill(draft, "new")
    assert (target / "summary.csv").read_text() == "epoch\n"


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no exchange of names that Python knows of")
def test_a_checkpoint_is_there_when_a_process_is_killed_as_it_replaces_it(tmp_path, monkeypatch):
    target = tmp_path / "run"
    target.mkdir()
    fill(target, "old")

    def then_killed(move: Callable[..., Any]) -> Callable[..., Any]:
        def moved(*arguments: Any) -> Any:
            move(*arguments)
            raise Killed

        return moved

    monkeypatch.setattr(Path, "rename", then_killed(Path.rename))
    monkeypatch.setattr("reparam.atomic._exchange", then_killed(_exchange))
    with pytest.raises(Killed), atomic_folder(target) as draft:
        fill(draft, "new")
    assert (target / "model.safetensors").read_text() == "new"


def test_what_a_killed_process_left_half_written_is_not_carried_over(tmp_path):
    target = tmp_path / "run"
    (target / ".last.0123abcd.tmp").mkdir(parents=True)
    (target / ".hidden").touch()
    (target / ".summary.csv.0123abcd.tmp").touch()
    fill(target, "old")
    with atomic_folder(target, keep_others=True) as draft:
        fill(draft, "new")
    assert names(target) == [".hidden", "config.json", "model.safetensors"]


def test_without_an_exchange_of_names_a_checkpoint_is_replaced_too(tmp_path, monkeypatch):
    monkeypatch.setattr("reparam.atomic._exchange", lambda one, other: False)
    target = tmp_path / "run"
    target.mkdir()
    fill(target, "old")
    with atomic_folder(target) as draft:
        fill(draft, "new")
    assert (target / "model.safetensors").read_text() == "new"
    assert names(tmp_path) == ["run"]


def test_the_old_checkpoint_comes_back_when_the_last_move_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("reparam.atomic._exchange", lambda one, other: False)
    target = tmp_path / "run"
    target.mkdir()
    fill(target, "old")
    rename, moves = Path.rename, []

    def fail_second(self: Path, other: Path) -> Path:
        moves.append(self)
        if len(moves) == 2:
            raise OSError(28, "No space left on device")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(CheckpointError, match="cannot be written: No space left"), atomic_folder(target) as draft:
        fill(draft, "new")
    assert len(moves) == 3
    assert (target / "model.safetensors").read_text() == "old"
    assert names(tmp_path) == ["run"]


@pytest.mark.parametrize(
    ("content", "name"),
    [("precious", "thesis.txt"), ('{"architecture": "resnet18"}', "config.json"), ('{"reparam": ', "config.json")],
    ids=["files", "another tool's model", "broken config"],
)
def test_a_folder_that_reparam_did_not_make_is_refused_before_any_work(tmp_path, content, name):
    target = tmp_path / "home"
    target.mkdir()
    (target / name).write_text(content)
    with pytest.raises(CheckpointError, match=r"not empty .* Choose another folder"), atomic_folder(target):
        pytest.fail("the body must not run")
    assert (target / name).read_text() == content
    assert names(tmp_path) == ["home"]


def test_a_file_in_the_way_is_refused(tmp_path):
    target = tmp_path / "run"
    target.write_text("precious")
    with pytest.raises(CheckpointError, match="wanted a folder to write, got a file"):
        refuse_foreign(target)


@pytest.mark.parametrize("make", [lambda _: None, Path.mkdir], ids=["absent", "empty"])
def test_an_absent_or_empty_folder_is_free(tmp_path, make):
    make(tmp_path / "run")
    refuse_foreign(tmp_path / "run")


def test_a_link_to_a_checkpoint_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    fill(tmp_path / "disk", "old")
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    with atomic_folder(tmp_path / "run") as draft:
        fill(draft, "new")
    assert (tmp_path / "run").is_symlink()
    assert (tmp_path / "disk" / "model.safetensors").read_text() == "new"


def test_permissions_are_those_of_any_new_folder(tmp_path):
    (tmp_path / "plain").mkdir()
    with atomic_folder(tmp_path / "run") as draft:
        fill(draft, "w")
    assert (tmp_path / "run").stat().st_mode == (tmp_path / "plain").stat().st_mode


def full_draft(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the next draft of `target` a device that has no space."""
    monkeypatch.setattr("secrets.token_hex", lambda _: "00000000")
    target.with_name(f".{target.name}.00000000.tmp").symlink_to("/dev/full")


@needs_full_device
def test_a_full_disk_is_told_with_the_file_and_the_old_one_stays(tmp_path, monkeypatch):
    target = tmp_path / "summary.csv"
    target.write_text("old")
    full_draft(target, monkeypatch)
    with pytest.raises(CheckpointError) as caught:
        write_text(target, "new")
    assert str(caught.value) == (
        f"{target}: cannot be written: No space left on device. Free some space or choose another disk; what was there "
        "before is as it was."
    )
    assert target.read_text() == "old"
    assert names(tmp_path) == ["summary.csv"]


@needs_full_device
def test_a_disk_that_fills_up_in_a_folder_leaves_the_old_checkpoint(tmp_path):
    target = tmp_path / "run"
    target.mkdir()
    fill(target, "old")
    told = pytest.raises(CheckpointError, match=rf"^{target}: cannot be written: No space left")
    with told, atomic_folder(target, keep_others=True) as draft:
        fill(draft, "half")
        shutil.copy2(target / "config.json", "/dev/full")
    assert (target / "model.safetensors").read_text() == "old"
    assert names(tmp_path) == ["run"]


def test_a_draft_that_cannot_be_opened_is_told_with_the_files_own_name(tmp_path):
    told = pytest.raises(CheckpointError, match=rf"^{tmp_path}/run/page.md: cannot be written: No such file .* rights")
    with told, atomic_file(tmp_path / "run" / "page.md") as draft:
        draft.parent.rmdir()
        draft.write_text("page")


def test_what_fails_elsewhere_is_not_taken_for_the_disk(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "run"):
        (tmp_path / "absent").read_text()
    with pytest.raises(ConnectionError), atomic_file(tmp_path / "page.md"):
        raise ConnectionError("no network")


def test_a_file_in_a_draft_is_named_as_it_would_have_been(tmp_path):
    told = pytest.raises(
        CheckpointError, match=rf"^{tmp_path}/run/dense/config.json: cannot be written: Is a directory"
    )
    with told, atomic_folder(tmp_path / "run") as draft, writing(draft / "dense" / "config.json"):
        (draft / "dense" / "config.json").mkdir(parents=True)
        (draft / "dense" / "config.json").write_text("{}")
