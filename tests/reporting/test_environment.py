import platform
from importlib.metadata import version

import torch

from reparam.reporting.environment import this_environment


def test_the_environment_is_that_of_the_running_program() -> None:
    found = this_environment()
    assert found.python == platform.python_version()
    assert found.packages["torch"] == version("torch")
    assert found.threads == torch.get_num_threads()
    assert found.cores >= 1
    assert found.processor
