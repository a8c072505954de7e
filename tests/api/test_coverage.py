import json
from pathlib import Path
from typing import Any

import pytest

import reparam
from reparam.errors import CheckpointError, ModelError
from reparam.survey import run
from tests.survey.stand_ins import examination

NAMES = ["test_efficientnet", "test_resnet", "test_vit"]


def stable(path: Path) -> Any:
    """The result without what differs from run to run."""
    result = json.loads(path.read_text(encoding="utf-8"))
    for found in result["examinations"]:
        del found["seconds"], found["peak_mb"]
    return result


def test_a_stopped_run_goes_on_to_the_result_of_one_that_was_not(tmp_path: Path) -> None:
    def stop(step: reparam.SurveyStep) -> None:
        if step.done == 1:
            raise KeyboardInterrupt

    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    reparam.coverage(NAMES, json_file=whole, out=tmp_path / "whole.md", recipe="deepshift-q")
    with pytest.raises(KeyboardInterrupt):
        reparam.coverage(NAMES, json_file=parts, recipe="deepshift-q", progress=stop)
    assert not parts.exists()
    done: list[int] = []
    reparam.coverage(NAMES, json_file=parts, recipe="deepshift-q", progress=lambda step: done.append(step.done))
    assert done == [1, 2, 3]
    assert stable(parts) == stable(whole)
    assert [found["name"] for found in stable(whole)["examinations"]] == NAMES
    assert "| examined | 3 |  |" in (tmp_path / "whole.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_full_depth_of_a_small_network_passes_every_check_and_a_limit_leaves_it_out(tmp_path: Path) -> None:
    made = reparam.coverage("test_resnet", depth="full", json_file=tmp_path / "a.json", recipe="deepshift-q")
    (found,) = made.examinations
    outcomes = {check.name: check.outcome for check in found.checks}
    assert outcomes.pop("exact round trip") == "not applicable"
    assert set(outcomes.values()) == {"ok"}
    small = reparam.coverage("test_resnet", depth="full", json_file=tmp_path / "b.json", max_params=9)
    assert {check.outcome for check in small.examinations[0].checks} == {"not applicable"}
    assert "more parameters than the limit of 9" in str(small.examinations[0].checks[0].detail)


def test_representatives_are_the_smallest_of_their_kind_and_stand_for_the_others(tmp_path: Path) -> None:
    made = reparam.coverage(["resnet18", "resnet34", "resnet50"], representatives=True, json_file=tmp_path / "a.json")
    assert {e.name: e.stands_for for e in made.examinations} == {"resnet18": 2, "resnet50": 1}
    assert made.scope.startswith("2 representatives of 3 architectures (resnet18, resnet34, resnet50)")


@pytest.fixture
def canned(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Examinations without processes: what to find for a name is its error."""
    errors: dict[str, str | None] = {}

    def examine(tasks: Any, **_: Any) -> Any:
        for task in tasks:
            yield examination(
                task.name,
                recipe=task.recipe.name,
                depth=task.depth,
                error=errors.get(task.name),
                versions=task.versions,
            )

    monkeypatch.setattr("reparam.api.coverage.run_tasks", examine)
    monkeypatch.setattr("reparam.api.coverage.start_server", lambda: None)
    return errors


def test_retry_examines_again_what_failed_and_fresh_everything(tmp_path: Path, canned: dict[str, str | None]) -> None:
    canned.update(test_vit="broken", test_resnet=None)
    options: dict[str, Any] = {"json_file": tmp_path / "a.json"}
    assert [e.name for e in reparam.coverage(NAMES, **options).failed] == ["test_vit"]
    canned.update(test_vit=None, test_resnet="broken since")
    assert [e.name for e in reparam.coverage(NAMES, **options).failed] == ["test_vit"]
    assert [e.name for e in reparam.coverage(NAMES, **options, retry=True).failed] == []
    assert [e.name for e in reparam.coverage(NAMES, **options, fresh=True).failed] == ["test_resnet"]


def test_a_journal_of_another_recipe_or_depth_is_refused(tmp_path: Path, canned: dict[str, str | None]) -> None:
    path = tmp_path / "a.json"
    reparam.coverage(NAMES, json_file=path)
    with pytest.raises(CheckpointError, match='holds "shiftaddvit" at depth plan; wanted "none" at depth plan'):
        reparam.coverage(NAMES, json_file=path, recipe="none")
    with pytest.raises(CheckpointError, match='wanted "shiftaddvit" at depth full'):
        reparam.coverage(NAMES, json_file=path, depth="full")


def test_a_misspelt_name_does_not_cost_the_journal(tmp_path: Path, canned: dict[str, str | None]) -> None:
    path = tmp_path / "a.json"
    reparam.coverage(NAMES, json_file=path)
    with pytest.raises(ModelError, match="test_wit"):
        reparam.coverage("test_wit", json_file=path, fresh=True)
    assert len(path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()) == len(NAMES)


def test_names_that_cannot_be_written_are_refused_before_anything_is_examined(
    tmp_path: Path, canned: dict[str, str | None]
) -> None:
    (tmp_path / "file").touch()
    for wrong in ({"json_file": tmp_path}, {"json_file": tmp_path / "a.json", "out": tmp_path / "file" / "page.md"}):
        with pytest.raises(CheckpointError, match=r"got a folder|cannot be written"):
            reparam.coverage("test_vit", **wrong)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="the journal gets this name"):
        reparam.coverage("test_vit", json_file=tmp_path / "a.jsonl")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("option", ["json_file", "out"])
def test_files_of_others_are_not_replaced_and_those_of_coverage_are(
    tmp_path: Path, canned: dict[str, str | None], option: str
) -> None:
    options: dict[str, Any] = {"json_file": tmp_path / "a.json", "out": tmp_path / "a.md"}
    for _ in range(2):
        reparam.coverage("test_vit", **options)
    options[option].write_text('{"mine": 1}')
    with pytest.raises(CheckpointError, match=r"no (result|page) of `reparam coverage`, so it is not replaced"):
        reparam.coverage("test_vit", **options)
    assert options[option].read_text() == '{"mine": 1}'


def test_earlier_results_stand_on_the_same_page(tmp_path: Path, canned: dict[str, str | None]) -> None:
    reparam.coverage("test_vit", json_file=tmp_path / "a.json", recipe="none")
    reparam.coverage(
        "test_resnet", json_file=tmp_path / "b.json", out=tmp_path / "page.md", joined=[tmp_path / "a.json"]
    )
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert text.index("## `none`") < text.index("## `shiftaddvit`")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no result of `reparam coverage`"):
        reparam.coverage("test_resnet", json_file=tmp_path / "b.json", joined=[tmp_path / "a.json"])


def test_a_process_that_was_cut_short_keeps_what_it_found_and_says_where_it_was() -> None:
    task = run.Task(
        name="test_vit",
        recipe=reparam.load_recipe("none"),
        depth="full",
        versions=examination("x").versions,
        max_params=1,
    )
    last = examination("test_vit", doing="save and reload", seconds=3.0)
    ended = run.Ending(task=task, text=last.model_dump_json(), fault="timed out after 9 s", seconds=9.0)
    found = run.concluded(ended)
    assert (found.error, found.parameters) == ("timed out after 9 s (during: save and reload)", 10)
    early = run.concluded(run.Ending(task=task, text=None, fault="the process died of SIGKILL", seconds=1.0))
    assert (early.name, early.error, early.parameters) == ("test_vit", "the process died of SIGKILL", None)
    fine = run.concluded(run.Ending(task=task, text=last.model_dump_json(), fault=None, seconds=9.0))
    assert fine == last
