import pytest

from serving.bundle import Bundle
from tests.pipeline.registry.versions import promote_with, register
from tests.trained_models import Trained


@pytest.mark.usefixtures("store")
def test_models_of_other_data_are_not_compared(
    sealed: Bundle, trained: Trained, sealed_table: Bundle, trained_table: Trained
) -> None:
    promote_with(trained, register(sealed))
    decision = promote_with(trained_table, register(sealed_table))
    assert decision.decision == "refused"
    kinds = [reason.split(" is ")[0] for reason in decision.reasons[:3]]
    assert kinds == ["x_shape", "x_dtype", "likelihood"]
    assert "was evaluated on other held-out rows" in decision.reasons[3]
    assert promote_with(trained_table, "2", force="no").decision == "refused"
