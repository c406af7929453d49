"""Signatures of bundles, in the format of the library model-signing (OpenSSF model signing).

A signature is the file `model.sig` of a bundle, the one file that the manifest does not list. It
holds the SHA-256 of every other file, signed with a private key on the curve P-256, P-384 or P-521;
the command `model_signing` makes and verifies the same file. Keys are PEM files. Raises
`VerificationFailed` if the holder of the key did not sign just these files, and `UsageRefused` if a
key cannot be used or the library is missing.
"""

import base64
import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from serving.bundle import MANIFEST, SIGNATURE, Bundle, manifest_digest
from serving.errors import UsageRefused, VerificationFailed

if TYPE_CHECKING:
    from model_signing.signing import Config as Signer

_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_PARTS = {"mediaType", "verificationMaterial", "dsseEnvelope"}


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, with the password if the file is encrypted."""

    path: Path
    password: str | None = None


@dataclass(frozen=True, slots=True)
class Signature:
    """What a signature says, which is worth nothing until it is verified."""

    signer: str
    """Fingerprint of the signer's key; see `fingerprint`."""
    files: Mapping[str, str]
    """SHA-256 of files, by name."""

    def fits(self, bundle: Bundle) -> bool:
        """Whether it is of the manifest that a bundle was opened with, and so of all its files."""
        content = (bundle.path / MANIFEST).read_bytes()
        is_signed = self.files.get(MANIFEST) == hashlib.sha256(content).hexdigest()
        return is_signed and manifest_digest(json.loads(content)) == bundle.manifest.digest

    def differences(self, bundle: Bundle) -> list[str]:
        """Say which files of a bundle are not those that were signed."""
        names = {MANIFEST, SIGNATURE}
        signed = {name: digest for name, digest in self.files.items() if name not in names}
        found = {name: entry["sha256"] for name, entry in bundle.manifest.files.items()}
        both = sorted(signed.keys() & found.keys())
        listed = [f"{name} was changed" for name in both if signed[name] != found[name]]
        listed += [f"{name} was added" for name in sorted(found.keys() - signed.keys())]
        listed += [f"{name} is missing" for name in sorted(signed.keys() - found.keys())]
        return listed or ([] if self.fits(bundle) else [f"{MANIFEST} was changed"])


def sign_bundle(bundle: Bundle, key: SigningKey) -> None:
    """Write the signature of a bundle into its folder; an earlier one is replaced."""
    signer = _open_signer(key)
    from model_signing import hashing

    hashed = hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
    signer.set_hashing_config(hashed).sign(bundle.path, bundle.path / SIGNATURE)


def check_signing_key(key: SigningKey) -> None:
    """Raise `UsageRefused` if a key cannot sign, or the library is missing."""
    _open_signer(key)


def _open_signer(key: SigningKey) -> "Signer":
    _require_library()
    from model_signing import signing

    password = None if key.password is None else key.password.encode()
    try:
        # the library hands the password on to cryptography, which takes bytes, not text
        return signing.Config().use_elliptic_key_signer(
            private_key=key.path,
            password=password,  # type: ignore[arg-type]
        )
    except OSError as err:
        raise UsageRefused(f"cannot read {key.path}: {err.strerror}") from err
    except Exception as err:
        # an RSA key is an AttributeError of the library, a wrong password a ValueError or TypeError
        raise UsageRefused(
            f"cannot sign with {key.path}: it must be a PEM private key on the curve P-256, P-384 "
            f"or P-521, and VAE_SIGN_PASSWORD its password if it is encrypted: {_first_line(err)}"
        ) from err


def check_signature(bundle: Bundle, key: Path) -> None:
    """Raise `VerificationFailed` unless the holder of a public key signed an open bundle.

    What holds for the bundle's digest afterwards holds for it everywhere: the digest seals every
    file, so that a process that gets the digest need not have the key.
    """
    expected = fingerprint(key)
    content = _read(bundle.path)
    if content is None:
        raise VerificationFailed(
            f"{bundle.path} has no signature {SIGNATURE}, and one by the key {key} is required: "
            "sign it with vae register BUNDLE --sign KEY"
        )
    signature = _parse(bundle.path, content)
    if signature.signer != expected:
        raise VerificationFailed(
            f"{bundle.path} was signed with the key {signature.signer[:12]}, but {key} is "
            f"{expected[:12]}: give the public key of the signer, or sign it anew with "
            "vae register BUNDLE --sign KEY"
        )
    _verify(bundle, signature, content, key)
    if not signature.fits(bundle):
        raise VerificationFailed(
            f"the signature of {bundle.path} is not of its {MANIFEST}: sign all files of the "
            "bundle, with vae register BUNDLE --sign KEY"
        )


