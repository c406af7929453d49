"""A fast test that does what only slow ones may fails, and the failure says what to do."""

import pytest

ATTEMPTS = {
    "a process": ("import subprocess; subprocess.run(['true'])", "started a process"),
    "a fork": (
        "import multiprocessing as m; m.get_context('spawn').Process(target=print).start()",
        "started a process",
    ),
    "another machine": (
        "import socket as s\n    with s.socket() as it: it.connect(('192.0.2.1', 80))",
        "used the network (socket.connect of ('192.0.2.1', 80))",
    ),
    "a name": (
        "import urllib.request as r; r.urlopen('http://example.com')",
        "used the network (socket.getaddrinfo of 'example.com')",
    ),
    "all interfaces": (
        "import socket as s\n    with s.socket() as it: it.bind(('', 0))",
        "used the network (socket.bind of ('', 0))",
    ),
    "a store": (
        "import sqlite3; sqlite3.connect('mlflow.db')",
        "opened a database, as an MLflow store is ('mlflow.db')",
    ),
}


def run(pytester: pytest.Pytester, source: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(source)
    return pytester.runpytest_inprocess("-p", "tests.tiers", "-p", "no:cov", *arguments)


@pytest.mark.parametrize(("code", "message"), ATTEMPTS.values(), ids=ATTEMPTS.keys())
def test_a_fast_test_that_does_it_fails(pytester: pytest.Pytester, code: str, message: str) -> None:
    result = run(pytester, f"def test_it():\n    {code}")
    result.assert_outcomes(failed=1)
    said = result.stdout.str()
    assert f"A fast test {message}" in said
    assert "Mark the test with @pytest.mark.slow" in said
    assert not (pytester.path / "mlflow.db").exists()


def test_a_fixture_that_does_it_fails(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import subprocess, pytest

        @pytest.fixture(scope="session")
        def started():
            subprocess.run(["true"])

        def test_it(started):
            pass
        """,
    )
    result.assert_outcomes(errors=1)
    assert "A fast test started a process" in result.stdout.str()


def test_to_catch_the_error_is_no_way_out(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import sqlite3

        def test_it():
            try:
                sqlite3.connect("mlflow.db")
            except BaseException:
                pass
        """,
    )
    result.assert_outcomes(failed=1)
    assert "opened a database, as an MLflow store is ('mlflow.db'), and caught" in (
        result.stdout.str()
    )


def test_loopback_is_allowed(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import socket

        def test_it():
            with socket.create_server(("127.0.0.1", 0)) as server:
                socket.create_connection(("localhost", server.getsockname()[1])).close()
        """,
    )
    result.assert_outcomes(passed=1)


SLOW = """
    import sqlite3, pytest

    @pytest.fixture
    def store(slow_tier):
        return sqlite3.connect(":memory:")

    def test_with_a_store(store):
        store.close()

    @pytest.mark.slow
    def test_marked():
        sqlite3.connect(":memory:").close()

    @pytest.mark.slow(20)
    def test_long():
        pass

    @pytest.mark.slow(30)
    def test_longer():
        pass

    def test_fast():
        pass

    def test_fast_too():
        pass
"""


def test_slow_tests_may_and_are_left_out_of_the_fast_tier(pytester: pytest.Pytester) -> None:
    run(pytester, SLOW).assert_outcomes(passed=6)
    run(pytester, SLOW, "-m", "not slow").assert_outcomes(passed=2, deselected=4)


def test_each_of_two_workers_begins_with_the_longest(pytester: pytest.Pytester) -> None:
    lines = run(pytester, SLOW, "--collect-only", "-q").outlines
    names = [line.partition("::")[2] for line in lines if "::" in line]
    assert names == [
        *("test_longer", "test_with_a_store", "test_marked"),
        *("test_long", "test_fast", "test_fast_too"),
    ]
