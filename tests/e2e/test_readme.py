"""The README's commands and code do what it says, on tiny data."""

import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli.main import cli
from tests.forks import run_fork

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
OWN_DATA = README.partition("## Your own data")[2].partition("\n## ")[0]
"""The section whose commands belong together, and are run on the data that it makes."""
SERVING_MANUAL = (ROOT / "docs" / "serving.md").read_text()
TINY = {"epochs": "2", "hidden-dims": "16", "latent-dim": "3", "nll-samples": "4", "threads": "1"}
COLLAPSED = {"min-active-units": "0"}
"""After two epochs no latent is active yet."""


def blocks(language: str, text: str = README.replace(OWN_DATA, "")) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(*text: str) -> list[list[str]]:
    lines = "".join(blocks("sh", *text)).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def shrink(words: list[str], folder: Path) -> list[str]:
    """Return the command, on tiny data if it trains; `vae train` makes the better model."""
    settings = {**TINY, "data": str(folder / "x.npy")}
    if words[:2] == ["mlflow", "run"]:
        settings |= {"out": str(folder / "first"), "name": "mine", **COLLAPSED}
        parameters = [part for key, value in settings.items() for part in ("-P", f"{key}={value}")]
        keep = [word for word in words[2:] if word not in (".", "-P", "epochs=3", "name=mine")]
        return [*words[:2], str(ROOT), *keep, *parameters]
    if words[1] in ("train", "run"):
        better = {"epochs": "8", "learning-rate": "1e-2"}
        settings |= better if words[1] == "train" else COLLAPSED
        return [*words, *(part for key, value in settings.items() for part in (f"--{key}", value))]
    return words


def ask(words: list[str], address: str) -> bytes:
    """Do what `curl -s URL -d DATA` does, since curl may not be installed."""
    _, _, url, _, data = words
    url = f"http://{url.replace('localhost:8080', address)}"
    with urllib.request.urlopen(url, data.encode()) as answer:
        content: bytes = answer.read()
    return content


def serve_and_ask(folder: Path, env: dict[str, str]) -> None:
    """Start the README's server; run its requests and the code of docs/serving.md."""
    (command,) = (words for words in commands() if words[:2] == ["vae", "serve"])
    ports = ("--port", "0", "--grpc-port", "0", "--drain", "1")
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, *ports], stdout=pipe, env=env, cwd=folder) as process:
        assert process.stdout is not None
        try:
            address = json.loads(process.stdout.readline())["rest"].removeprefix("http://")
            for words in commands():
                if words[0] == "curl":
                    assert json.loads(ask(words, address))["outputs"][0]["shape"] == [3, 6, 5]
            for code in blocks("python", SERVING_MANUAL):
                code = code.replace("localhost:8080", address)
                subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, env=env)
        finally:
            process.terminate()
    assert process.returncode == 0


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a user who has activated `.venv`, with a store in `folder`."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    return env | {
        "PATH": f"{Path(sys.executable).parent}:{env['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }


@pytest.mark.slow(20)
def test_your_own_data_are_learned_and_the_odd_ones_found(tmp_path: Path) -> None:
    env = environment(tmp_path)
    (code,) = blocks("python", OWN_DATA)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=env)
    for words in commands(OWN_DATA):
        result = run_fork((*words, *(("--threads", "1") * (words[1] == "run"))), tmp_path, env)
        assert result.returncode == 0, (words, result.stderr)
    page = (tmp_path / "new.html").read_text()
    assert "all 100 rows lie below 99 %" in OWN_DATA
    assert "100.00% of the rows lie below 99% of the held-out rows." in page
    assert "100 rows are flagged" in page
    table = np.genfromtxt(tmp_path / "like-parts.csv", delimiter=",", names=True)
    assert table.shape == (1000,)
    slope = np.polyfit(table["length"], table["width"], 1)[0]
    assert abs(slope - 2) < 0.2  # as in the rows that it was trained on


@pytest.mark.slow(40)
def test_every_command_runs(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    x = generator.integers(0, 40, (300, 6, 5), dtype=np.uint8)
    x[np.arange(300), generator.integers(0, 6, 300)] = 230
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "images.npy", x[:9])
    env = environment(tmp_path)
    users = [words for words in commands() if words[0] not in ("make", "curl")]
    users.remove(["vae", "serve", "--model", "models:/vae@champion"])
    users.insert(0, ["vae", "run"])  # what make run does
    # these need a champion
    users.sort(key=lambda words: words[1] in ("sample", "reconstruct", "score", "deploy"))
    run_id = ""
    for words in users:
        command = [run_id if word == "RUN_ID" else word for word in shrink(words, tmp_path)]
        result = run_fork(tuple(command), tmp_path, env)
        assert result.returncode == 0, (words, result.stderr)
        if words[1] == "train":
            run_id = json.loads(result.stdout.splitlines()[-1])["run_id"]
    ran = {words[1] for words in users}
    assert {"train", "evaluate", "export", "check", "register", "promote", "rollback"} <= ran
    assert {"grid.png", "reconstructions.npy", "scores"} <= set(os.listdir(tmp_path))
    serve_and_ask(tmp_path, env)
    for code in blocks("python"):
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=env)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for words in commands():
        if words[0] == "make":
            for target in words[1:]:
                assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target


@pytest.mark.parametrize("name", list(cli.commands))
def test_every_command_is_listed_and_has_an_example(name: str) -> None:
    rows = [line for line in README.splitlines() if line.startswith("| `vae")]
    assert any(re.search(rf"`(vae )?{name}`", row) for row in rows)
    help_text = cli.commands[name].help or ""
    assert f"Example: vae {name}" in help_text


def test_the_plain_onnxruntime_code_is_six_lines() -> None:
    code = [line for line in blocks("python")[0].splitlines() if line]
    assert len(code) == 6
    assert "serving" not in "".join(code)


def test_it_is_short_and_its_pictures_exist() -> None:
    assert len(README.splitlines()) < 200
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures
    assert all((ROOT / picture).exists() for picture in pictures)
