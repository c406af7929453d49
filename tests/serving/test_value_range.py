"""The range of the data: how bright a picture is, and which bytes a model takes."""

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.batch.scorer import layout_of
from serving.bundle import MANIFEST, Bundle, manifest_digest, open_bundle
from serving.cli.options import as_picture
from serving.engine import Engine
from serving.errors import DataRefused
from serving.io.columns import ABOVE, REASONS, read_x
from serving.source import Source
from serving.value_range import find_range, guess_range, max_byte_of, picture_range, to_brightness
from tests.serving.batch.jobs import table
from tests.serving.conftest import SCHEMA_1


def with_range(bundle: Bundle, *values: float, **changes: str) -> Bundle:
    """Return the bundle as one of a model whose data has these values."""
    path = bundle.path / MANIFEST
    content = json.loads(path.read_text()) | changes
    content["data"]["range"] = values
    path.write_text(json.dumps({**content, "digest": manifest_digest(content)}))
    return open_bundle(bundle.path)


@pytest.mark.parametrize(
    ("largest", "expected"),
    [(0, 1), (1, 1), (16, 16), (127, 127), (128, 255), (254, 255), (255, 255)],
    ids=["nothing", "bits", "levels", "lower half", "upper half", "nearly all", "all"],
)
def test_bytes_that_fill_only_the_lower_half_have_a_scale_of_their_own(
    largest: int, expected: int
) -> None:
    assert max_byte_of(largest) == expected


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("uint8", (0, 255), (0, 255)),
        ("uint8", (3, 200), (0, 255)),
        ("uint8", (0, 16), (0, 16)),
        ("float32", (0, 1), (0, 1)),
        ("float32", (-1, 1), (-1, 1)),
        ("float32", (0, 16), (0, 16)),
        ("float32", (2, 2), (2, 3)),
    ],
    ids=["bytes", "most bytes", "levels", "shares", "about 0", "float levels", "constant"],
)
def test_black_and_white_are_the_ends_of_the_data(
    dtype: str, values: tuple[float, float], expected: tuple[float, float]
) -> None:
    assert picture_range(dtype, values) == expected
    ends = to_brightness(np.array(expected), expected)
    assert ends.tolist() == [0, 255]


def test_the_range_is_that_of_all_splits() -> None:
    parts = [np.array(values, np.float32) for values in ([2, 3], [], [-1, 0])]
    assert find_range(*parts) == (-1, 3)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (np.array([0, 1], np.uint8), (0, 255)),
        (np.array([0, 1], np.float32), (0, 1)),
        (np.array([0, 2], np.float32), (0, 255)),
    ],
    ids=["dark bytes", "shares", "bytes as floats"],
)
def test_a_bundle_without_a_range_is_judged_by_its_golden_rows(
    x: NDArray[Any], expected: tuple[float, float]
) -> None:
    assert guess_range(x) == expected
    bundle = open_bundle(SCHEMA_1)
    assert "range" not in bundle.manifest.data
    assert bundle.picture_range() == (0, 255)
    assert as_picture(Source(bundle), np.array([7.0])).tolist() == [7]


def test_pictures_of_a_bundle_have_the_range_in_its_manifest(bundle: Bundle) -> None:
    source = Source(with_range(bundle, 0, 16))
    assert as_picture(source, np.array([0.0, 8, 16])).tolist() == [0, 127.5, 255]


def test_a_byte_above_the_data_s_is_refused_and_set_aside(bundle: Bundle) -> None:
    """Its likelihood would be meaningless: a bernoulli has none for more than 1."""
    x = np.full((3, 6, 5), 16, np.uint8)
    x[1, 2, 3] = 17
    assert Engine(bundle).encode(x)["z_loc"].shape == (3, 3)
    engine = Engine(with_range(bundle, 0, 16))
    assert engine.encode(x[:1])["z_loc"].shape == (1, 3)
    with pytest.raises(DataRefused, match=r"x must be from 0 to 16, .* got 17"):
        engine.encode(x)
    batch = table(x).to_batches()[0]
    good, codes = read_x(batch, ["x"], layout_of(engine))
    assert codes.tolist() == [0, ABOVE, 0]
    assert len(good) == 2
    assert list(REASONS)[ABOVE - 1] == ABOVE  # quarantined rows name their reason by its place


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
def test_a_likelihood_of_any_number_takes_any_byte(likelihood: str, bundle: Bundle) -> None:
    assert with_range(bundle, 0, 16, likelihood=likelihood).manifest.max_byte == 255
