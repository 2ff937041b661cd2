"""bundle.sig by a certificate: an authority vouches for the key that signed."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from onnxport.errors import BundleError, DataError
from onnxport.runtime.bundle import signature
from onnxport.runtime.bundle.reader import SIGNATURE, Bundle
from support.commands import assert_refused, invoke

pytest.importorskip("model_signing.signing", reason="the extra sign is not installed")

TODAY = datetime.now(UTC)
YEAR = timedelta(days=365)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with NAME.pem, its key, and NAME.crt, its certificate and those up to the authority.

    The authority itself is in `whole.crt` alone. `root` vouches for `between` and `old-between`, these for `leaf`, `ended`, `coming`,
    `unfit` and `late`; `stranger` is another authority.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("certificates")
    keys: dict[str, Any] = {}
    chains: dict[str, bytes] = {}

    def make(
        name: str, by: str, begins: datetime = TODAY - YEAR, ends: datetime = TODAY + YEAR, authority: bool = False, signs: bool = True
    ) -> None:
        keys[name] = ec.generate_private_key(ec.SECP256R1())
        called = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, one)]) for one in (name, by)]
        unused = ("content_commitment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only")
        usage = dict.fromkeys(unused, False) | {"key_encipherment": not signs}
        builder = x509.CertificateBuilder(called[1], called[0], keys[name].public_key(), x509.random_serial_number(), begins, ends)
        builder = builder.add_extension(x509.BasicConstraints(authority, None), critical=True).add_extension(
            x509.KeyUsage(digital_signature=signs and not authority, key_cert_sign=authority, crl_sign=authority, **usage), critical=True
        )
        content = builder.sign(keys[by], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        chains[name] = content + (chains[by] if by != name and by != "root" else b"")
        pem = keys[name].private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / f"{name}.pem").write_bytes(pem)
        (folder / f"{name}.crt").write_bytes(chains[name])

    make("root", "root", authority=True, begins=TODAY - 3 * YEAR)
    make("stranger", "stranger", authority=True)
    make("between", "root", authority=True)
    make("old-between", "root", TODAY - 2 * YEAR, TODAY - timedelta(days=1), authority=True)
    make("leaf", "between")
    make("near", "root")
    make("ended", "between", ends=TODAY - timedelta(days=1))
    make("coming", "between", begins=TODAY + timedelta(days=1))
    make("unfit", "between", signs=False)
    make("late", "old-between")
    (folder / "whole.crt").write_bytes(chains["leaf"] + chains["root"])
    public = keys["leaf"].public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "leaf.pub").write_bytes(public)
    return folder


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def sign_unchecked(bundle: Path, made: Path, name: str) -> None:
    """A signature as another program may make it, with a certificate that `onnxport sign` refuses."""
    from model_signing.signing import Config

    chain = [made / f"{name}.crt"]
    config = Config().use_certificate_signer(private_key=made / f"{name}.pem", signing_certificate=chain[0], certificate_chain=chain)
    config.sign(bundle / "bundle.json", bundle / SIGNATURE)


@pytest.mark.parametrize("name", ["leaf", "near", "whole"])
def test_an_authority_vouches_for_the_signer(copy: Path, made: Path, name: str) -> None:
    key = "near" if name == "near" else "leaf"
    signature.sign(copy, made / f"{key}.pem", certificate=made / f"{name}.crt")
    assert signature.check(Bundle.open(copy), made / "root.crt") == f"CN={key}"
    with pytest.raises(BundleError, match="is not the signature .*certificate"):
        signature.check(Bundle.open(copy), made / "stranger.crt")


def test_the_commands(copy: Path, made: Path) -> None:
    result = invoke("sign", copy, "--key", made / "leaf.pem", "--certificate", made / "leaf.crt", "--json")
    assert json.loads(result.stdout) == {"path": str(copy), "signature": SIGNATURE}
    shown = invoke("verify", copy, "--signature", made / "root.crt", "-q")
    assert shown.exit_code == 0 and f"signed by CN=leaf, whom {made / 'root.crt'} vouches for" in shown.stdout
    found = json.loads(invoke("verify", copy, "--signature", made / "root.crt", "--json").stdout)
    assert found["signer"] == "CN=leaf" and found["signed_by"] == str(made / "root.crt")
    assert_refused(
        invoke("verify", copy, "--signature", made / "stranger.crt", "-q"), 4, SIGNATURE, "certificate", "do not use this bundle"
    )
    assert_refused(invoke("verify", copy, "--signature", made / "leaf.pub", "-q"), 4, "was made with a certificate", "holds a key")
    manifest = json.loads((copy / "bundle.json").read_text())
    (copy / "bundle.json").write_text(json.dumps(manifest | {"name": "mine"}))
    assert_refused(invoke("verify", copy, "--signature", made / "root.crt", "-q"), 4, "is not the signature", "do not use this bundle")


def test_the_library_alone_checks_it(copy: Path, made: Path) -> None:
    signature.sign(copy, made / "leaf.pem", certificate=made / "leaf.crt")
    command = [
        sys.executable,
        "-m",
        "model_signing",
        "verify",
        "certificate",
        "bundle.json",
        "--signature",
        SIGNATURE,
        "--certificate_chain",
    ]
    for name, right in (("root.crt", True), ("stranger.crt", False)):
        result = subprocess.run([*command, str(made / name)], cwd=copy, capture_output=True, text=True, timeout=60)
        assert (result.returncode == 0) == right, result.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ended", "CN=ended, valid from .* to .* UTC: certificate has expired"),
        ("coming", "CN=coming, valid from .*: certificate is not yet valid"),
        ("late", "CN=old-between, valid from .*: certificate has expired"),
        ("unfit", "cannot be used for signing"),
    ],
)
def test_certificates_that_do_not_hold_today_are_refused(copy: Path, made: Path, name: str, words: str) -> None:
    sign_unchecked(copy, made, name)
    with pytest.raises(BundleError, match=f"{words}.*do not use this bundle"):
        signature.check(Bundle.open(copy), made / "root.crt")
    assert_refused(invoke("verify", copy, "--signature", made / "root.crt", "-q"), 4, SIGNATURE)


@pytest.mark.parametrize(
    ("key", "certificate", "words"),
    [
        ("leaf.pem", "near.crt", "does not match"),
        ("leaf.pem", "leaf.pem", "expected PEM with the certificate"),
        ("leaf.pem", "nowhere.crt", "cannot be read"),
        ("leaf.crt", "leaf.crt", "expected an unencrypted private key"),
        ("ended.pem", "ended.crt", "the certificate of CN=ended is not valid now"),
        ("coming.pem", "coming.crt", "the certificate of CN=coming is not valid now"),
        ("unfit.pem", "unfit.crt", "the certificate of CN=unfit is not for signatures"),
    ],
)
def test_what_cannot_sign_is_refused(copy: Path, made: Path, key: str, certificate: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        signature.sign(copy, made / key, certificate=made / certificate)
    assert not (copy / SIGNATURE).exists()


def broken(change: Callable[[list[Any]], None]) -> Callable[[dict[str, Any]], None]:
    return lambda found: change(found["verificationMaterial"]["x509CertificateChain"]["certificates"])


@pytest.mark.parametrize(
    "change",
    [broken(lambda chain: chain.pop(0)), broken(lambda chain: chain.clear()), broken(lambda chain: chain[0].update(rawBytes="AAAA"))],
    ids=["without its own", "without any", "no certificate"],
)
def test_signatures_with_a_broken_chain_are_refused(copy: Path, made: Path, change: Callable[[dict[str, Any]], None]) -> None:
    signature.sign(copy, made / "leaf.pem", certificate=made / "leaf.crt")
    found = json.loads((copy / SIGNATURE).read_text())
    change(found)
    (copy / SIGNATURE).write_text(json.dumps(found))
    with pytest.raises(BundleError):
        signature.check(Bundle.open(copy), made / "root.crt")


def test_a_server_takes_signed_bundles_alone(copy: Path, made: Path) -> None:
    from onnxport.serve.models import Models

    signature.sign(copy, made / "leaf.pem", certificate=made / "leaf.crt")
    Models.open([str(copy)], "fp32", "cpu", 1, require_signature=made / "root.crt").close()
    with pytest.raises(BundleError, match="is not the signature"):
        Models.open([str(copy)], "fp32", "cpu", 1, require_signature=made / "stranger.crt")


def test_a_signature_of_a_key_is_not_one_of_a_certificate(copy: Path, made: Path) -> None:
    signature.sign(copy, made / "leaf.pem")
    assert signature.check(Bundle.open(copy), made / "leaf.pub") is None
    with pytest.raises(BundleError, match=r"was made with a key, and .*root.crt holds certificates"):
        signature.check(Bundle.open(copy), made / "root.crt")
