"""Load the data that a command needs: that of a config, or the rows to evaluate a model on."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from pipeline.cli.memory_options import allowed_resources
from pipeline.config import Config
from serving.cli.paths import Origin
from serving.console import say, warn
from serving.errors import DataRefused, UsageRefused, VaeError
from serving.schema import Schema

if TYPE_CHECKING:
    from pipeline.data.dataset import Dataset, Split
    from pipeline.data.plan import Resources
    from pipeline.model.checkpoint import Checkpoint


class RowsOfModel(Protocol):
    """What rows a model takes, and which it was tested on: a checkpoint or a manifest."""

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of a row."""

    @property
    def x_dtype(self) -> str:
        """The dtype of a row."""

    @property
    def data(self) -> Mapping[str, Any]:
        """What `Dataset.describe` returns."""


data_option = click.option(
    "--data",
    "source",
    type=Origin(),
    help="Where the model's data is now  [default: where it was in training]",
)


def load_data(
    config: Config,
    model: RowsOfModel | None = None,
    source: str | None = None,
    streamed: bool | None = None,
) -> "Dataset":
    """Load the data of a config, from `source` if it has moved.

    They are in memory if they fit, unless it is settled whether they are `streamed`: the data of a
    model are read as in its training.

    Raises:
        DataRefused: the test split is not the one that `model` was tested on.
        UsageRefused: the data is not there.
    """
    data = replace(config.data, data=source) if source else config.data
    say(f"reading {data.data}")
    settings = {item.name: getattr(data, item.name) for item in fields(data)}
    settings |= _rows_of(model) if model else {"likelihood": config.model.likelihood}
    resources = allowed_resources(streamed if model is None else "streamed" in model.data)
    try:
        dataset = _load(settings.pop("data"), resources, settings)
    except UsageRefused as err:
        if model is None or source or Path(data.data).expanduser().exists():
            raise
        raise UsageRefused(
            f"the data that the model learned from is not at {data.data!r}: --data names where it "
            "is now"
        ) from err
    known = model.data["splits"]["test"]["sha256"] if model else dataset.test.sha256
    if known != dataset.test.sha256:
        raise DataRefused(
            f"{data.data} is not the data that the model was trained with: its test split is "
            f"{dataset.test.sha256[:12]}, the model's {known[:12]}"
        )
    return dataset


def _load(source: str, resources: "Resources", settings: dict[str, Any]) -> "Dataset":
    """Load data into memory, or stream them."""
    from pipeline.data.dataset import load_dataset
    from pipeline.data.splits import plan_in_memory
    from pipeline.data.streaming.measuring import measure_source

    needed = measure_source(source, settings["columns"], settings["array"])
    streamed = needed > resources.memory if resources.streamed is None else resources.streamed
    if streamed:
        from pipeline.data.streaming.loading import load_streamed

        return load_streamed(source, resources, needed, **settings)
    return plan_in_memory(load_dataset(source, **settings), resources, needed)


def _rows_of(model: RowsOfModel) -> dict[str, Any]:
    """Return the settings of `Selection` for rows of a model, whose schema is settled."""
    content = model.data.get("schema")
    schema = Schema.from_json(content) if content else None
    return {
        "x_shape": model.x_shape,
        "x_dtype": model.x_dtype,
        "table_schema": schema,
        "schema": "",
    }


def _own_rows(checkpoint: "Checkpoint", source: str) -> "Split | None":
    """Return the held-out rows of a streamed model if `source` is its data, else None.

    All rows are read for it, unless their kind, shape or number tells that they are others.

    Raises:
        VaeError: the rows can neither be streamed nor held in memory.
    """
    from pipeline.data.streaming.measuring import measure_source
    from pipeline.data.streaming.recognition import may_hold

    data, known = checkpoint.config.data, checkpoint.data
    try:
        if not may_hold(
            source,
            sum(split["rows"] for split in known["splits"].values()),
            checkpoint.x_shape,
            has_columns="columns" in known or "schema" in known,
            some_dropped=data.drop_missing,
            array=data.array,
        ):
            return None
        return load_data(checkpoint.config, checkpoint, source).test
    except (DataRefused, UsageRefused):
        return None  # they are rows of other data
    except VaeError as err:
        needed = measure_source(source, data.columns, data.array)
        if needed > allowed_resources(streamed=False).memory:
            raise
        warn(f"{source}: cannot tell whether the model learned from some of these rows: {err}")
        return None


def rows_to_evaluate(
    checkpoint: "Checkpoint", source: str | None, array: str = "", delimiter: str = ""
) -> "Split":
    """Return the held-out rows of the model's own data or, if given, those of `source`.

    `array` is the array of an .npz file to read, empty for that of the training, if it is there;
    `delimiter` that of a CSV file, empty to find it.

    Raises:
        DataRefused: the rows of `source` do not fit the model.
        UsageRefused: there is no `array`.
    """
    from pipeline.data.dataset import load_rows
    from pipeline.data.readers import has_array
    from serving.value_range import MAX_BYTE, max_byte_of

    data = checkpoint.config.data
    if source is None:
        return load_data(checkpoint.config, checkpoint).test
    if "streamed" in checkpoint.data and not (array or delimiter):
        split = _own_rows(checkpoint, source)
        if split is not None:
            say(f"{source}: the model's own held-out rows")
            return split
    known = checkpoint.data["splits"]["test"]["sha256"]
    if not array and data.array and has_array(source, data.array):
        array = data.array
    names = ("test_fraction", "label", "binarize", "drop_missing")
    columns = data.columns or checkpoint.data.get("columns", ())  # in training's order
    settings = {name: getattr(data, name) for name in names} | _rows_of(checkpoint)
    # the data of a model from before the range was kept has the whole range of bytes
    settings["max_byte"] = max_byte_of(checkpoint.data.get("range", (0, MAX_BYTE))[1])
    split = load_rows(source, known, columns=columns, array=array, delimiter=delimiter, **settings)
    wanted = f"{checkpoint.x_dtype} {checkpoint.model.x_shape}"
    if (found := f"{split.x.dtype} {split.x.shape[1:]}") != wanted:
        raise DataRefused(f"{source} has rows of {found}, but the model takes {wanted}")
    checkpoint.model.px.check(split.x)
    same = "the model's own held-out rows" if split.sha256 == known else "rows of other data"
    say(f"{source}: {same}")
    return split
