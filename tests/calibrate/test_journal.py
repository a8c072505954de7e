from pathlib import Path

import torch

from reparam.calibrate.journal import Entry, Journal, digest
from reparam.calibrate.records import LayerFit

FIT = LayerFit(path="blocks.0.fc", error=0.1, rounded_error=0.2, damping=0.01, dead_inputs=0)


def test_a_finished_layer_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = {"latent": torch.randn(3, 4), "offset": torch.tensor([[1], [-2], [0]], dtype=torch.int8)}
    Journal(tmp_path / "kept", "key").write("blocks.0.fc", Entry(FIT, state))
    found = Journal(tmp_path / "kept", "key").read("blocks.0.fc")
    assert found is not None
    assert found.fit == FIT
    assert all(torch.equal(found.state[name], tensor) for name, tensor in state.items())


def test_another_calibrations_layers_and_unfinished_ones_are_not_taken(tmp_path: Path) -> None:
    Journal(tmp_path, "key").write("blocks.0.fc", Entry(FIT, {"latent": torch.randn(2)}))
    assert Journal(tmp_path, "another").read("blocks.0.fc") is None
    assert Journal(tmp_path, "key").read("blocks.1.fc") is None
    Journal(tmp_path, "key").remove()
    assert not tmp_path.exists()


def test_the_key_depends_on_every_word_and_every_value() -> None:
    x = torch.randn(4, 3)
    keys = {digest(["a"], [x]), digest(["b"], [x]), digest(["a"], [x + 1e-6]), digest(["a"], [])}
    assert len(keys) == 4
    assert digest(["a"], [x]) == digest(["a"], [x.clone()])
