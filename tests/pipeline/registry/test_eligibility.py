from dataclasses import replace

import pytest

from pipeline.registry.eligibility import _scale_faults
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


def test_models_of_bytes_of_another_scale_are_not_compared(sealed: Bundle) -> None:
    """A version from before the range was kept took bytes of few levels as shares of 255."""
    old = sealed.manifest
    levels = replace(old, data={**old.data, "range": [0, 16]})
    assert list(_scale_faults(old, old)) == []
    (fault,) = _scale_faults(levels, old)
    assert fault.startswith("bytes are shares of 16, but the champion's of 255")
    real = (replace(part, likelihood="gaussian") for part in (levels, old))
    assert list(_scale_faults(*real)) == []  # its density is in units of bytes
