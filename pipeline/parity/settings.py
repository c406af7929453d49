"""The settings under which the engine is checked: levels, numbers of threads, devices and TF32.

In: a bundle and the devices. Out: plans, and engines that are opened by them. Raises
`DeviceUnavailable` if a device is missing, `VerificationFailed` if a graph does not open or its
tensors are not those of the operation table.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.parity.comparison_result import Setting
from pipeline.parity.row_counts import FULL, Kind, RowCounts
from pipeline.parity.tolerances import TF32, Rules
from serving.bundle import Bundle
from serving.engine import Engine
from serving.operations import Operation
from serving.sessions import Level, has_float64, provider_of

OTHER_LEVELS: tuple[Level, ...] = ("off", "basic", "extended")
THREADS = (1, 2)


@dataclass(frozen=True, slots=True)
class SettingPlan:
    """A setting to check, and by which rules."""

    device: str
    setting: Setting
    rules: Rules
    as_served: bool = False


@dataclass(frozen=True, slots=True)
class CheckedEngine:
    """An engine under one setting, and which rows it is checked on."""

    engine: Engine
    setting: Setting
    rules: Rules
    as_served: bool
    counts: RowCounts

    def batches(self, kind: Kind) -> tuple[int, ...]:
        """Return the batch sizes in which rows of this kind are checked."""
        if kind == "held-out":
            return self.counts.batches if self.as_served else self.counts.other_batches
        return self.counts.adversarial if self.as_served else self.counts.adversarial[-1:]


def plan_settings(devices: Sequence[str], threads: int, rules: Rules) -> Iterator[SettingPlan]:
    """Yield the setting that serves, then other levels, other threads and, on CUDA, TF32."""
    for device in devices:
        served = Setting(provider=provider_of(device), level="all", threads=threads)
        yield SettingPlan(device, served, rules, as_served=True)
        for level in OTHER_LEVELS:
            yield SettingPlan(device, replace(served, level=level), rules)
        if device == "cuda":
            yield SettingPlan(device, replace(served, tf32=True), TF32, as_served=True)
        elif device == "cpu":
            for other in THREADS:
                if other != threads:
                    yield SettingPlan(device, replace(served, threads=other), rules)


def open_engines(bundle: Bundle, plan: SettingPlan, counts: RowCounts) -> Iterator[CheckedEngine]:
    """Yield the engine under one setting; of a wide model an engine for each graph, one by one.

    A session keeps the memory of its largest batch until it is closed.
    """
    if counts is FULL:
        yield open_engine(bundle, plan, counts)
        return
    forms = checked_forms(bundle, plan.device)
    for graph in dict.fromkeys(form.graph for form in forms.values()):
        part = {label: form for label, form in forms.items() if form.graph == graph}
        yield open_engine(bundle, plan, counts, part)


def open_engine(
    bundle: Bundle,
    plan: SettingPlan,
    counts: RowCounts,
    forms: Mapping[str, Operation] | None = None,
) -> CheckedEngine:
    """Open the engine under one setting, for all forms that are checked or for some."""
    setting = plan.setting
    engine = Engine(
        bundle,
        device=plan.device,
        threads=setting.threads,
        level=setting.level,
        tf32=setting.tf32,
        operations=forms or checked_forms(bundle, plan.device),
    )
    return CheckedEngine(engine, setting, plan.rules, plan.as_served, counts)


def checked_forms(bundle: Bundle, device: str) -> Mapping[str, Operation]:
    """Return what is checked on a device: all forms that it can run, by label."""
    if has_float64(device):
        return bundle.all_forms
    return {form.label: form for form in bundle.operations_for(float64=False).values()}
