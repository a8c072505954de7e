"""Work for child processes, and records, without a model."""

import os
from typing import Any

from tqdm import tqdm

from reparam.survey.pool import Report
from reparam.survey.records import Check, Coverage, Examination, KindTally, ReasonCount, Versions

VERSIONS = Versions(reparam="1", torch="2", timm="3")


class Wordy(Exception):
    """Needs memory to say what it is."""

    def __str__(self) -> str:
        return f"{len(bytearray(1 << 26))} bytes"


def work(task: str, report: Report) -> None:
    """Does what the task's name says."""
    report(f"{task} began")
    if task == "hang":
        os.read(os.pipe()[0], 1)  # nobody ever writes
    elif task == "raise":
        raise ValueError("no such\nluck")
    elif task == "hog":
        bytearray(1 << 40)
    elif task == "wordy":
        raise Wordy
    elif task == "abort":
        os.abort()
    elif task == "exit":
        os._exit(7)
    elif task == "print":
        print("noise")
    elif task == "lock":
        task = type(tqdm.get_lock()).__module__
    report(f"{task} done")


def examination(name: str, **changes: Any) -> Examination:
    given = {"name": name, "family": name.partition("_")[0], "recipe": "toy", "depth": "plan", "versions": VERSIONS}
    return Examination.model_validate(given | {"parameters": 10, "model_class": "Net"} | changes)


def attention(*, found: int, **fates: int) -> KindTally:
    named = {fate.replace("_", " "): count for fate, count in fates.items()}
    return KindTally.model_validate({"kind": "attention", "found": found, "fates": named})


def reason(words: str, count: int, *, fate: str = "refused") -> ReasonCount:
    given = {"kind": "attention", "fate": fate, "reason": words, "count": count, "example": "blocks.0.attn"}
    return ReasonCount.model_validate(given)


def check(name: str, outcome: str = "ok", detail: str | None = None, seconds: float = 0.5) -> Check:
    return Check.model_validate({"name": name, "outcome": outcome, "detail": detail, "seconds": seconds})


def coverage(*examinations: Examination, depth: str = "plan") -> Coverage:
    given = {"recipe": "toy", "depth": depth, "machine": "2 cores, CPU", "versions": VERSIONS, "scope": "2 toys"}
    return Coverage.model_validate({**given, "examinations": examinations})
