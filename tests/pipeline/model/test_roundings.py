import numpy as np
import pytest
import torch

from pipeline.model import roundings
from pipeline.model.operations import draw_inputs, run_reference
from pipeline.model.roundings import Roundings
from serving.operations import Operation, operation_table, portable_forms
from tests.trained_models import Trained


def forms(trained: Trained) -> list[Operation]:
    model = trained[0].model
    table = operation_table(model.x_shape, trained[0].x_dtype, model.latent_dim)
    return [*table.values(), *portable_forms(table).values()]


@pytest.mark.parametrize("draw", [0, 1])
def test_what_is_remembered_is_what_a_model_alone_gives(trained: Trained, draw: int) -> None:
    """Byte for byte, whatever ran before, in any arithmetic."""
    model, x = trained[0].model, trained[1].test.x
    shared = Roundings(model)
    for operation in forms(trained):
        inputs = draw_inputs(operation, x, num_samples=2, seed=0)
        for dtype, tf32 in (
            (torch.float64, False),
            (torch.float32, False),
            (torch.float32, True),
        ):
            found, alone = (
                run_reference(each, operation, inputs, dtype, draw=draw, tf32=tf32)
                for each in (shared, model)
            )
            for name, value in alone.items():
                assert value.tobytes() == found[name].tobytes(), (operation.label, name)


def test_a_network_runs_once_on_the_same_inputs(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = Roundings(trained[0].model)
    decoder = shared.get(torch.float32).decoder
    runs: list[int] = []
    decoder.network.register_forward_pre_hook(lambda _, z: runs.append(len(z[0])))
    z = torch.zeros(4, 3)
    first, again = decoder(z), decoder(z.clone())
    assert runs == [4]
    np.testing.assert_array_equal(first.detach(), again.detach())
    decoder(z + 1)
    decoder(z[:2])
    assert runs == [4, 4, 2]
    monkeypatch.setattr(roundings, "MOST_BYTES", 0)
    decoder(z + 2)
    decoder(z + 2)
    assert runs == [4, 4, 2, 4, 4]
