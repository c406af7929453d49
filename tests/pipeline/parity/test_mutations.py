"""Every corruption is caught, by the rule meant for it; clean models are not."""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from onnx import numpy_helper

from pipeline.data.dataset import Dataset
from pipeline.model.vae import VAE
from pipeline.parity import check, row_counts
from pipeline.parity.check import check_parity
from pipeline.parity.comparison_result import Rule
from pipeline.parity.comparisons import Case, make_cases
from pipeline.parity.row_counts import RowCounts
from pipeline.parity.settings import SettingPlan
from pipeline.parity.weights import NETS as NETS_PARTS
from pipeline.parity.weights import weight_faults
from serving.bundle import Bundle, open_bundle
from tests.pipeline.parity.mutations import (
    MIXED_MUTATIONS,
    MUTATIONS,
    Mutation,
    corrupt,
    read_graphs,
    set_arrays,
    weights_of,
    write_graphs,
)
from tests.trained_models import share_bundle, share_checkpoint, tiny_config, train_checkpoint

NETS: Mapping[str, Mapping[str, object]] = {
    "dense": {},
    "table": {},
    "convolutional": {"model": "conv", "hidden_dims": (6, 6)},
    "recurrent": {"model": "tests.own_nets:lstm"},
    "attention": {"model": "tests.own_nets:attention"},
    "mixed": {"fit_sizes": False},
}
SEALED = {
    "dense": ("trained", "sealed"),
    "table": ("trained_table", "sealed_table"),
    "mixed": ("trained_mixed", "sealed_mixed"),
}
"""The fixtures of nets that other modules use too."""
EACH_NET = [
    pytest.param(net, id=net, marks=[] if net == "dense" else pytest.mark.slow) for net in NETS
]
WIDE = EACH_NET[2]
"""Also compared on the rows of wide models."""
IMAGES = [param for param in EACH_NET if param.id not in ("table", "mixed")]


