"""The words for files that are not read: the real cause, and what to do."""

import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

from serving.io.unread_formats import explain_unread


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.png", b"")
    return stream.getvalue()


def tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    return stream.getvalue()


CASES: dict[str, tuple[str, bytes, str]] = {
    "MATLAB": ("a/x.mat", b"MATLAB 5.0 MAT-file", "a MATLAB file; load"),
    "HDF5": ("x.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file; open it by h5py"),
    "HDF5 by its bytes": ("x", b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "PyTorch": ("x.PT", zipped(), "a PyTorch file; load it by torch.load("),
    "pickle": ("x.pkl", pickle.dumps([1]), "a pickle, which can run code when it is loaded"),
    "pickle by its bytes": ("x", pickle.dumps(np.zeros(2)), "a pickle"),
    "JSON": ("x.json", json.dumps([1]).encode(), "JSON; convert it by"),
    "JSON, gzipped": ("x.json.gz", b"\x1f\x8b\x08", "JSON"),
    "spreadsheet": ("x.xlsx", zipped(), "a spreadsheet; save it as CSV"),
    "zip": ("x.zip", zipped(), "an archive; unpack it"),
    "zip by its bytes": ("x", zipped(), "an archive"),
    "tar": ("x.tar", tarred(), "an archive"),
    "tar.gz": ("x.tar.gz", b"\x1f\x8b\x08", "an archive"),
    "xz": ("x.npy.xz", b"\xfd7zXZ\0", "compressed in another way"),
    "database": ("x", b"SQLite format 3\0", "a database"),
    "volume": ("x.nii.gz", b"\x1f\x8b\x08", "an array of another program"),
    "photo of a phone": ("x.HEIC", b"\0\0\0\x18ftypheic", "an image of another kind"),
    "film": ("x.mp4", b"\0\0\0\x18ftypmp42", "a film or a sound"),
}


@pytest.mark.parametrize(("name", "content", "words"), CASES.values(), ids=CASES)
def test_a_known_file_is_named_with_what_to_do(name: str, content: bytes, words: str) -> None:
    message = explain_unread(name, content[:16])
    assert message.startswith(f"{name} is not read: it is {words}")
    assert "IDX" not in message
    assert len(message) < 250


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a/train-images-idx3-ubyte", b"\x01\x02", "is not an IDX file: it starts with 0x0102"),
        ("idx/x.bin", b"\x01\x02", "it starts with 0x0102"),
        (
            "x.txt",
            b"a;b;c\r\n1;2;3",
            "it starts with 'a;b;c'; the name of a CSV file must end in .csv or .tsv",
        ),
        ("x", b"", "it starts with ''"),
    ],
    ids=["named IDX", "in a folder named so", "text", "nothing"],
)
def test_an_unknown_file_is_shown_by_its_start(name: str, content: bytes, words: str) -> None:
    message = explain_unread(name, content)
    assert message.startswith(f"{name} is ")
    assert message.endswith(words)
    assert ("IDX file" in message) == ("ubyte" in name)
    assert len(message) < 250
