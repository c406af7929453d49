"""A bundle is signed and verified as upstream's own command does, and every fault is refused."""

import base64
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from pipeline.export.manifest import replace_files
from serving.bundle import MANIFEST, SIGNATURE, Bundle, open_bundle
from serving.errors import UsageRefused, VerificationFailed
from serving.signatures import (
    SigningKey,
    check_signature,
    check_signing_key,
    find_signer,
    fingerprint,
    sign_bundle,
)
from serving.source import open_source
from tests.signing import FAULTS, KeyPair, make_key, model_signing, signed


@pytest.fixture
def key(tmp_path: Path) -> KeyPair:
    return make_key(tmp_path)


@pytest.mark.parametrize(
    "curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name
)
def test_a_signed_bundle_is_accepted_and_its_digest_stays(
    bundle: Bundle, tmp_path: Path, curve: ec.EllipticCurve
) -> None:
    key = make_key(tmp_path, "other", curve)
    assert find_signer(bundle) is None
    after = signed(bundle, key)
    assert after.manifest == bundle.manifest
    check_signature(after, key.public)
    assert find_signer(after) == fingerprint(key.public)
    assert open_source(str(bundle.path), key.public).bundle == after


def test_an_encrypted_key_signs_with_its_password(bundle: Bundle, tmp_path: Path) -> None:
    key = make_key(tmp_path, "locked", password="geheim")
    for password in (None, "wrong"):
        with pytest.raises(UsageRefused, match=r"cannot sign with .*VAE_SIGN_PASSWORD"):
            check_signing_key(SigningKey(key.private, password))
    sign_bundle(bundle, SigningKey(key.private, "geheim"))
    check_signature(bundle, key.public)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_refused_although_the_digests_are_right(
    bundle: Bundle, tmp_path: Path, key: KeyPair, fault: str
) -> None:
    signed(bundle, key)
    spoil, reason = FAULTS[fault]
    spoil(bundle.path, make_key(tmp_path, "other"))
    changed = open_bundle(bundle.path)  # which notices nothing
    with pytest.raises(VerificationFailed, match=reason):
        check_signature(changed, key.public)
    with pytest.raises(VerificationFailed, match=reason):
        open_source(str(bundle.path), key.public)


def test_a_value_changed_in_the_manifest_alone_is_refused(bundle: Bundle, key: KeyPair) -> None:
    signed(bundle, key)
    signature = (bundle.path / SIGNATURE).read_bytes()
    changed = replace_files(bundle, {})
    assert changed.manifest == bundle.manifest
    (bundle.path / MANIFEST).write_bytes((bundle.path / MANIFEST).read_bytes() + b"\n")
    (bundle.path / SIGNATURE).write_bytes(signature)
    with pytest.raises(VerificationFailed, match=r"manifest\.json was changed"):
        check_signature(open_bundle(bundle.path), key.public)


def test_the_bundle_in_memory_must_be_the_signed_one(bundle: Bundle, key: KeyPair) -> None:
    """Files that were exchanged while they were read, and put back, are noticed."""
    signed(bundle, key)
    sealed = replace_files(bundle, {"MODEL_CARD.md": "exchanged"})
    (bundle.path / "MODEL_CARD.md").write_text("back")
    signed(replace_files(bundle, {"MODEL_CARD.md": "back"}), key)
    with pytest.raises(VerificationFailed, match=r"is not of its manifest"):
        check_signature(sealed, key.public)


def forge(change: Callable[[dict[str, object]], object]) -> Callable[[bytes], bytes]:
    """Change the JSON of a signature, without its key."""

    def apply(content: bytes) -> bytes:
        parts = json.loads(content)
        change(parts)
        return json.dumps(parts).encode()

    return apply


