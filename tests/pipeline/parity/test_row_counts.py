import pytest

from pipeline.config import configure
from pipeline.model.vae import VAE
from pipeline.parity import row_counts
from pipeline.parity.check import check_parity
from pipeline.parity.row_counts import FULL, WIDE, WIDEST, RowCounts, choose_counts, row_flops
from serving.bundle import Bundle
from tests.trained_models import Trained

MNIST, COLOUR, LARGE = (28, 28), (64, 64, 3), (128, 128, 3)


def make_model(preset: str, x_shape: tuple[int, ...]) -> VAE:
    return VAE(x_shape, configure(preset, likelihood="bernoulli").model)


@pytest.mark.parametrize(
    ("preset", "x_shape", "counts"),
    [
        pytest.param("default", MNIST, FULL, id="default on MNIST"),
        pytest.param("conv", MNIST, FULL, id="conv on MNIST"),
        pytest.param("resnet", MNIST, WIDE, id="resnet on MNIST"),
        pytest.param("conv", COLOUR, WIDE, id="conv in colour"),
        pytest.param("resnet", COLOUR, WIDEST, id="resnet in colour"),
        pytest.param("conv", LARGE, WIDEST, id="conv on large pictures"),
        pytest.param("default", (20_000,), FULL, id="a wide table"),
    ],
)
def test_wide_models_are_compared_on_fewer_rows(
    preset: str, x_shape: tuple[int, ...], counts: RowCounts
) -> None:
    assert choose_counts(make_model(preset, x_shape)) is counts


def test_operations_are_those_of_the_products_of_one_row() -> None:
    model = make_model("seed", MNIST)
    products = 2 * (784 * 128 + 128 * 64) + 3 * 64 * 20
    assert row_flops(model) == 2 * products


@pytest.mark.parametrize("counts", [FULL, WIDE, WIDEST], ids=["full", "wide", "widest"])
def test_counts_fit_each_other(counts: RowCounts) -> None:
    """The different rows are a batch, and so is the rerun; reversed rows stand for the whole."""
    assert {counts.different, counts.rerun} <= {*counts.batches}
    assert {*counts.other_batches} <= {*counts.batches}
    assert max(counts.adversarial) <= counts.different


def test_a_wide_model_is_checked_in_every_batch_under_every_setting(
    sealed: Bundle, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_counts, "WIDE_FLOPS", 0)
    report = check_parity(sealed, trained[0].model, trained[1].test.x)
    assert report.faults() == []
    batches: dict[tuple[object, ...], set[int]] = {}
    outputs = {(form.label, y.name) for form in sealed.all_forms.values() for y in form.outputs}
    for row in report.comparisons:
        kind = "held-out" if row.rows == "held-out" else "other"
        key = (row.rule, kind, row.level, row.threads)
        batches.setdefault(key, set()).add(row.batch)
    assert {(row.operation, row.output) for row in report.comparisons} == outputs
    others = [("off", 1), ("basic", 1), ("extended", 1), ("all", 2)]
    assert batches == {
        ("values", "held-out", "all", 1): {*WIDE.batches},
        ("values", "other", "all", 1): {*WIDE.adversarial},
        ("batch", "held-out", "all", 1): {*WIDE.batches},
        ("rerun", "held-out", "all", 1): {WIDE.rerun},
        **{("values", "held-out", *setting): {*WIDE.other_batches} for setting in others},
        **{("values", "other", *setting): {max(WIDE.adversarial)} for setting in others},
    }
    assert [(elbo.rows, elbo.different) for elbo in report.elbo] == [(64, 64)] * 2
    assert report.placement["cpu"] == sealed.read_json("parity.json")["placement"]["cpu"]
