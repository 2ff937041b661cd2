"""The signature of a bundle: bundle.sig beside bundle.json, over that file alone, whose hashes cover all others.

It is OpenSSF's model signing (a Sigstore bundle), offline, with a key or with a certificate. Without onnxport, `model_signing verify key
bundle.json --signature bundle.sig --public_key KEY` checks it too, and `model_signing verify certificate ... --certificate_chain FILE`.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from base64 import b64decode
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from onnxport.errors import BundleError, DataError, one_line
from onnxport.extras import require
from onnxport.files import read_regular
from onnxport.runtime.bundle.manifest import MANIFEST
from onnxport.runtime.bundle.publish import check_file, write_file
from onnxport.runtime.bundle.reader import MOST_OF_MANIFEST, SIGNATURE, Bundle

MOST = 1 << 20  # bytes of a signature, a key or certificates
_PEM = b"-----BEGIN CERTIFICATE-----"
_KEYS = "in PEM, of an elliptic curve (P-256, P-384 or P-521)"
_PRIVATE = f"an unencrypted private key {_KEYS}"
_LEAF = "PEM with the certificate of the private key, then those between it and its authority"


def sign(path: str | Path, key: str | Path, force: bool = False, certificate: str | Path | None = None) -> Path:
    """Sign the bundle at `path`, all of whose hashes are checked before, and give the signature's place in it.

    key: a private key, PEM of an elliptic curve, without a password. force: replace a signature. certificate: PEM with the certificate of
    that key, then those between it and its authority; the signature holds them, and is checked by the authority's certificate.
    UsageError: the extra `sign` is not installed; DataError: the key or the certificate; BundleError; OutputError.
    """
    signer = _configured("signing", "use_elliptic_key_signer", key, _PRIVATE, private_key=Path(key))
    if certificate is not None:  # the key by itself is right: what is wrong now is the certificate
        signer = _certified(key, certificate)
    bundle = Bundle.open(path, verify=True)
    place = bundle.path / SIGNATURE
    check_file(place, force)
    content = _manifest(bundle)
    with tempfile.TemporaryDirectory() as folder:
        signed, signature = Path(folder, MANIFEST), Path(folder, SIGNATURE)
        signed.write_bytes(content)
        signer.sign(signed, signature)
        write_file(place, signature.read_bytes(), force)
    return place


def check(bundle: Bundle, key: str | Path) -> str | None:
    """Check that the manifest which was read for `bundle` is signed by a key. Hashes of other files are not looked at.

    key: the public key, PEM of an elliptic curve; or certificates of authorities, PEM, one of which must vouch for the certificate that
    the signature holds, and all between them must be valid today.
    Returns the name in that certificate, None for a key.
    UsageError: the extra `sign` is not installed; DataError: the key; BundleError: there is no signature, or it is not right.
    """
    certified = _PEM in _read(key, f"a public key or certificates {_KEYS}")
    if certified:
        verifier = _configured("verifying", "use_certificate_verifier", key, "certificates in PEM", certificate_chain=[Path(key)])
    else:
        verifier = _configured("verifying", "use_elliptic_key_verifier", key, f"a public key {_KEYS}", public_key=Path(key))
    content = _manifest(bundle)
    try:
        found = read_regular(bundle.path / SIGNATURE, MOST)
    except OSError as error:
        raise BundleError(
            f"{bundle.path}: {SIGNATURE} cannot be read ({error.strerror or error}), expected a signature; make one with `onnxport sign`"
        ) from None
    chain = _chain(found)
    if chain is not None and certified != bool(chain):
        raise BundleError(
            f"{bundle.path}: {SIGNATURE} was made with a {'key' if certified else 'certificate'}, and {key} holds "
            + ("certificates; check it with the public key" if certified else "a key; check it with the certificate of the authority")
        )
    with tempfile.TemporaryDirectory() as folder:  # what is checked stays the same meanwhile
        signed, signature = Path(folder, MANIFEST), Path(folder, SIGNATURE)
        signed.write_bytes(content)
        signature.write_bytes(found)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints warnings there
                verifier.verify(signed, signature)
            return _valid_today(chain or [], Path(key)) if certified else None
        except Exception as error:  # of four libraries, for whatever a stranger wrote
            raise BundleError(
                f"{bundle.path}: {SIGNATURE} is not the signature of this {MANIFEST} by {key} ({one_line(error)}); do not use this bundle"
            ) from None


def _chain(signature: bytes) -> list[bytes] | None:
    """The certificates that a signature holds, its own first, in DER; none where a key made it. None: it is no signature."""
    try:
        material = json.loads(signature)["verificationMaterial"]
        if "x509CertificateChain" not in material:
            return [] if "publicKey" in material else None
        return [b64decode(one["rawBytes"]) for one in material["x509CertificateChain"]["certificates"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _valid_today(chain: list[bytes], authorities: Path) -> str:
    """Checks that a chain leads to an authority now, and gives the name in its first certificate.

    The library asks that of the day on which that certificate began, so that one which has ended still passes there.
    """
    x509, crypto = (require(module, "sign", "a certificate") for module in ("cryptography.x509", "OpenSSL.crypto"))
    store = crypto.X509Store()
    for one in x509.load_pem_x509_certificates(read_regular(authorities, MOST)):
        store.add_cert(crypto.X509.from_cryptography(one))
    certificates = [x509.load_der_x509_certificate(one) for one in chain]
    first, *others = (crypto.X509.from_cryptography(one) for one in certificates)
    try:
        crypto.X509StoreContext(store, first, others).verify_certificate()
    except crypto.X509StoreContextError as error:
        wrong = error.certificate.to_cryptography()
        raise ValueError(f"{_name(wrong)}, {_span(wrong)}: {one_line(error)}") from None
    return _name(certificates[0])


def _certified(key: str | Path, certificate: str | Path) -> Any:
    """A signer with a certificate, which is valid today and may sign. DataError: it is not."""
    x509 = require("cryptography.x509", "sign", "a certificate")
    content = _read(certificate, _LEAF)
    with tempfile.TemporaryDirectory() as folder:
        rest = Path(folder, "chain.pem")
        after = content.find(_PEM, content.find(_PEM) + 1)
        rest.write_bytes(content[max(after, 0) :])  # the library takes no empty chain
        signer = _configured(
            "signing", "use_certificate_signer", certificate, _LEAF,
            private_key=Path(key), signing_certificate=Path(certificate), certificate_chain=[rest],
        )  # fmt: skip
    leaf = x509.load_pem_x509_certificate(content)
    if not leaf.not_valid_before_utc <= datetime.now(UTC) <= leaf.not_valid_after_utc:
        raise DataError(f"{certificate}: the certificate of {_name(leaf)} is not valid now, {_span(leaf)}; sign with one that is")
    if not _may_sign(leaf):
        raise DataError(
            f"{certificate}: the certificate of {_name(leaf)} is not for signatures; expected digitalSignature in its key usage, or "
            "codeSigning in its extended key usage"
        )
    return signer


def _may_sign(certificate: Any) -> bool:
    """Whether the library's check will take signatures of a certificate."""
    x509 = require("cryptography.x509", "sign", "a certificate")
    signing = x509.oid.ExtendedKeyUsageOID.CODE_SIGNING
    found = {one.oid: one.value for one in certificate.extensions}
    usage = found.get(x509.KeyUsage.oid)
    return (usage is not None and usage.digital_signature) or signing in found.get(x509.ExtendedKeyUsage.oid, ())