def another_payload(parts: dict[str, dict[str, str]]) -> None:
    statement = json.loads(base64.b64decode(parts["dsseEnvelope"]["payload"]))
    statement["predicate"]["resources"][0]["digest"] = "0" * 64
    parts["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()


FORGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "no JSON": lambda content: content[:-9],
    "no object": lambda content: b"[]",
    "nested": lambda content: b"[" * 100_000,
    "no signer": forge(lambda parts: parts.pop("verificationMaterial")),
    "a certificate": forge(
        lambda parts: parts.update(verificationMaterial={"certificate": {"rawBytes": "QQ=="}})
    ),
    "one part more": forge(lambda parts: parts.update(dsse_envelope=parts["dsseEnvelope"])),
    "no signatures": forge(lambda parts: parts["dsseEnvelope"].update(signatures=[])),  # type: ignore[attr-defined]
    "another payload": forge(another_payload),  # type: ignore[arg-type]
    "no base64": forge(lambda parts: parts["dsseEnvelope"].update(payload="!")),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_signature_is_refused(bundle: Bundle, key: KeyPair, how: str) -> None:
    signed(bundle, key)
    file = bundle.path / SIGNATURE
    file.write_bytes(FORGED[how](file.read_bytes()))
    with pytest.raises(VerificationFailed, match=r"is no signature by a key|does not hold"):
        check_signature(bundle, key.public)


def test_a_signature_of_another_state_of_the_folder_is_noticed_without_a_key(
    bundle: Bundle, key: KeyPair
) -> None:
    signed(bundle, key)
    old = (bundle.path / SIGNATURE).read_bytes()
    changed = replace_files(bundle, {"MODEL_CARD.md": "more"})
    assert not (bundle.path / SIGNATURE).exists()  # sealing again removes it
    (bundle.path / SIGNATURE).write_bytes(old)
    with pytest.raises(VerificationFailed, match=r"model\.sig in .* is of other files"):
        find_signer(changed)


def write_keys(folder: Path) -> dict[str, Path]:
    """Files that are no public key on a curve of the format."""
    paths = {name: folder / name for name in ("text", "rsa", "curve", "folder", "absent")}
    encoding = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    paths["text"].write_text("no key")
    paths["rsa"].write_bytes(
        rsa.generate_private_key(65537, 2048).public_key().public_bytes(*encoding)
    )
    other = ec.generate_private_key(ec.SECP256K1()).public_key()
    paths["curve"].write_bytes(other.public_bytes(*encoding))
    paths["folder"].mkdir()
    return paths


@pytest.mark.parametrize("name", ["text", "rsa", "curve", "folder", "absent", "private"])
def test_a_file_that_is_no_public_key_is_a_usage_error(
    tmp_path: Path, key: KeyPair, name: str
) -> None:
    path = {**write_keys(tmp_path), "private": key.private}[name]
    with pytest.raises(UsageRefused, match=r"is no PEM public key|cannot read the key"):
        fingerprint(path)


@pytest.mark.parametrize("name", ["text", "folder", "absent", "public"])
def test_a_file_that_is_no_private_key_is_a_usage_error(
    tmp_path: Path, key: KeyPair, name: str
) -> None:
    path = {**write_keys(tmp_path), "public": key.public}[name]
    with pytest.raises(UsageRefused, match=r"cannot sign with|cannot read"):
        check_signing_key(SigningKey(path))


def test_the_missing_library_is_named(
    bundle: Bundle, key: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for use in (
        lambda: check_signature(bundle, key.public),
        lambda: sign_bundle(bundle, SigningKey(key.private)),
    ):
        with pytest.raises(UsageRefused, match=r"pip install 'vae-pipeline\[sign\]'"):
            use()
    assert find_signer(bundle) is None  # which needs none


def test_a_folder_and_files_may_be_reached_over_links(
    bundle: Bundle, tmp_path: Path, key: KeyPair
) -> None:
    signed(bundle, key)
    latest = tmp_path / "latest"
    latest.symlink_to(bundle.path)
    open_source(str(latest), key.public)
    card = bundle.path / "MODEL_CARD.md"
    card.rename(tmp_path / "card")
    os.symlink(tmp_path / "card", card)
    open_source(str(bundle.path), key.public)


@pytest.mark.slow
def test_upstream_s_command_accepts_what_was_signed_here(
    bundle: Bundle, tmp_path: Path, key: KeyPair
) -> None:
    signed(bundle, key)
    words = ("verify", "key", bundle.path, "--signature", bundle.path / SIGNATURE, "--public_key")
    good = model_signing(*words, key.public)
    assert good.returncode == 0, good.stderr
    assert model_signing(*words, make_key(tmp_path, "other").public).returncode == 1


@pytest.mark.slow
def test_what_upstream_s_command_signed_is_accepted_here(
    bundle: Bundle, tmp_path: Path, key: KeyPair
) -> None:
    for place in (bundle.path / SIGNATURE, tmp_path / "elsewhere.sig"):
        words = ("sign", "key", bundle.path, "--private_key", key.private, "--signature", place)
        assert model_signing(*words).returncode == 0
        place.rename(bundle.path / SIGNATURE)
        check_signature(open_bundle(bundle.path), key.public)
        (bundle.path / SIGNATURE).unlink()


@pytest.mark.slow
def test_a_signature_that_leaves_out_the_manifest_is_refused(bundle: Bundle, key: KeyPair) -> None:
    """Upstream's command lets its user leave files out, and then accepts any change to them."""
    place = bundle.path / SIGNATURE
    words = ("sign", "key", bundle.path, "--private_key", key.private, "--signature", place)
    assert model_signing(*words, "--ignore-paths", bundle.path / MANIFEST).returncode == 0
    with pytest.raises(VerificationFailed, match=r"is not of its manifest\.json"):
        check_signature(bundle, key.public)


@pytest.mark.slow
def test_a_file_that_the_signer_left_out_cannot_be_changed_either(
    bundle: Bundle, key: KeyPair
) -> None:
    place, card = bundle.path / SIGNATURE, bundle.path / "MODEL_CARD.md"
    words = ("sign", "key", bundle.path, "--private_key", key.private, "--signature", place)
    assert model_signing(*words, "--ignore-paths", card).returncode == 0
    open_source(str(bundle.path), key.public)  # the signed manifest has its digest
    card.write_text("another")
    with pytest.raises(VerificationFailed, match=r"MODEL_CARD\.md is not the file"):
        open_source(str(bundle.path), key.public)
