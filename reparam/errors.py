"""The one exception tree; every message says where, what was wanted, what was got and what to do.

ReparamError
├── ModelError         a model that cannot be named, built, or fed
├── WeightsError       weights that cannot be reached, read, or fitted
├── RecipeError        a recipe that cannot be found, read, or validated
│   └── OptionError    one operator option or training setting out of range
├── PlanError          a plan that the recipe and the model do not allow
├── RewriteError       a rewrite whose result is not what the plan promised
├── CheckpointError    a folder that is not an intact reparam checkpoint
├── DataError          a data set that is missing or does not fit the model
├── CostError          prices that cannot be found or read, or a cost that cannot be worked out
├── BudgetError        a budget that cannot be read, or that no choice of operators meets
├── BackendError       a model that a backend cannot take, or a backend that is not to be had here
├── ExportError        a model that a format cannot hold, or not as asked for
└── TrainError         a training run that cannot go on
"""


class ReparamError(Exception):
    """Base of every error that a user can cause and mend."""


class ModelError(ReparamError):
    """A model that cannot be named, built, or fed."""


class WeightsError(ReparamError):
    """Weights that cannot be reached, read, or fitted to the model."""


class RecipeError(ReparamError):
    """A recipe that cannot be found, read, or validated."""


class OptionError(RecipeError):
    """One operator option or training setting that is out of its range."""


class PlanError(ReparamError):
    """A plan that the recipe and the model do not allow."""


class RewriteError(ReparamError):
    """A rewrite whose result is not what the plan promised."""


class CheckpointError(ReparamError):
    """A folder that is not an intact reparam checkpoint."""


class DataError(ReparamError):
    """A data set that is missing or does not fit the model."""


class CostError(ReparamError):
    """Prices that cannot be found or read, or a cost that cannot be worked out."""


class BudgetError(ReparamError):
    """A budget that cannot be read, or that no choice of operators meets."""


class BackendError(ReparamError):
    """A model that a backend cannot take, or a backend that is not to be had here."""


class ExportError(ReparamError):
    """A model that a format cannot hold, or not as asked for."""


class TrainError(ReparamError):
    """A training run that cannot go on."""


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, without its full stop."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__).rstrip(".")
