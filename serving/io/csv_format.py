"""Find out how a CSV file is written: compression, encoding, delimiter, decimal sign and names.

In: the location of a file. Out: its `CsvFormat`. Empty lines, comments (`# made by …`) and Excel's
`sep=;` may stand above the names. Raises `DataRefused` if the file is no text or its first line
cannot be the names of the columns, `UsageRefused` for a delimiter of several characters.
"""

import csv
import io
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from serving.errors import DataRefused, UsageRefused
from serving.io.filesystems import Location
from serving.io.unread_formats import explain_no_text

_SUFFIXES = (".csv", ".tsv", ".tab")
_CODECS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd"}
_PACKED = (".gz", ".bz2", ".zst")
_ENCODINGS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_DELIMITERS = (",", ";", "\t", "|")
_WORDS = {"\t": "tab"}
_SAMPLE_BYTES = 1 << 20
_SAMPLE_LINES = 20
_BLOCK_ROWS, _BLOCK_BYTES = 128, 64 << 20
_SEPARATOR = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)
_COMMENT = "#"
_THOUSANDS = re.compile(r"\s*[-+]?[1-9]\d{0,2},\d{3}\s*")
"""What may be a number of thousands, or one with a decimal comma."""
_COMMA_NUMBER = re.compile(r"\s*[-+]?\d+,\d+([eE][-+]?\d+)?\s*")
_POINT_NUMBER = re.compile(r"\s*[-+]?\d+\.\d+([eE][-+]?\d+)?\s*")
UNNAMED = "Unnamed: "
"""What pandas calls a column without a name; its position follows."""


@dataclass(frozen=True, slots=True)
class CsvFormat:
    """How a file is written, and the names of its columns."""

    names: tuple[str, ...]
    delimiter: str = ","
    decimal: str = "."
    encoding: str = "utf-8"
    codec: str | None = None
    header_lines: int = 1
    block_bytes: int = 1 << 20
    """Bytes that are read at once; each block costs time by column, so wide files take more."""
    hint: str = ""
    """What may be wrong with how the file is read."""

    def describe(self) -> str:
        """Return what is not as in most CSV files, for a message; empty if nothing is."""
        said = []
        if self.delimiter != ",":
            said.append(f"fields are separated by {_WORDS.get(self.delimiter, self.delimiter)}")
        if self.decimal != ".":
            said.append(f"{self.decimal} is the decimal sign")
        if not self.encoding.startswith("utf-8"):
            said.append(f"read as {self.encoding}")
        if self.hint:
            said.append(self.hint)
        numbers = [name for name in self.names if is_number(name)]
        if numbers and not _count_up(self.names):
            said.append(f"its first line is taken for names, {', '.join(self.names[:4])}, …")
        return ", ".join(said)


def is_csv_name(name: str) -> bool:
    """Whether a file of this name is read as CSV."""
    plain = name.lower()
    for suffix in _PACKED:
        plain = plain.removesuffix(suffix)
    return plain.endswith(_SUFFIXES)


