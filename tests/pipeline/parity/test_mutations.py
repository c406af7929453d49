"""Every corruption is caught, by the rule meant for it; clean models are not."""

from collections import Counter
from typing import get_args

import pytest

from pipeline.model.vae import VAE
from pipeline.parity.check import check_parity
from pipeline.parity.comparison_result import Rule
from serving.bundle import Bundle
from tests.pipeline.parity.mutations import (
    MUTATIONS,
    Mutation,
    corrupt,
    read_graphs,
    set_arrays,
    weights_of,
    write_graphs,
)
from tests.trained_models import Trained, tiny_config, train_checkpoint


@pytest.fixture(scope="module")
def others(trained: Trained) -> list[VAE]:
    """Models of other trainings on the same data."""
    configs = (tiny_config(trained[1], seed=seed, epochs=seed) for seed in (9, 1, 2, 3, 4))
    return [train_checkpoint(trained[1], config).model for config in configs]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_corruption_is_caught_by_its_rule(
    mutation: Mutation, bundle: Bundle, others: list[VAE], trained: Trained
) -> None:
    corrupted = corrupt(bundle, mutation, others[0])
    report = check_parity(corrupted, trained[0].model, trained[1].test.x)
    broken = Counter(fault.rule for fault in report.faults())
    assert mutation.rule in broken, broken
    if mutation.sole:
        assert broken.keys() == {mutation.rule}
    assert not report.passed
    assert report.to_json()["verdict"] == "failed"


def test_there_is_a_corruption_for_every_rule() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 15
    caught = {mutation.rule for mutation in MUTATIONS}
    assert caught | {"reduction"} == set(get_args(Rule))  # that one's stand in test_reduction.py


def test_clean_models_of_other_seeds_give_no_false_alarm(
    bundle: Bundle, others: list[VAE], trained: Trained
) -> None:
    """Their weights go into the graphs of one export, whose nodes are those of all."""
    graphs = read_graphs(bundle)
    for model in others:
        for proto in graphs.values():
            set_arrays(proto, weights_of(model))
        report = check_parity(write_graphs(bundle, graphs), model, trained[1].test.x)
        assert report.faults() == []
        assert report.passed