def find_signer(bundle: Bundle) -> str | None:
    """Return the fingerprint of the key that a bundle says to be signed with, None if unsigned.

    Raises:
        VerificationFailed: the signature is of other files. Without a key, no more can be known.
    """
    content = _read(bundle.path)
    if content is None:
        return None
    signature = _parse(bundle.path, content)
    if not signature.fits(bundle):
        raise VerificationFailed(
            f"the signature {SIGNATURE} in {bundle.path} is of other files: sign it again, or "
            f"remove {SIGNATURE}"
        )
    return signature.signer


def fingerprint(key: Path) -> str:
    """Return the SHA-256 of a public key, by which a signature names its signer.

    Raises:
        UsageRefused: the file is no public key that the format takes, or the library is missing.
    """
    _require_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    try:
        public = serialization.load_pem_public_key(key.read_bytes())
    except OSError as err:
        raise UsageRefused(f"cannot read the key {key}: {err.strerror}") from err
    except (ValueError, UnsupportedAlgorithm):
        public = None
    if not isinstance(public, EllipticCurvePublicKey) or public.curve.name not in _CURVES:
        raise UsageRefused(
            f"{key} is no PEM public key on the curve P-256, P-384 or P-521: "
            "openssl ec -in KEY -pubout -out PUBLIC_KEY writes that of a private key"
        )
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(pem).hexdigest()


def _read(folder: Path) -> bytes | None:
    try:
        return (folder / SIGNATURE).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as err:
        raise VerificationFailed(f"cannot read {folder / SIGNATURE}: {err.strerror}") from err


def _parse(folder: Path, content: bytes) -> Signature:
    """Read a signature by a key; those by certificates or identities are refused."""
    try:
        parts = json.loads(content)
        if parts.keys() != _PARTS:
            raise ValueError(f"it must have {', '.join(sorted(_PARTS))}")
        signer = parts["verificationMaterial"]["publicKey"]["hint"]
        statement = json.loads(base64.b64decode(parts["dsseEnvelope"]["payload"], validate=True))
        resources = statement["predicate"]["resources"]
        files = {row["name"]: row["digest"] for row in resources if row["algorithm"] == "sha256"}
        if re.fullmatch("[0-9a-f]{64}", signer) is None:
            raise ValueError(f"it must name the SHA-256 of a key, got {signer!r}")
        return Signature(signer, files)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as err:
        raise VerificationFailed(
            f"{folder / SIGNATURE} is no signature by a key, as model_signing sign key makes: sign "
            f"the bundle with vae register BUNDLE --sign KEY ({type(err).__name__}: "
            f"{_first_line(err)})"
        ) from err


def _verify(bundle: Bundle, signature: Signature, content: bytes, key: Path) -> None:
    """Verify the signature in `content` with the library: by the key, and of all files."""
    from model_signing import hashing, verifying

    hashed = hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
    hashed.set_allow_symlinks(True)  # what they lead to is hashed
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
    with tempfile.TemporaryDirectory() as temporary:  # of the bytes that were read, and no others
        copy = Path(temporary, SIGNATURE)
        copy.write_bytes(content)
        try:
            verifier.set_hashing_config(hashed).verify(bundle.path.resolve(), copy)
        except Exception as err:
            # a forged signature may break the library anywhere
            reasons = ", ".join(signature.differences(bundle)) or _first_line(err)
            raise VerificationFailed(
                f"the signature of {bundle.path} does not hold: {reasons}; use the files that were "
                "signed, or sign these with vae register BUNDLE --sign KEY"
            ) from err


def _first_line(err: Exception) -> str:
    lines = str(err).strip().splitlines()
    return lines[0] if lines else type(err).__name__


def _require_library() -> None:
    try:
        import model_signing  # noqa: F401
    except ImportError as err:
        raise UsageRefused(
            "signatures need model-signing: pip install 'vae-pipeline[sign]'"
        ) from err
