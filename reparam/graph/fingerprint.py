"""What a plan was made for: a digest of a model's module tree and parameter shapes, without its weights."""

import hashlib
import json

from torch import nn


def fingerprint(model: nn.Module) -> str:
    """Returns a hexadecimal digest of module paths and types and of parameter names and shapes."""
    modules = [(path, f"{type(m).__module__}.{type(m).__qualname__}") for path, m in model.named_modules()]
    parameters = [(name, tuple(p.shape)) for name, p in model.named_parameters(remove_duplicate=False)]
    return hashlib.sha256(json.dumps([modules, parameters]).encode()).hexdigest()