def _name(certificate: Any) -> str:
    return certificate.subject.rfc4514_string() or "nobody"


def _span(certificate: Any) -> str:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return f"valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC"


def _manifest(bundle: Bundle) -> bytes:
    """bundle.json as it was read for the bundle. BundleError where it is another one now."""
    try:
        content = read_regular(bundle.path / MANIFEST, MOST_OF_MANIFEST)
        same = json.loads(content) == bundle.manifest.as_dict()
    except (OSError, ValueError, RecursionError):
        same = False
    if not same:
        raise BundleError(f"{bundle.path}: {MANIFEST} was replaced while it was read; try again when nothing writes it")
    return content


def _read(file: str | Path, expected: str) -> bytes:
    """A key or certificates. DataError: the file cannot be read."""
    try:
        return read_regular(file, MOST)
    except OSError as error:
        raise DataError(f"{file}: it cannot be read ({error.strerror or error}); expected {expected}") from None


def _configured(module: str, method: str, file: str | Path, expected: str, **arguments: Any) -> Any:
    """A configuration of the library for a key or certificates. DataError: the file is none."""
    config = require(f"model_signing.{module}", "sign", "a signature").Config()
    use: Callable[..., Any] = getattr(config, method)
    _read(file, expected)
    try:
        return use(**arguments)
    except Exception as error:  # cryptography has many
        raise DataError(f"{file}: {one_line(error, 100)}; expected {expected}") from None
