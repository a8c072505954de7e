"""Turns a pretrained vision model into a multiplication-reduced one, gives the accuracy back, and proves the gain.

Every public name is loaded on first use (PEP 562), so `import reparam` pulls in neither torch nor timm. `TYPE_CHECKING`
is true for type checkers and editors only: they read the imports below, the running program reads `_HOME`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from reparam import errors as errors

if TYPE_CHECKING:
    from reparam.api.bench import bench as bench
    from reparam.api.bench_records import Bench as Bench
    from reparam.api.bench_records import BenchCase as BenchCase
    from reparam.api.convert import Conversion as Conversion
    from reparam.api.convert import convert as convert
    from reparam.api.coverage import coverage as coverage
    from reparam.api.demo import DemoResult as DemoResult
    from reparam.api.demo import demo as demo
    from reparam.api.evaluate import evaluate as evaluate
    from reparam.api.explain import explain as explain
    from reparam.api.export import export as export
    from reparam.api.find_lr import find_lr as find_lr
    from reparam.api.finetune import FinetuneResult as FinetuneResult
    from reparam.api.finetune import finetune as finetune
    from reparam.api.lower import Lowering as Lowering
    from reparam.api.lower import lower as lower
    from reparam.api.models import list_models as list_models
    from reparam.api.models import model_families as model_families
    from reparam.api.plan import plan as plan
    from reparam.api.profile import Profile as Profile
    from reparam.api.profile import profile as profile
    from reparam.api.recipes import check_recipe as check_recipe
    from reparam.api.recipes import list_recipes as list_recipes
    from reparam.api.recipes import load_recipe as load_recipe
    from reparam.api.report import Report as Report
    from reparam.api.report import report as report
    from reparam.api.search import search as search
    from reparam.api.sensitivity import sensitivity as sensitivity
    from reparam.api.verify import verify as verify
    from reparam.calibrate.records import Calibration as Calibration
    from reparam.calibrate.records import CalibrationStep as CalibrationStep
    from reparam.checkpoint.load import load as load
    from reparam.checkpoint.save import save as save
    from reparam.compare.records import Difference as Difference
    from reparam.compare.records import Verification as Verification
    from reparam.cost.energy import Energy as Energy
    from reparam.cost.energy_table import MemoryLevels as MemoryLevels
    from reparam.cost.measurement import Comparison as Comparison
    from reparam.cost.measurement import Measured as Measured
    from reparam.cost.measurement import Measurement as Measurement
    from reparam.exporting.base import Exported as Exported
    from reparam.graph.explanation import Explanation as Explanation
    from reparam.graph.records import Plan as Plan
    from reparam.ops.base import OPERATORS as OPERATORS
    from reparam.recipe.data_settings import DataSettings as DataSettings
    from reparam.recipe.json_schema import recipe_json_schema as recipe_json_schema
    from reparam.recipe.schema import Recipe as Recipe
    from reparam.recipe.settings import TrainSettings as TrainSettings
    from reparam.survey.records import Coverage as Coverage
    from reparam.survey.records import Examination as Examination
    from reparam.survey.run import SurveyStep as SurveyStep
    from reparam.tradeoff.outcome import Predicted as Predicted
    from reparam.tradeoff.outcome import SearchResult as SearchResult
    from reparam.tradeoff.records import Sensitivity as Sensitivity
    from reparam.tradeoff.records import SensitivityStep as SensitivityStep
    from reparam.tradeoff.records import SiteSensitivity as SiteSensitivity
    from reparam.train.evaluate import Evaluation as Evaluation
    from reparam.train.progress import EpochReport as EpochReport
    from reparam.train.progress import Progress as Progress
    from reparam.train.progress import StageReport as StageReport
    from reparam.train.progress import StepReport as StepReport
    from reparam.train.rate_test import RateTest as RateTest

__version__ = "0.1.0"

_HOME = {
    "Bench": "reparam.api.bench_records",
    "BenchCase": "reparam.api.bench_records",
    "Calibration": "reparam.calibrate.records",
    "CalibrationStep": "reparam.calibrate.records",
    "Comparison": "reparam.cost.measurement",
    "Conversion": "reparam.api.convert",
    "Coverage": "reparam.survey.records",
    "DataSettings": "reparam.recipe.data_settings",
    "DemoResult": "reparam.api.demo",
    "Difference": "reparam.compare.records",
    "Energy": "reparam.cost.energy",
    "EpochReport": "reparam.train.progress",
    "Evaluation": "reparam.train.evaluate",
    "Examination": "reparam.survey.records",
    "Explanation": "reparam.graph.explanation",
    "Exported": "reparam.exporting.base",
    "FinetuneResult": "reparam.api.finetune",
    "Lowering": "reparam.api.lower",
    "Measured": "reparam.cost.measurement",
    "Measurement": "reparam.cost.measurement",
    "MemoryLevels": "reparam.cost.energy_table",
    "OPERATORS": "reparam.ops.base",
    "Plan": "reparam.graph.records",
    "Predicted": "reparam.tradeoff.outcome",
    "Profile": "reparam.api.profile",
    "Progress": "reparam.train.progress",
    "RateTest": "reparam.train.rate_test",
    "Recipe": "reparam.recipe.schema",
    "Report": "reparam.api.report",
    "SearchResult": "reparam.tradeoff.outcome",
    "Sensitivity": "reparam.tradeoff.records",
    "SensitivityStep": "reparam.tradeoff.records",
    "SiteSensitivity": "reparam.tradeoff.records",
    "StageReport": "reparam.train.progress",
    "StepReport": "reparam.train.progress",
    "SurveyStep": "reparam.survey.run",
    "TrainSettings": "reparam.recipe.settings",
    "Verification": "reparam.compare.records",
    "bench": "reparam.api.bench",
    "check_recipe": "reparam.api.recipes",
    "convert": "reparam.api.convert",
    "coverage": "reparam.api.coverage",
    "demo": "reparam.api.demo",
    "evaluate": "reparam.api.evaluate",
    "explain": "reparam.api.explain",
    "export": "reparam.api.export",
    "find_lr": "reparam.api.find_lr",
    "finetune": "reparam.api.finetune",
    "list_models": "reparam.api.models",
    "list_recipes": "reparam.api.recipes",
    "load": "reparam.checkpoint.load",
    "load_recipe": "reparam.api.recipes",
    "lower": "reparam.api.lower",
    "model_families": "reparam.api.models",
    "plan": "reparam.api.plan",
    "profile": "reparam.api.profile",
    "recipe_json_schema": "reparam.recipe.json_schema",
    "report": "reparam.api.report",
    "save": "reparam.checkpoint.save",
    "search": "reparam.api.search",
    "sensitivity": "reparam.api.sensitivity",
    "verify": "reparam.api.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'reparam' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
