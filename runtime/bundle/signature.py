"""The signature of a bundle: bundle.sig beside bundle.json, over that file alone, whose hashes cover all others.

It is OpenSSF's model signing (a Sigstore bundle), with a key and offline. Without onnxport, `model_signing verify key bundle.json
--signature bundle.sig --public_key KEY` checks it too.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnxport.errors import BundleError, DataError, one_line
from onnxport.extras import require
from onnxport.files import read_regular
from onnxport.runtime.bundle.manifest import MANIFEST
from onnxport.runtime.bundle.publish import check_file, write_file
from onnxport.runtime.bundle.reader import MOST_OF_MANIFEST, SIGNATURE, Bundle

MOST = 1 << 20  # bytes of a signature, or of a key
_KEYS = "in PEM, of an elliptic curve (P-256, P-384 or P-521)"


def sign(path: str | Path, key: str | Path, force: bool = False) -> Path:
    """Sign the bundle at `path`, all of whose hashes are checked before, and give the signature's place in it.

    key: a private key, PEM of an elliptic curve, without a password. force: replace a signature.
    UsageError: the extra `sign` is not installed; DataError: the key; BundleError; OutputError.
    """
    signer = _configured("signing", "use_elliptic_key_signer", "private_key", key, f"an unencrypted private key {_KEYS}")
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


def check(bundle: Bundle, key: str | Path) -> None:
    """Check that the manifest which was read for `bundle` is signed by a key. Hashes of other files are not looked at.

    key: the public key, PEM of an elliptic curve.
    UsageError: the extra `sign` is not installed; DataError: the key; BundleError: there is no signature, or it is not right.
    """
    verifier = _configured("verifying", "use_elliptic_key_verifier", "public_key", key, f"a public key {_KEYS}")
    content = _manifest(bundle)
    try:
        found = read_regular(bundle.path / SIGNATURE, MOST)
    except OSError as error:
        raise BundleError(
            f"{bundle.path}: {SIGNATURE} cannot be read ({error.strerror or error}), expected a signature; make one with `onnxport sign`"
        ) from None
    with tempfile.TemporaryDirectory() as folder:  # what is checked stays the same meanwhile
        signed, signature = Path(folder, MANIFEST), Path(folder, SIGNATURE)
        signed.write_bytes(content)
        signature.write_bytes(found)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints warnings there
                verifier.verify(signed, signature)
        except Exception as error:  # of four libraries, for whatever a stranger wrote
            raise BundleError(
                f"{bundle.path}: {SIGNATURE} is not the signature of this {MANIFEST} by {key} ({one_line(error)}); do not use this bundle"
            ) from None


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


def _configured(module: str, method: str, argument: str, key: str | Path, expected: str) -> Any:
    """A configuration of the library for a key. DataError: it is none."""
    config = require(f"model_signing.{module}", "sign", "a signature").Config()
    use: Callable[..., Any] = getattr(config, method)
    try:
        read_regular(key, MOST)
        return use(**{argument: Path(key)})
    except OSError as error:
        raise DataError(f"{key}: the key cannot be read ({error.strerror or error}); expected {expected}") from None
    except Exception as error:  # cryptography has many
        raise DataError(f"{key}: {one_line(error, 100)}; expected {expected}") from None
