"""Processes that hang, die or want too much end as findings; nothing here waits for a clock longer than it must."""

import os
import signal

import pytest

from reparam.survey.pool import Bounds, Ending, describe, run_bounded
from tests.survey.stand_ins import work

BOUNDS = Bounds(seconds=60.0, memory=8 << 30)


def endings(*tasks: str, jobs: int = 1, bounds: Bounds = BOUNDS) -> dict[str, Ending[str]]:
    return {ending.task: ending for ending in run_bounded(tasks, work, jobs=jobs, bounds=bounds)}


def test_each_task_ends_with_the_last_text_that_it_reported() -> None:
    found = endings("a", "print", "c", jobs=2)
    assert {task: (e.text, e.fault) for task, e in found.items()} == {
        "a": ("a done", None),
        "print": ("print done", None),
        "c": ("c done", None),
    }


@pytest.mark.parametrize(
    ("task", "fault"),
    [
        ("raise", "ValueError: no such luck"),
        ("abort", "the process died of SIGABRT"),
        ("exit", "the process exited with 7"),
    ],
)
def test_a_task_that_dies_keeps_what_it_reported_and_harms_no_other(task: str, fault: str) -> None:
    found = endings(task, "next")
    assert (found[task].text, found[task].fault) == (f"{task} began", fault)
    assert found["next"].fault is None


def test_more_memory_than_the_bound_is_named_as_such() -> None:
    found = endings("hog")["hog"]
    assert found.fault is not None
    assert found.fault.startswith("out of memory")


def test_a_task_that_has_no_memory_left_gets_some_to_say_how_it_ended(capfd: pytest.CaptureFixture[str]) -> None:
    (found,) = endings("wordy", bounds=Bounds(seconds=BOUNDS.seconds, memory=0)).values()
    assert found.fault == f"Wordy: {1 << 26} bytes"
    assert capfd.readouterr().err == ""


def test_a_task_that_takes_too_long_is_killed_and_says_after_how_long() -> None:
    found = endings("hang", bounds=Bounds(seconds=0.5, memory=BOUNDS.memory))["hang"]
    assert (found.text, found.fault) == ("hang began", "timed out after 0.5 s")


def test_a_task_shares_no_lock_that_would_outlive_it() -> None:
    assert endings("lock")["lock"].text == "_thread done"


def test_leaving_early_kills_what_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, sign, kill=os.kill: (killed.append(pid), kill(pid, sign)))
    running = run_bounded(["quick", "hang"], work, jobs=2, bounds=BOUNDS)
    assert next(running).task == "quick"
    running.close()
    (pid,) = killed
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIG_DFL)


def test_errors_are_one_line_and_memory_is_recognised_in_the_words_of_torch() -> None:
    torchs = RuntimeError("DefaultCPUAllocator: can't allocate memory:\n you tried")
    assert describe(torchs) == "out of memory: DefaultCPUAllocator: can't allocate memory: you tried"
    assert describe(MemoryError()) == "out of memory: MemoryError"
    assert describe(KeyError()) == "KeyError"
    assert describe(ValueError("a\n  b")) == "ValueError: a b"
