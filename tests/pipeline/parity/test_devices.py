"""What can be known of devices where there is no GPU: plans, options, tolerances, and refusals."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.cli.main import cli
from pipeline.model.operations import Tolerance, derive_tolerances
from pipeline.parity.check import check_parity, expand_devices, parity_faults
from pipeline.parity.comparison_result import Setting
from pipeline.parity.comparisons import make_cases
from pipeline.parity.inputs import repeat_rows
from pipeline.parity.settings import plan_settings
from pipeline.parity.tolerances import FLOAT32, TF32, compare_elbo
from serving.bundle import Bundle
from serving.errors import DeviceUnavailable
from serving.sessions import PROVIDERS, provider, require_cuda
from tests.pipeline.parity.mutations import MUTATIONS, Mutation, corrupt
from tests.trained_models import Trained

NAMED = {mutation.name: mutation for mutation in MUTATIONS}


@pytest.fixture
def no_cuda() -> None:
    try:
        require_cuda()
    except DeviceUnavailable:
        return
    pytest.skip("this machine has CUDA")


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize("device", ["cuda", "all"])
def test_cuda_that_is_not_there_is_refused_before_anything_is_written(
    device: str, bundle: Bundle
) -> None:
    before = {path.name: path.read_bytes() for path in bundle.path.iterdir()}
    with pytest.raises(DeviceUnavailable, match=r"device cuda is not available: .+") as caught:
        cli.main(["check", str(bundle.path), "--device", device], standalone_mode=False)
    assert caught.value.exit_code == 8
    assert {path.name: path.read_bytes() for path in bundle.path.iterdir()} == before
    assert parity_faults(bundle) == []


@pytest.mark.usefixtures("no_cuda")
def test_a_cpu_is_never_taken_for_cuda(sealed: Bundle, trained: Trained) -> None:
    for device in ("cuda", "all"):
        with pytest.raises(DeviceUnavailable):
            check_parity(sealed, trained[0].model, trained[1].test.x, device=device)


def test_cuda_runs_strictly_first_and_with_tf32_under_its_own_rules() -> None:
    plan = list(plan_settings(expand_devices("cuda"), 1, FLOAT32))
    assert {run.setting.provider for run in plan} == {"CUDAExecutionProvider"}
    assert [(r.setting.level, r.setting.tf32, r.rules is TF32, r.as_served) for r in plan] == [
        ("all", False, False, True),
        ("off", False, False, False),
        ("basic", False, False, False),
        ("extended", False, False, False),
        ("all", True, True, True),
    ]


def test_all_is_both_devices_and_the_cpu_takes_one_thread_and_two() -> None:
    plan = [run.setting for run in plan_settings(expand_devices("all"), 4, FLOAT32)]
    assert {s.provider for s in plan} == {"CPUExecutionProvider", "CUDAExecutionProvider"}
    cpu = [s for s in plan if s.provider.startswith("CPU")]
    assert [s.threads for s in cpu if s.level == "all"] == [4, 1, 2]
    assert not any(s.tf32 for s in cpu)


def test_a_session_has_one_provider_and_no_tf32_unless_asked() -> None:
    assert provider("cpu", tf32=True) == ("CPUExecutionProvider", {})
    assert provider("cuda", tf32=False) == ("CUDAExecutionProvider", {"use_tf32": "0"})
    assert provider("cuda", tf32=True) == ("CUDAExecutionProvider", {"use_tf32": "1"})


@pytest.fixture
def rounded(bundle: Bundle, trained: Trained) -> Any:
    """Check a corrupted bundle as if it ran with TF32; its weights are not looked at."""
    rules = replace(TF32, weights=lambda *_: iter(()))

    def check(mutation: Mutation) -> set[str]:
        corrupted = corrupt(bundle, mutation, trained[0].model)
        report = check_parity(corrupted, trained[0].model, trained[1].test.x, rules=rules)
        return {fault.rule for fault in report.faults()}

    return check


@pytest.mark.parametrize("name", ["activations through ten bits", "weights through TF32"])
def test_the_tolerance_of_tf32_allows_ten_bits(rounded: Any, name: str) -> None:
    assert rounded(NAMED[name]) <= {"needs"}  # of the type that rounds


@pytest.mark.parametrize("name", ["weights through bfloat16", "one weight's sign"])
def test_the_tolerance_of_tf32_allows_no_more(rounded: Any, name: str) -> None:
    assert "values" in rounded(NAMED[name])


def test_the_table_shows_each_run_apart(sealed: Bundle, trained: Trained) -> None:
    """TF32 uses more of its own tolerance, and must not stand for float32."""
    report = check_parity(sealed, trained[0].model, trained[1].test.x)
    cuda = [replace(row, provider=PROVIDERS["cuda"]) for row in report.comparisons]
    rounded = [replace(row, tf32=True, max_error=row.max_tolerance) for row in cuda]
    table = replace(report, comparisons=(*report.comparisons, *cuda, *rounded)).table()
    lines = [line for line in table.splitlines() if line.startswith("  encode.z_loc")]
    shown = [re.search(r"CUDA TF32|CUDA|CPU", line) for line in lines]
    assert [found and found[0] for found in shown] == ["CPU", "CUDA", "CUDA TF32"]
    assert [line.endswith("100%") for line in lines] == [False, False, True]


def test_goal_of_the_elbo_is_widened_by_noise_alone() -> None:
    generator = np.random.default_rng(0)
    likelihood, kl = -1e4 * generator.random(1000), 10 * generator.random(1000)
    exact = {"elbo": likelihood - kl, "log_likelihood": likelihood, "kl": kl}
    setting = Setting(provider="CPUExecutionProvider", level="all", threads=1)
    noise = 1e-6 * np.sign(generator.standard_normal(1000))

    def compared(error: Any, scale: float) -> Any:
        value, rounded = ({"elbo": exact["elbo"] + e} for e in (error, scale * noise))
        return compare_elbo(value, exact, rounded, FLOAT32, setting)

    quiet, loud = compared(noise, 1.0), compared(2e-3 + noise, 1e3)
    assert quiet.mean_tolerance == quiet.mean_goal == 1e-5
    assert quiet.row_tolerance == quiet.row_goal == 1e-6
    assert loud.mean_tolerance == pytest.approx(4e-3, rel=1e-3)
    assert loud.mean_error == pytest.approx(2e-3, rel=1e-2)
    assert not compared(2e-5, 1.0).passed
    assert not compared(5e-3, 1e3).passed
    one = np.zeros(1000)
    one[3] = 2e-6 * (abs(likelihood[3]) + kl[3])
    assert compared(one, 1.0).row_error == pytest.approx(2e-6)
    assert not compared(one, 1.0).passed


def test_a_missing_elbo_has_failed() -> None:
    exact = {name: np.ones(1000) for name in ("elbo", "log_likelihood", "kl")}
    setting = Setting(provider="CPUExecutionProvider", level="all", threads=1)
    assert not compare_elbo({}, exact, exact, FLOAT32, setting).passed


def test_no_tolerance_is_below_the_roundings_of_held_out_values(
    sealed: Bundle, trained: Trained
) -> None:
    """A picture of far latents may be dark all over; what is nothing beside a pixel is no fault."""
    checkpoint, dataset = trained
    plans, raised = tuple(plan_settings(("cpu",), 1, FLOAT32)), 0
    least: Mapping[str, Tolerance] = {}
    for case in make_cases(plans, sealed, checkpoint.model, repeat_rows(dataset.test.x)):
        if case.kind == "held-out":
            least = derive_tolerances(case.exact, ())
        alone = derive_tolerances(case.exact, (case.rounded["float32"],))
        for name, tolerance in case.tolerances["float32"].items():
            assert tolerance == alone[name].wider(least[name])
            raised += alone[name] != tolerance
    assert raised
