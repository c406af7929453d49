"""Say what a file is that is not read here, and how to convert it.

In: its name and its first bytes. Out: one line for a person. A known suffix decides before the
bytes do.
"""

from typing import NamedTuple

from serving.io.image_files import IMAGE_KINDS

READ_FORMATS = f"Parquet, Arrow, CSV, .npy, .npz, IDX, or images ({IMAGE_KINDS})"

_PACKED = (".gz", ".bz2", ".xz", ".zst")
_HEAD = 16
"""Bytes of a start that is shown as text."""


class _Unread(NamedTuple):
    what: str
    advice: str
    suffixes: str
    magics: tuple[bytes, ...] = ()


_PAGES = (b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML")
_POINTER = b"version https://"
_TEXTS = (*_PAGES, _POINTER, b'{"', b"[{", b"[[")
"""How texts start that are no CSV, whatever their name."""

_UNREAD = (
    _Unread(
        "a MATLAB file",
        "load it by scipy.io.loadmat (h5py from version 7.3 on) and save the array by numpy.save",
        ".mat",
        (b"MATLAB ",),
    ),
    _Unread(
        "an HDF5 file",
        "open it by h5py and save the array by numpy.save; a table by pandas.read_hdf and "
        "to_parquet",
        ".h5 .hdf5 .hdf .he5 .h5ad .keras",
        (b"\x89HDF",),
    ),
    _Unread(
        "a PyTorch file",
        "load it by torch.load(…, weights_only=True) and save numpy.save(…, tensor.numpy())",
        ".pt .pth .ckpt",
    ),
    _Unread(
        "a pickle, which can run code when it is loaded",
        "if you trust it, load it yourself and save an array by numpy.save, a table by to_parquet",
        ".pkl .pickle .joblib .dill",
        (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
    ),
    _Unread(
        "JSON",
        "convert it by pandas.read_json(…).to_parquet(…)",
        ".json .geojson",
        (b"{", b"["),
    ),
    _Unread(
        "JSON with a row in each line",
        "convert it by pandas.read_json(…, lines=True).to_parquet(…)",
        ".jsonl .ndjson",
    ),
    _Unread(
        "a spreadsheet",
        "save it as CSV, or convert it by pandas.read_excel(…).to_parquet(…)",
        ".xlsx .xls .xlsm .xlsb .ods",
        (b"\xd0\xcf\x11\xe0",),
    ),
    _Unread(
        "an archive",
        "unpack it and give the folder",
        ".zip .tar .tgz .tbz2 .txz .7z .rar",
        (b"7z\xbc\xaf", b"Rar!", b"PK"),
    ),
    _Unread(
        "compressed in another way",
        "unpack it, or compress it by gzip",
        ".xz .zst .lz4 .lzma .br .snappy",
        (b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18"),
    ),
    _Unread(
        "a database",
        "convert a query by pandas.read_sql(…).to_parquet(…)",
        ".db .sqlite .sqlite3 .duckdb",
        (b"SQLite ",),
    ),
    _Unread(
        "a table of another program",
        "load it by pandas (read_stata, read_spss, read_sas, read_orc, read_feather), then "
        "to_parquet",
        ".dta .sav .sas7bdat .xpt .orc .avro .arff .rds .rdata",
        (b"FEA1", b"ORC", b"Obj\x01"),
    ),
    _Unread(
        "an array of another program",
        "load it by its own library (safetensors, tensorflow, nibabel, pydicom, astropy, xarray) "
        "and save it by numpy.save",
        ".safetensors .tfrecord .tfrecords .nii .dcm .fits .nc .mha .nrrd",
        (b"SIMPLE  =", b"CDF"),
    ),
    _Unread(
        "an image of another kind",
        "save it as PNG",
        ".avif .heic .heif .jp2 .j2k .jxl .svg .psd .ico .tga .exr .hdr .dng .cr2 .nef .arw .raw",
        (b"\0\0\0\x0cjP", b"8BPS"),
    ),
    _Unread(
        "a film or a sound",
        "save its frames as PNG images, or an array by numpy.save",
        ".mp4 .avi .mov .mkv .webm .wav .mp3 .flac .ogg",
    ),
    _Unread("a document", "save its data as CSV", ".pdf .doc .docx .html .htm .xml", (b"%PDF",)),
    _Unread(
        "a web page",
        "download the file itself; the page may say why it was not sent",
        "",
        _PAGES,
    ),
    _Unread(
        "a pointer of Git LFS and not the file itself",
        "fetch that by git lfs pull",
        "",
        (_POINTER,),
    ),
    _Unread(
        "a Parquet or Arrow file",
        "unpack it if it is compressed (Parquet compresses its columns itself), and end its name "
        "in .parquet or .arrow",
        "",
        (b"PAR1", b"ARROW1"),
    ),
    _Unread("an array of numpy", "end its name in .npy", "", (b"\x93NUMPY",)),
)


def explain_unread(name: str, head: bytes) -> str:
    """Return why the file `name`, which starts with `head`, is not read, and what to do."""
    suffixes = _last_suffixes(name)
    known = [kind for suffix in suffixes for kind in _UNREAD if suffix in kind.suffixes.split()]
    known += [kind for kind in _UNREAD if head.startswith(kind.magics)]
    if known:
        return f"{name} is not read: it is {known[0].what}; {known[0].advice}"
    start = f"it starts with 0x{head[:8].hex()}"
    if _is_named_idx(name):
        return f"{name} is not an IDX file: {start}"
    line = head[:_HEAD].split(b"\n")[0].rstrip()
    if line.isascii() and line.decode().isprintable():
        start = f"it starts with {line.decode()!r}"
        if any(mark in line for mark in (b",", b";", b"\t")):
            start += "; the name of a CSV file must end in .csv or .tsv"
    return f"{name} is none of the files that are read, {READ_FORMATS}: {start}"


def explain_no_text(name: str, content: bytes, text: str) -> str:
    """Return why a file that is named like CSV is none; empty if it may be.

    Args:
        name: of the file.
        content: its start, in bytes.
        text: what `content` says in the encoding that it seems to have.
    """
    head = content.lstrip()[:_HEAD]
    if not content:
        return f"{name} is empty"
    if head.startswith(_TEXTS) or ("\0" in text and any(map(head.startswith, _magics()))):
        return explain_unread(name, head)
    if "\0" in text:
        return (
            f"{name} is no text: it holds bytes of zero; save it as CSV in UTF-8, or in UTF-16 "
            "with a byte order mark"
        )
    return ""


def _magics() -> list[bytes]:
    return [magic for kind in _UNREAD for magic in kind.magics]


def _last_suffixes(name: str) -> list[str]:
    """Return the last suffix, and the one before it if the last tells the compression."""
    parts = [f".{part}" for part in name.rpartition("/")[2].lower().split(".")[1:]]
    return parts[-2:] if parts and parts[-1] in _PACKED else parts[-1:]


def _is_named_idx(name: str) -> bool:
    return any(word in name.rpartition("/")[2].lower() for word in ("idx", "ubyte"))
