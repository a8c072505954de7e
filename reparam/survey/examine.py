"""The work of one process: plan one architecture, and in full depth convert, run, save and compare it."""

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.models import model_entrypoint
from torch import nn

from reparam.copying import meta_copy
from reparam.graph.records import Plan
from reparam.models.build import build_model, build_spec
from reparam.models.spec import ModelSpec
from reparam.models.state import on_meta
from reparam.recipe.schema import Recipe
from reparam.survey import checks
from reparam.survey.fates import tally_plan
from reparam.survey.methods import methods
from reparam.survey.pool import Report, describe
from reparam.survey.records import Check, Depth, Examination, Versions
from reparam.survey.specimen import Specimen, build_lively, example_of, moderate_spec, plan_of

#: In this order: the dense model is needed before "convert" and is gone after it.
CHECKS: Mapping[str, Callable[[Specimen], str | None]] = {
    "exact round trip": checks.exact_round_trip,
    "identity": checks.identity,
    "convert": checks.conversion,
    "forward": checks.forward,
    "gradients": checks.gradients,
    "checkpointing": checks.checkpointing,
    "save and reload": checks.save_and_reload,
    "state keys": checks.state_keys,
    "methods": methods,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One architecture to examine. Above `max_params` parameters the full depth is left out, and that is recorded."""

    name: str
    recipe: Recipe
    depth: Depth
    versions: Versions
    max_params: int
    stands_for: int = 1


def examine(task: Task, report: Report) -> None:
    """Examines one architecture, reporting the record before and after each step of it, as JSON."""
    torch.set_num_threads(1)
    _Examiner(task, report).run()


def blank(task: Task) -> Examination:
    """The record of a task before anything is known."""
    return Examination(
        name=task.name,
        family=family_of(task.name),
        recipe=task.recipe.name,
        depth=task.depth,
        versions=task.versions,
        stands_for=task.stands_for,
    )


def family_of(name: str) -> str:
    """The module of timm that registers the architecture."""
    return str(model_entrypoint(name).__module__).rpartition(".")[2]


def current_versions(reparam: str) -> Versions:
    """The versions to write into records; this room may not ask the package for its own."""
    return Versions(reparam=reparam, torch=torch.__version__, timm=timm.__version__)


class _Examiner:
    def __init__(self, task: Task, report: Report) -> None:
        self._task, self._report = task, report
        self._found = blank(task)
        self._started = time.monotonic()

    def run(self) -> None:
        self._note(doing="build")
        try:
            spec, model = self._built()
            self._note(doing="plan")
            plan = plan_of(model, self._task.recipe, example_of(spec))
        except Exception as error:  # every way in which building and planning can fail is a finding
            self._note(error=describe(error), doing=None)
            return
        tallies, reasons = tally_plan(plan)
        self._note(tallies=tallies, reasons=reasons)
        if not on_meta(model):
            self._check_all(spec, plan, model)
        elif self._task.depth == "full":
            self._leave_out(f"it has more parameters than the limit of {self._task.max_params}")
        self._note(doing=None)

    def _built(self) -> tuple[ModelSpec, nn.Module]:
        """The model, with weights where the full depth is asked for and its size allows it."""
        is_full = self._task.depth == "full"
        spec = moderate_spec(self._task.name) if is_full else build_spec(self._task.name)
        outline = build_model(spec, device="meta")
        parameters = sum(parameter.numel() for parameter in outline.parameters())
        self._note(model_class=type(outline).__name__, parameters=parameters, input_size=spec.input_size)
        if is_full and parameters <= self._task.max_params:
            return spec, build_lively(spec).eval()
        return spec, outline

    def _leave_out(self, reason: str) -> None:
        self._note(checks=tuple(Check(name=name, outcome="not applicable", detail=reason) for name in CHECKS))

    def _check_all(self, spec: ModelSpec, plan: Plan, dense: nn.Module) -> None:
        with tempfile.TemporaryDirectory() as folder:
            subject = Specimen(spec=spec, plan=plan, dense=dense, outline=meta_copy(dense), folder=Path(folder))
            for name, check in CHECKS.items():
                self._note(doing=name)
                outcome = try_check(name, check, subject)
                self._note(checks=(*self._found.checks, outcome))

    def _note(self, **news: object) -> None:
        spent = {"seconds": round(time.monotonic() - self._started, 2), "peak_mb": round(_peak_mb(), 0)}
        self._found = self._found.model_copy(update={**news, **spent})
        self._report(self._found.model_dump_json())


def try_check(name: str, check: Callable[[Specimen], str | None], subject: Specimen) -> Check:
    """Runs one check; whatever it raises is its own outcome, so that the others go on."""
    started = time.monotonic()
    try:
        outcome, detail = "ok", check(subject)
    except checks.NotApplicable as reason:
        outcome, detail = "not applicable", str(reason)
    except checks.CheckFailed as fault:
        outcome, detail = "failed", str(fault)
    except Exception as error:
        outcome, detail = "failed", describe(error)
    seconds = round(time.monotonic() - started, 2)
    return Check.model_validate({"name": name, "outcome": outcome, "detail": detail, "seconds": seconds})


def _peak_mb() -> float:
    """Peak resident memory of this process in MB; Linux counts kilobytes, macOS bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) / (1e6 if sys.platform == "darwin" else 1024)
