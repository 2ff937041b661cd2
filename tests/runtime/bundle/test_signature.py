"""bundle.sig: who made a bundle, by a signature over its manifest."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onnxport.errors import BundleError, DataError
from onnxport.runtime.bundle import signature
from onnxport.runtime.bundle.reader import SIGNATURE, Bundle
from onnxport.runtime.bundle.writer import extended_bundle
from onnxport.runtime.verify import verify
from support.commands import assert_refused, invoke

pytest.importorskip("model_signing.signing", reason="the extra sign is not installed")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the key pairs `team` and `other`, and keys that serve for nothing: `locked.pem` and `rsa.pub`."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    folder = tmp_path_factory.mktemp("keys")
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    for name in ("team", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        (folder / f"{name}.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
        (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, spki))
    locked = key.private_bytes(serialization.Encoding.PEM, form, serialization.BestAvailableEncryption(b"secret"))
    (folder / "locked.pem").write_bytes(locked)
    public = rsa.generate_private_key(65537, 2048).public_key()
    (folder / "rsa.pub").write_bytes(public.public_bytes(serialization.Encoding.PEM, spki))
    return folder


@pytest.fixture(scope="module")
def signed(tiny_bundle: Path, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed bundle, which tests only read."""
    place = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("signed") / "tiny"))
    signature.sign(place, keys / "team.pem")
    return place


@pytest.fixture
def copy(signed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(signed, tmp_path / "copy"))


def test_a_signature_is_beside_the_bundle_and_right(signed: Path, tiny_bundle: Path, keys: Path) -> None:
    assert (signed / "bundle.json").read_bytes() == (tiny_bundle / "bundle.json").read_bytes()
    found = verify(signed, threads=1, signed_by=keys / "team.pub")
    assert found["unlisted"] == [] and found["signed_by"] == str(keys / "team.pub")
    assert verify(signed, threads=1)["signed_by"] is None


def test_the_library_alone_checks_it(signed: Path, keys: Path) -> None:
    command = [sys.executable, "-m", "model_signing", "verify", "key", "bundle.json", "--signature", SIGNATURE, "--public_key"]
    result = subprocess.run([*command, str(keys / "team.pub")], cwd=signed, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    result = subprocess.run([*command, str(keys / "other.pub")], cwd=signed, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0


def test_the_commands(copy: Path, keys: Path) -> None:
    assert_refused(invoke("sign", copy, "--key", keys / "team.pem"), 6, SIGNATURE)
    result = invoke("sign", copy, "--key", keys / "other.pem", "--force", "--json")
    assert json.loads(result.stdout) == {"path": str(copy), "signature": SIGNATURE}
    shown = invoke("verify", copy, "--signature", keys / "other.pub", "-q")
    assert shown.exit_code == 0 and f"signed by {keys / 'other.pub'}" in shown.stdout
    assert_refused(invoke("verify", copy, "--signature", keys / "team.pub", "-q"), 4, SIGNATURE, "do not use this bundle")
    (copy / SIGNATURE).unlink()
    assert_refused(invoke("verify", copy, "--signature", keys / "team.pub", "-q"), 4, SIGNATURE, "onnxport sign")


def test_a_changed_manifest_is_found(copy: Path, keys: Path) -> None:
    manifest = json.loads((copy / "bundle.json").read_text())
    (copy / "bundle.json").write_text(json.dumps(manifest | {"name": "mine"}))
    with pytest.raises(BundleError, match="is not the signature of this"):
        signature.check(Bundle.open(copy, verify=True), keys / "team.pub")


@pytest.mark.parametrize("content", ["", "{}", "[1]", "\0", '{"mediaType": 3, "dsseEnvelope": {"payload": "!"}}'])
def test_what_is_no_signature_is_refused(copy: Path, keys: Path, content: str) -> None:
    (copy / SIGNATURE).write_text(content)
    with pytest.raises(BundleError, match="is not the signature of this"):
        signature.check(Bundle.open(copy), keys / "team.pub")


def test_a_bundle_that_is_another_one_by_now_is_not_taken_for_signed(copy: Path, keys: Path) -> None:
    bundle = Bundle.open(copy)
    (copy / "bundle.json").write_text((copy / "bundle.json").read_text().replace('"name": "', '"name": "x'))
    with pytest.raises(BundleError, match="was replaced while it was read"):
        signature.check(bundle, keys / "team.pub")


def test_a_damaged_bundle_is_not_signed(tiny_bundle: Path, keys: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    name = sorted(Bundle.open(copy).variants["fp32"].files)[0]
    content = bytearray((copy / name).read_bytes())
    content[-1] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match="has changed"):
        signature.sign(copy, keys / "team.pem")
    assert not (copy / SIGNATURE).exists()


@pytest.mark.parametrize("name", ["nowhere.pem", "team.pub", "locked.pem"])
def test_keys_that_cannot_sign_are_refused(copy: Path, keys: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: .*expected an unencrypted private key"):
        signature.sign(copy, keys / name, force=True)


@pytest.mark.parametrize("name", ["nowhere.pub", "team.pem", "rsa.pub"])
def test_keys_that_cannot_check_are_refused(signed: Path, keys: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: .*expected a public key"):
        signature.check(Bundle.open(signed), keys / name)


def test_a_bundle_that_is_written_again_is_not_signed_any_more(copy: Path) -> None:
    with extended_bundle(copy) as staging:
        (staging.path / "notes.txt").write_text("more")
    assert not (copy / SIGNATURE).exists() and Bundle.open(copy).unlisted() == []


def test_a_server_takes_signed_bundles_alone(signed: Path, tiny_bundle: Path, keys: Path) -> None:
    from onnxport.serve.models import Models

    Models.open([str(signed)], "fp32", "cpu", 1, require_signature=keys / "team.pub").close()
    for path, key, words in ((tiny_bundle, "team.pub", "cannot be read"), (signed, "other.pub", "is not the signature")):
        with pytest.raises(BundleError, match=words):
            Models.open([str(path)], "fp32", "cpu", 1, require_signature=keys / key)
