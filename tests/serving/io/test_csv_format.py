"""How a CSV file is written is found, and its values are those that pandas wrote."""

import bz2
import gzip
from pathlib import Path

import numpy as np
import pytest

from serving.errors import DataRefused, UsageRefused
from serving.io.csv_format import UNNAMED, find_format, is_csv_name
from serving.io.filesystems import locate
from serving.io.rows import Rows

VALUES = np.random.default_rng(0).normal(size=(40, 3)).round(4)
NAMES = ["a", "b", "c"]


def csv(
    separator: str = ",", decimal: str = ".", end: str = "\n", names: list[str] | None = None
) -> str:
    lines = [NAMES if names is None else names, *(map(str, row) for row in VALUES.tolist())]
    joined = [separator.join(line) for line in lines]
    plain = [joined[0], *(line.replace(".", decimal) for line in joined[1:])]
    return end.join(plain) + end


FILES: dict[str, tuple[str, bytes, str]] = {
    "commas": ("x.csv", csv().encode(), ""),
    "semicolons": ("x.csv", csv(";").encode(), "fields are separated by ;"),
    "decimal commas": (
        "x.csv",
        csv(";", ",").encode(),
        "fields are separated by ;, , is the decimal sign",
    ),
    "tabs": ("x.tsv", csv("\t").encode(), "fields are separated by tab"),
    "bars": ("x.csv", csv("|").encode(), "fields are separated by |"),
    "upper case": ("X.CSV", csv().encode(), ""),
    "gzip": ("x.csv.gz", gzip.compress(csv().encode()), ""),
    "bzip2": ("x.csv.bz2", bz2.compress(csv().encode()), ""),
    "gzip of tabs": ("X.TSV.GZ", gzip.compress(csv("\t").encode()), "fields are separated by tab"),
    "a byte order mark": ("x.csv", b"\xef\xbb\xbf" + csv().encode(), ""),
    "Windows lines": ("x.csv", csv(end="\r\n").encode(), ""),
    "UTF-16": ("x.csv", csv().encode("utf-16"), "read as utf-16"),
    "spaces": ("x.csv", csv(" , ").encode(), ""),
    "quotes": ("x.csv", ('"' + csv('","').strip().replace("\n", '"\n"') + '"\n').encode(), ""),
    "numbered names": ("x.csv", csv(names=["0", "1", "2"]).encode(), ""),
}


@pytest.mark.parametrize(("name", "content", "said"), FILES.values(), ids=FILES.keys())
def test_the_values_are_those_that_were_written(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    rows = Rows(str(tmp_path / name), ids=None)
    (batch,) = rows.read(0, rows.total, rows.schema.names, 100)
    found = np.stack([column.to_numpy() for column in batch.columns], 1)
    np.testing.assert_array_equal(found, VALUES)
    assert rows.notes == ([f"{tmp_path / name}: {said}"] if said else [])
    assert rows.schema.names in (NAMES, ["0", "1", "2"])


def test_quoted_fields_may_hold_delimiters_and_lines(tmp_path: Path) -> None:
    text = 'a,"b\n;;",text\n"1","2","x;y;z"\n"3","4","p,""q"""\n'
    (tmp_path / "x.csv").write_text(text)
    rows = Rows(str(tmp_path / "x.csv"), ["text"])
    (batch,) = rows.read(0, 2, rows.schema.names, 100)
    assert batch.to_pydict() == {"a": [1, 3], "b\n;;": [2, 4], "text": ["x;y;z", 'p,"q"']}


def test_latin_letters_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("größe;ort\n1,5;Köln\n2,5;Zürich\n".encode("latin-1"))
    rows = Rows(str(tmp_path / "x.csv"), ["ort"])
    (batch,) = rows.read(0, 2, rows.schema.names, 100)
    assert batch.to_pydict() == {"größe": [1.5, 2.5], "ort": ["Köln", "Zürich"]}
    assert "read as latin-1" in rows.notes[0]


def test_a_delimiter_that_is_given_is_taken(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a;b,c;d\n1;2,3;4\n")
    assert find_format(locate(str(tmp_path / "x.csv"))).names == ("a", "b,c", "d")
    assert find_format(locate(str(tmp_path / "x.csv")), ",").names == ("a;b", "c;d")
    assert Rows(str(tmp_path / "x.csv"), None, delimiter=",").schema.names == ["a;b", "c;d"]
    with pytest.raises(UsageRefused, match="--delimiter must be one character or 'tab', got ';;'"):
        find_format(locate(str(tmp_path / "x.csv")), ";;")


@pytest.mark.parametrize(
    "line",
    ["1,2,3", "5.1,3.5,setosa", "7,7,7", "-1,0,1", "1e3,x,y"],
    ids=["numbers", "a word among them", "one number", "a negative one", "an exponent"],
)
def test_a_first_line_of_values_is_no_header(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.csv").write_text(f"{line}\n{line}\n")
    with pytest.raises(DataRefused, match=r"must name the columns, got .*: put a line of names"):
        find_format(locate(str(tmp_path / "x.csv")))


def test_names_that_may_be_values_are_said(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("country,2019,2020\nDE,1,2\n")
    (note,) = Rows(str(tmp_path / "x.csv"), None).notes
    assert note.endswith("its first line is taken for names, country, 2019, 2020, …")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, True) for name in ("a.csv", "A.CSV", "a.tsv", "a.csv.gz", "b/a.TSV.BZ2")),
        *((name, False) for name in ("a.gz", "csv", "a.parquet", "a.csv.zip", "a.npy.gz")),
    ],
)
def test_csv_is_known_by_its_name(name: str, expected: bool) -> None:
    assert is_csv_name(name) is expected


def test_wide_files_are_read_in_blocks_of_many_rows(tmp_path: Path) -> None:
    """Each block costs time by column: with small ones a wide file takes quadratic time."""
    wide, narrow = tmp_path / "wide.csv", tmp_path / "narrow.csv"
    wide.write_text((",".join(f"c{n}" for n in range(5000)) + "\n") + ("1.5," * 4999 + "2\n") * 50)
    narrow.write_text("a,b\n" + "1.5,2\n" * 5000)
    blocks = [find_format(locate(str(path))).block_bytes for path in (wide, narrow)]
    assert blocks[0] > 100 * 20_000
    assert blocks[1] == 1 << 20


@pytest.mark.parametrize(
    ("text", "names", "lines"),
    [
        ("# a,b\n1,2\n", ("a", "b"), 1),
        ("# written by us, today\na,b\n1,2\n", ("a", "b"), 2),
        ("#\ta\tb\nx\t1\t2\ny\t3\t4\n", (f"{UNNAMED}0", "a", "b"), 1),
    ],
    ids=["names in a comment", "a comment above names", "a comment whose first name is empty"],
)
def test_a_comment_names_columns_if_values_follow_it(
    tmp_path: Path, text: str, names: tuple[str, ...], lines: int
) -> None:
    (tmp_path / "x.csv").write_text(text)
    layout = find_format(locate(str(tmp_path / "x.csv")))
    assert (layout.names, layout.header_lines) == (names, lines)