def find_format(location: Location, delimiter: str = "") -> CsvFormat:
    """Find the format of a file from its first megabyte; a `delimiter` that is given is taken.

    Raises:
        DataRefused: the first line names no columns, or the file cannot be decoded.
        UsageRefused: `delimiter` is not one character.
    """
    delimiter = "\t" if delimiter in ("tab", "\\t") else delimiter
    if len(delimiter) > 1 or delimiter == '"':
        raise UsageRefused(f"--delimiter must be one character or 'tab', got {delimiter!r}")
    with location.open() as file:
        head = bytes(file.read(4))
    codec = next((kind for magic, kind in _CODECS.items() if head.startswith(magic)), None)
    raw, whole = _read_start(location, codec)
    encoding = next((name for magic, name in _ENCODINGS.items() if raw.startswith(magic)), "")
    encoding = encoding or ("utf-8" if _is_utf8(raw) else "latin-1")
    text = raw.decode(encoding, errors="ignore")
    if fault := explain_no_text(str(location), raw, text):
        raise DataRefused(fault)
    start = _split_start(text)
    delimiter = delimiter or start.delimiter or _find_delimiter(start.rest, whole)
    header, lines, rows = _find_header(location, start, delimiter, whole)
    _check_header(location, header)
    names = tuple(name or f"{UNNAMED}{index}" for index, name in enumerate(header))
    decimal = "," if delimiter != "," and _has_decimal_comma(rows) else "."
    block = min(
        _BLOCK_BYTES, max(_SAMPLE_BYTES, _BLOCK_ROWS * len(raw) // max(1, raw.count(b"\n")))
    )
    hint = _find_hint(names, decimal, rows)
    return CsvFormat(names, delimiter, decimal, encoding, codec, lines, block, hint)


def open_text(location: Location, codec: str | None) -> pa.NativeFile:
    """Open a file for reading, unpacked."""
    file = location.open()
    return file if codec is None else pa.CompressedInputStream(file, codec)


def _read_start(location: Location, codec: str | None) -> tuple[bytes, bool]:
    """Return the start of the file, and whether that is all of it."""
    with open_text(location, codec) as stream:
        raw = stream.read(_SAMPLE_BYTES)
        return bytes(raw), not stream.read(1)


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError as err:
        return err.start >= len(raw) - 3  # a character that the sample cuts off
    return True


@dataclass(frozen=True, slots=True)
class _Start:
    """The start of a file: what stands above the first line of fields, and the text from there."""

    rest: str
    lines: int
    """Number of lines above `rest`."""
    comment: str = ""
    """The last line of comment, without its mark."""
    comment_line: int = 0
    delimiter: str = ""


def _split_start(text: str) -> _Start:
    place, lines, comment, comment_line, delimiter = 0, 0, "", 0, ""
    for line in io.StringIO(text, newline=""):
        if found := _SEPARATOR.fullmatch(line) if not lines else None:
            delimiter = found[1]
        elif line.startswith(_COMMENT):
            comment, comment_line = line.lstrip(_COMMENT).strip(" \r\n"), lines + 1
        elif line.strip():
            break
        place, lines = place + len(line), lines + 1
    return _Start(text[place:], lines, comment, comment_line, delimiter)


def _find_header(
    location: Location, start: _Start, delimiter: str, whole: bool
) -> tuple[list[str], int, list[list[str]]]:
    """Return the names, the number of lines up to them, and the first rows.

    A comment with a name for each field names the columns, as numpy.savetxt writes it, if a line of
    values follows it. If rows have a field more than there are names, the first one has none, as R
    writes row names, or the last one, which is always empty.
    """
    rows, first_lines = _parse(start.rest, delimiter, whole)
    comments, _ = _parse(start.comment, delimiter, whole=True)
    if not rows:
        raise DataRefused(f"cannot read {location}: it has no line of names")
    has_values = any(is_number(cell.replace(",", ".")) for cell in rows[0])
    if has_values and comments and len(comments[0]) == len(rows[0]) > 1:
        return _strip(comments[0]), start.comment_line, rows
    header, rows = _strip(rows[0]), rows[1:]
    if len(header) > 1 and rows and all(len(row) == len(header) + 1 for row in rows):
        header = [*header, ""] if not any(row[-1].strip() for row in rows) else ["", *header]
    return header, start.lines + first_lines, rows


def _strip(names: Sequence[str]) -> list[str]:
    return [name.strip() for name in names]


def _find_hint(names: Sequence[str], decimal: str, rows: Sequence[Sequence[str]]) -> str:
    cells = [cell for row in rows for cell in row]
    if decimal == ",":
        numbers = [cell for cell in cells if _COMMA_NUMBER.fullmatch(cell)]
        if all(map(_THOUSANDS.fullmatch, numbers)):
            first = numbers[0].strip()
            return f"so that {first} is {first.replace(',', '.')}, and not a number of thousands"
    elif len(names) == 1 and cells and not any(map(is_number, cells)):
        return "no delimiter was found in it; --delimiter names one"
    return ""


def _find_delimiter(text: str, whole: bool) -> str:
    """Return the delimiter by which all lines have the same number of fields, the largest one.

    The line of names may have one field less.
    """
    best, most = ",", 1
    for delimiter in _DELIMITERS:
        header, *rows = [len(row) for row in _parse(text, delimiter, whole)[0]] or [0]
        widths = {*rows} or {header}
        width = widths.pop()
        if not widths and width > most and (header == width or 1 < header == width - 1):
            best, most = delimiter, width
    return best


def _parse(text: str, delimiter: str, whole: bool) -> tuple[list[list[str]], int]:
    """Return the fields of the first lines, and how many lines of text the first of them takes.

    The last line of a sample may be cut off. Empty lines and comments are left out.
    """
    if not whole:
        text = text[: text.rfind("\n") + 1] or text
    try:
        csv.field_size_limit(_SAMPLE_BYTES)
        lines = csv.reader(
            io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True
        )
        first = next(lines, [])
        taken = lines.line_num
        rows = (row for row in itertools.chain([first], lines) if not is_no_row(row))
        return list(itertools.islice(rows, _SAMPLE_LINES)), taken
    except csv.Error:
        return [], 0


def is_no_row(fields: Sequence[str]) -> bool:
    """Whether a line is empty or a comment."""
    alone = len(fields) == 1 and (not fields[0].strip() or fields[0].startswith(_COMMENT))
    return not fields or alone


def _check_header(location: Location, header: Sequence[str]) -> None:
    """Refuse a first line that holds values: the first row would be lost."""
    numbers = [name for name in header if is_number(name)]
    fractions = [name for name in numbers if not name.lstrip("-+").isdigit()]
    named = [name for name in header if name]
    if fractions or (numbers and len(numbers) == len(named) and not _count_up(named)):
        shown = ", ".join(header[:8])
        raise DataRefused(
            f"the first line of {location} must name the columns, got {shown[:80]}: put a line of "
            "names above it"
        )
    if twice := _repeated(named):
        raise DataRefused(f"{location} has columns of the same name: {', '.join(twice[:8])}")


def _repeated(names: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    return [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]


def _count_up(names: Sequence[str]) -> bool:
    """Whether the numbers among the names are 0, 1, 2, …, as pandas numbers columns."""
    numbers = [name for name in names if is_number(name)]
    return len(numbers) > 2 and numbers == [str(number) for number in range(len(numbers))]


def _has_decimal_comma(rows: Sequence[Sequence[str]]) -> bool:
    def cells() -> Iterator[str]:
        return itertools.chain.from_iterable(rows)

    return any(map(_COMMA_NUMBER.fullmatch, cells())) and not any(
        map(_POINT_NUMBER.fullmatch, cells())
    )


def is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
