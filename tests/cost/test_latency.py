import pytest
import torch
from torch import nn

from reparam.cost.latency import in_eval, machine_name, using_threads


def model() -> nn.Module:
    made = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout()).train()
    made[0].eval()
    return made


def test_inside_all_modules_are_in_evaluation_and_afterwards_each_in_its_own_mode() -> None:
    made = model()
    with in_eval(made):
        assert not any(module.training for module in made.modules())
    assert [module.training for module in made.modules()] == [True, False, True]


def test_the_modes_are_as_they_were_after_a_failure_too() -> None:
    made = model()
    with pytest.raises(RuntimeError), in_eval(made):
        raise RuntimeError
    assert [module.training for module in made.modules()] == [True, False, True]


def test_the_number_of_threads_is_the_old_one_afterwards() -> None:
    before = torch.get_num_threads()
    with using_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_the_machine_has_a_name() -> None:
    assert machine_name(torch.device("cpu"))
