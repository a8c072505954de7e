import torch

from reparam.cost.latency import machine_name, using_threads


def test_the_number_of_threads_is_the_old_one_afterwards() -> None:
    before = torch.get_num_threads()
    with using_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_the_machine_has_a_name() -> None:
    assert machine_name(torch.device("cpu"))
