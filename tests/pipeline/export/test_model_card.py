import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.cli.main import cli
from pipeline.export.model_card import address_card, render_card
from pipeline.parity.bundle_report import describe_report
from pipeline.parity.report import ParityReport
from serving.bundle import Bundle
from serving.engine import Engine
from serving.io.images import tile
from tests.trained_models import Trained


def rows_of(card: str, heading: str) -> dict[str, list[str]]:
    """Cells of the tables under a heading, by the first cell of a row."""
    section = card.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells}


@pytest.fixture(scope="module")
def card(sealed: Bundle) -> str:
    return (sealed.path / "MODEL_CARD.md").read_text()


def test_every_mean_stands_with_its_error(sealed: Bundle) -> None:
    real: Mapping[str, Any] = sealed.read_json("metrics.json")
    metrics: dict[str, Any] = {name: i + 0.25 for i, name in enumerate(real)}  # no two alike
    metrics |= {"nll_samples": 4, "rows": 100, "active_units": 2, "warnings": []}
    text = render_card(asdict(sealed.manifest), metrics)
    rows = rows_of(text, "How good it is")
    names = {
        "ELBO": "elbo",
        "log-likelihood": "log_likelihood",
        "KL": "kl",
        "NLL, 4 importance samples": "nll",
    }
    for label, name in names.items():
        assert rows[label] == [f"{metrics[name]:.2f} ± {metrics[f'{name}_se']:.2f}"]
    assert rows["active latents"] == ["2 of 3"]
    assert rows["informative latents"] == [str(metrics["informative_units"])]


def test_data_and_origin_are_whole(sealed: Bundle, card: str, trained: Trained) -> None:
    rows = rows_of(card, "Data")
    for name, split in trained[1].describe()["splits"].items():
        assert rows[name] == [str(split["rows"]), f"`{split['sha256']}`"]
    assert rows_of(card, "Origin")["git commit"] == [f"`{'0' * 40}`"]


def test_a_table_is_described_by_its_columns(sealed: Bundle) -> None:
    content = asdict(sealed.manifest)
    content |= {"x_shape": [3], "data": {**content["data"], "columns": ["a", "b`c\n|d", "e"]}}
    text = render_card(content, sealed.read_json("metrics.json"))
    assert "\n\n3 columns: `a`, `b'c |d`, `e`.\n\n| split" in text
    content["data"]["columns"] = [f"c{n}" for n in range(20_000)]
    text = render_card(content, sealed.read_json("metrics.json"))
    assert "`c99` and 19,900 more.\n" in text


def test_no_heading_sticks_to_what_stands_above(sealed: Bundle) -> None:
    content = asdict(sealed.manifest)
    metrics = sealed.read_json("metrics.json") | {"warnings": ["it collapsed", "too short"]}
    for shape in ([3], content["x_shape"]):
        text = render_card({**content, "x_shape": shape}, metrics)
        assert "\n\n> **Warning:** it collapsed.\n\n> **Warning:** too short.\n\n" in text
        lines = text.splitlines()
        headings = [n for n, line in enumerate(lines) if line.startswith("#") and n]
        assert len(headings) >= 5
        assert all(lines[n - 1] == "" for n in headings)
        # MLflow leaves no space below a table
        assert all(not lines[n - 2].startswith("|") for n in headings)


def test_no_sentence_is_broken_into_lines(sealed: Bundle, card: str) -> None:
    """MLflow shows each break."""
    prose = re.sub(r"```.*?```", "", card, flags=re.DOTALL)
    for line, following in pairwise(prose.splitlines()):
        assert not line or not following or line.startswith(("|", ">")), line


def test_a_registered_version_is_called_by_its_own_name(card: str) -> None:
    text = address_card(card, "my model", "7")
    assert "NAME" not in text
    assert "VERSION" not in text
    assert "This version is `models:/my model/7`." in text
    assert "vae sample --model 'models:/my model/7' --count 64" in text
    assert "vae serve --model 'models:/my model/7'\n" in text
    assert 'Engine(open_source("models:/my model/7").bundle)' in text
    assert 'load_model("models:/my model@champion")' in text


def test_the_files_of_a_table_with_columns_are_tables(sealed: Bundle, card: str) -> None:
    content = asdict(sealed.manifest)
    content |= {"x_shape": [2], "data": {**content["data"], "columns": ["a", "b"]}}
    text = render_card(content, sealed.read_json("metrics.json"))
    assert "--out samples.csv\nvae reconstruct rows.csv" in text
    assert "--out samples.npy\nvae reconstruct rows.npy" in card


def test_pictures_are_those_of_the_model(sealed: Bundle, card: str, trained: Trained) -> None:
    assert re.findall(r"!\[.*?\]\((.*?)\)", card) == ["samples.png", "reconstructions.png"]
    x = trained[1].test.x[:20]
    x_loc = Engine(sealed).reconstruct(x)
    lines = (x[:10], x_loc[:10], x[10:], x_loc[10:])
    with Image.open(sealed.path / "reconstructions.png") as image:
        got = np.asarray(image).astype(int)
    assert (
        np.abs(got - tile(np.concatenate(lines), 10)).max() <= 1
    )  # onnx and torch may round apart


def test_the_python_in_it_runs(sealed: Bundle, card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sealed.path.parent)
    assert sealed.path.name == "bundle"
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "Engine" in block
    )
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["x_loc"].shape == (1, 6, 5)
    assert names["scores"]["elbo"].shape == (1,)


def test_the_commands_in_it_run(
    sealed: Bundle, card: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bundle").symlink_to(sealed.path)
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", trained[1].test.x)
    commands = re.findall(r"^vae (?!serve)(.*)$", card, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        result = CliRunner().invoke(cli, command.split())
        assert result.exit_code == 0, result.output
    made = {"samples.npy", "reconstructions.npy", "scores"}
    assert made | {"bundle", "rows.npy"} == {path.name for path in tmp_path.iterdir()}


def test_parity_shows_the_worst_of_each_output_and_what_failed(sealed: Bundle) -> None:
    report = ParityReport.from_json(sealed.read_json("parity.json"))
    content, metrics = asdict(sealed.manifest), sealed.read_json("metrics.json")
    worst = replace(report.comparisons[0], max_error=np.nan)
    broken = replace(report, comparisons=(worst, *report.comparisons[1:]))
    text = render_card(content, metrics, describe_report(broken))
    assert "**Failed** on cpu" in text
    count = len(report.comparisons)
    assert f"of {count:,} comparisons with torch, {count - 1:,} are within" in text
    rows = rows_of(text, "Parity of ONNX and torch")
    assert rows["encode.z_loc"] == ["no number", f"{worst.max_tolerance:.1e}", "far more"]
    assert len(rows) == 1 + 15
    assert "run `vae check`" in render_card(content, metrics)


def test_a_table_has_no_pictures(sealed: Bundle, tmp_path: Path) -> None:
    content = asdict(sealed.manifest) | {"x_shape": (4,), "x_dtype": "float32"}
    text = render_card(content, sealed.read_json("metrics.json"))
    assert "![" not in text
    assert "np.zeros((1, 4), np.float32)" in text
