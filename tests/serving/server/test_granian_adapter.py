"""What `granian_adapter` relies on in granian, so that a new granian that differs is named."""

import inspect
from collections.abc import Iterator
from typing import Any

import granian
import pytest
from granian.server.mp import MPServer

from serving.server.granian_adapter import GranianServer

METHODS = {
    "_spawn_workers": ("self", "spawn_target", "target_loader"),
    "_respawn_workers": ("self", "workers", "spawn_target", "target_loader", "delay"),
    "_stop_workers": ("self",),
    "_spawn_worker": ("self", "idx", "target", "callback_loader"),
    "signal_handler_interrupt": ("self", "args", "kwargs"),
    "signal_handler_reload": ("self", "args", "kwargs"),
    "serve": ("self", "spawn_target", "target_loader", "wrap_loader"),
}
"""Methods of granian's server that we override or call, with their parameters."""
CALLS = {
    "_spawn_workers": ("self._spawn_worker(idx=", "callback_loader=target_loader", ".start()"),
    "_respawn_workers": ("self._spawn_worker(idx=", "callback_loader=target_loader", ".start()"),
    "_stop_workers": (".terminate()", "self.wrks"),
}
"""What these methods must do themselves, as parts of their source."""


def differences(server: type, version: str) -> Iterator[str]:
    """Describe each way in which granian's server is not the one that the adapter was made for."""
    for name, parameters in METHODS.items():
        method = getattr(server, name, None)
        if method is None:
            yield f"granian {version} has no method {name}: see serving/server/granian_adapter.py"
            continue
        got = tuple(inspect.signature(method).parameters)
        if got != parameters:
            yield f"granian {version}: {name} takes {got}, the adapter expects {parameters}"
        source = inspect.getsource(method)
        for part in CALLS.get(name, ()):
            if part not in source:
                yield f"granian {version}: {name} no longer has {part!r}, which the adapter expects"


def test_granian_is_the_one_that_the_adapter_was_made_for() -> None:
    found = list(differences(MPServer, granian.__version__))
    assert not found, "\n".join(found)


def test_the_adapter_overrides_no_other_name_of_granian() -> None:
    names = {name for name in vars(GranianServer) if not name.startswith("__")}
    overridden = names & set(dir(MPServer))
    assert overridden == METHODS.keys() - {"serve"}


class Changed(MPServer):  # type: ignore[misc]
    """A granian whose methods take and do other things."""

    def _spawn_worker(self, index: int) -> Any:
        raise NotImplementedError

    def _spawn_workers(self, spawn_target: Any, target_loader: Any) -> None:
        raise NotImplementedError


def test_a_method_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("granian.server.common.AbstractServer._stop_workers")
    assert list(differences(MPServer, "9.9")) == [
        "granian 9.9 has no method _stop_workers: see serving/server/granian_adapter.py"
    ]


def test_a_method_that_differs_is_named() -> None:
    found = list(differences(Changed, "9.9"))
    assert found[0].startswith("granian 9.9: _spawn_workers no longer has 'self._spawn_worker(idx=")
    assert (
        "granian 9.9: _spawn_worker takes ('self', 'index'), the adapter expects "
        "('self', 'idx', 'target', 'callback_loader')"
    ) in found