@dataclass(frozen=True)
class Subject:
    """A net with an export, and models of other trainings of it on the same data."""

    bundle: Bundle
    model: VAE
    x: np.ndarray
    others: list[VAE]
    cases: dict[RowCounts, Sequence[Case]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def subject(
    request: pytest.FixtureRequest, images: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Subject:
    net = str(request.param)
    if net in SEALED:
        trained, bundle = map(request.getfixturevalue, SEALED[net])
    else:
        trained = share_checkpoint(tmp_path_factory, f"{net}-net", images, **NETS[net])
        bundle = share_bundle(tmp_path_factory, f"{net}-bundle", trained)
    checkpoint, data = trained
    settings = ({**NETS[net], "seed": number, "epochs": number} for number in (9, 1, 2, 3, 4))
    others = [train_checkpoint(data, tiny_config(data, **each)).model for each in settings]
    return Subject(bundle, checkpoint.model, data.test.x, others)


@pytest.fixture
def cases_once(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute torch's results once for all corruptions of a subject, since they change only graphs.

    Most of a check's time goes there.
    """

    def known(
        plans: Sequence[SettingPlan],
        bundle: Bundle,
        model: VAE,
        x: np.ndarray,
        counts: RowCounts,
    ) -> Sequence[Case]:
        if counts not in subject.cases:
            subject.cases[counts] = [*make_cases(plans, bundle, model, x, counts)]
            for array in arrays_of(subject.cases[counts]):
                array.flags.writeable = False
        return subject.cases[counts]

    monkeypatch.setattr(check, "make_cases", known)


def arrays_of(cases: Iterable[Case]) -> Iterator[np.ndarray]:
    for case in cases:
        for values in (case.inputs, case.exact, *case.rounded.values()):
            yield from values.values()


@pytest.fixture
def copied(subject: Subject, tmp_path: Path) -> Bundle:
    """Return a copy of the subject's bundle to change."""
    shutil.copytree(subject.bundle.path, tmp_path / "bundle")
    return open_bundle(tmp_path / "bundle")


@pytest.mark.usefixtures("cases_once")
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
@pytest.mark.parametrize("subject", IMAGES, indirect=True)
def test_a_corruption_is_caught_by_its_rule(
    mutation: Mutation, subject: Subject, copied: Bundle
) -> None:
    broken = broken_rules(mutation, subject, copied)
    assert mutation.rule in broken, broken
    if mutation.sole:
        assert broken.keys() == {mutation.rule}


@pytest.mark.usefixtures("cases_once")
@pytest.mark.parametrize(
    "mutation",
    # the bound of a table is a few nats: six roundings of it are less than the goal of 1e-5 nats
    [mutation for mutation in MUTATIONS if mutation.rule != "elbo"],
    ids=lambda mutation: mutation.name,
)
@pytest.mark.parametrize("subject", [EACH_NET[1]], indirect=True)
def test_a_corruption_of_a_model_of_a_table_is_caught_by_its_rule(
    mutation: Mutation, subject: Subject, copied: Bundle
) -> None:
    """Its tolerances are the widest of several draws."""
    broken = broken_rules(mutation, subject, copied)
    assert mutation.rule in broken, broken


@pytest.mark.usefixtures("cases_once")
@pytest.mark.parametrize("mutation", MIXED_MUTATIONS, ids=lambda mutation: mutation.name)
@pytest.mark.parametrize("subject", [EACH_NET[-1]], indirect=True)
def test_a_corruption_of_a_mixed_table_is_seen_in_its_values(
    mutation: Mutation, subject: Subject, copied: Bundle
) -> None:
    broken = broken_rules(mutation, subject, copied)
    assert mutation.rule in broken, broken


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare images on as many rows as those of a wide model."""
    monkeypatch.setattr(row_counts, "WIDE_FLOPS", 0)


@pytest.mark.usefixtures("wide", "cases_once")
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
@pytest.mark.parametrize("subject", [WIDE], indirect=True)
def test_a_corruption_of_a_wide_model_is_caught_by_its_rule(
    mutation: Mutation, subject: Subject, copied: Bundle
) -> None:
    broken = broken_rules(mutation, subject, copied)
    assert mutation.rule in broken, broken
    if mutation.sole:
        assert broken.keys() == {mutation.rule}


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("subject", [WIDE], indirect=True)
def test_clean_wide_models_give_no_false_alarm(subject: Subject, copied: Bundle) -> None:
    assert_no_false_alarm(subject, copied)


def broken_rules(mutation: Mutation, subject: Subject, copied: Bundle) -> Counter[Rule]:
    corrupted = corrupt(copied, mutation, subject.others[0])
    report = check_parity(corrupted, subject.model, subject.x)
    assert not report.passed
    assert report.to_json()["verdict"] == "failed"
    return Counter(fault.rule for fault in report.faults())


@pytest.mark.parametrize("subject", EACH_NET, indirect=True)
def test_any_weight_that_is_changed_swapped_or_transposed_is_caught(subject: Subject) -> None:
    """Each weight of the graph that has them all, one at a time."""
    graph = "score.onnx"
    proto, model = read_graphs(subject.bundle)[graph], subject.model

    def faults() -> list[str]:
        found = weight_faults({graph: proto}, model, model, subject.bundle.operations)
        return [str(fault) for fault in found]

    arrays = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    weights = {name: value for name, value in arrays.items() if name.startswith(NETS_PARTS)}
    assert faults() == []
    for name, value in weights.items():
        for changed in corruptions(value, weights.values()):
            set_arrays(proto, {name: changed})
            assert faults() == [
                f"{graph} holds {name}, but not as it is in weights.pt (rule: weights)"
            ]
        set_arrays(proto, {name: value})


def corruptions(value: np.ndarray, others: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield a last bit changed, numbers moved on by one, transposes, others of the same shape."""
    nudged = value.copy()
    nudged.flat[-1] = np.nextafter(nudged.flat[-1], np.float32(9))
    yield nudged
    transposed = np.ascontiguousarray(value.T)
    others = (np.roll(value, 1), transposed, transposed.reshape(value.shape), *others)
    known = {(value.shape, value.tobytes())}
    for other in others:
        if other.size == value.size and (other.shape, other.tobytes()) not in known:
            known.add((other.shape, other.tobytes()))
            yield other


def test_there_is_a_corruption_for_every_rule() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 15
    caught = {mutation.rule for mutation in MUTATIONS}
    assert caught | {"reduction"} == set(get_args(Rule))  # that one's stand in test_reduction.py


@pytest.mark.parametrize("subject", EACH_NET, indirect=True)
def test_clean_models_of_other_seeds_give_no_false_alarm(subject: Subject, copied: Bundle) -> None:
    assert_no_false_alarm(subject, copied)


def assert_no_false_alarm(subject: Subject, copied: Bundle) -> None:
    """Their weights go into the graphs of one export, whose nodes are those of all."""
    graphs = read_graphs(copied)
    for model in subject.others:
        for proto in graphs.values():
            set_arrays(proto, weights_of(model))
        report = check_parity(write_graphs(copied, graphs), model, subject.x)
        assert report.faults() == []
        assert report.passed
