from pathlib import Path

import pyarrow as pa

from serving.io.csv_format import CsvFormat
from serving.io.csv_rows import open_rows, read_header
from serving.io.filesystems import Location, locate


class Recorded(Location):
    """A location that remembers the streams which it opened."""

    def __init__(self, location: Location) -> None:
        super().__init__(location.system, location.path)
        object.__setattr__(self, "streams", [])

    def open(self) -> pa.NativeFile:
        stream = super().open()
        vars(self)["streams"].append(stream)
        return stream


def test_a_file_is_not_closed_under_the_thread_that_reads_ahead(tmp_path: Path) -> None:
    """The number of a closed file goes to the next one, which that thread would then read."""
    (tmp_path / "x.csv").write_text("a,b\n" + "1,2\n" * 1_000_000)
    recorded = Recorded(locate(str(tmp_path / "x.csv")))
    layout = CsvFormat(("a", "b"))
    schema = read_header(recorded, layout)
    with open_rows(layout, schema, recorded, schema.names) as batches:
        next(batches)
    assert [stream.closed for stream in vars(recorded)["streams"]] == [False, False]
