"""Keys that tests make, and what someone who can write to a store may do to a signed version.

Each fault seals the folder again, so that its digests are right: only the signature can tell.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipeline.export.manifest import seal
from serving.bundle import MANIFEST, SIGNATURE, Bundle, open_bundle
from serving.signatures import SigningKey, sign_bundle


@dataclass(frozen=True, slots=True)
class KeyPair:
    """The PEM files of a key."""

    private: Path
    public: Path


def make_key(
    folder: Path,
    name: str = "key",
    curve: ec.EllipticCurve | None = None,
    password: str | None = None,
) -> KeyPair:
    key = ec.generate_private_key(curve or ec.SECP256R1())
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        protection = serialization.BestAvailableEncryption(password.encode())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return KeyPair(private, public)


def model_signing(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run upstream's own command."""
    command = [sys.executable, "-m", "model_signing", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def reseal(folder: Path) -> str:
    """Seal a folder as it lies, with the signature that it has; return its digest."""
    signature = (folder / SIGNATURE).read_bytes()
    digest = seal(folder, json.loads((folder / MANIFEST).read_bytes())).digest
    (folder / SIGNATURE).write_bytes(signature)
    return digest


def change_file(folder: Path, other: KeyPair) -> None:
    (folder / "MODEL_CARD.md").write_text("another model")
    reseal(folder)


def add_file(folder: Path, other: KeyPair) -> None:
    (folder / "more.txt").write_text("more")
    reseal(folder)


def remove_file(folder: Path, other: KeyPair) -> None:
    (folder / "samples.png").unlink()
    reseal(folder)


def sign_with_another_key(folder: Path, other: KeyPair) -> None:
    sign_bundle(open_bundle(folder), SigningKey(other.private))


def remove_signature(folder: Path, other: KeyPair) -> None:
    (folder / SIGNATURE).unlink()


FAULTS: Mapping[str, tuple[Callable[[Path, KeyPair], None], str]] = {
    "changed": (change_file, r"MODEL_CARD\.md was changed|Hash mismatch for \W*MODEL_CARD\.md"),
    "added": (add_file, r"more\.txt was added|Extra files .*more\.txt"),
    "missing": (remove_file, r"samples\.png is missing|Missing files .*samples\.png"),
    "another key": (sign_with_another_key, "signed with the key|Key mismatch"),
    "no signature": (remove_signature, "has no signature"),
}
"""What is done to the folder of a version, given another key, and how it is refused."""


def signed(bundle: Bundle, key: KeyPair) -> Bundle:
    sign_bundle(bundle, SigningKey(key.private))
    return open_bundle(bundle.path)
