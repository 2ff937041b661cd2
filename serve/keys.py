"""API keys: who has none of them is not answered."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

from onnxport.errors import DataError
from onnxport.files import read_regular
from onnxport.serve.errors import ApiError

MOST = 1 << 20  # bytes of a file of keys
CHALLENGE = {"www-authenticate": "Bearer"}


class Keys:
    """The keys that are good; without any, everybody is answered."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def read(cls, path: Path | None) -> Keys:
        """The keys of a file, one a line; blank lines are passed over. DataError: it cannot be read, or holds none."""
        if path is None:
            return cls()
        try:
            lines = read_regular(path, MOST).decode("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise DataError(f"{path}: cannot be read ({reason}); expected API keys, one a line") from error
        keys = [line.strip() for line in lines if line.strip()]
        if not keys:
            raise DataError(f"{path}: holds no API key, expected one a line")
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, authorization: str | None) -> None:
        """ApiError (401) unless the header holds one of the keys. How long it takes tells nothing of them."""
        if not self._digests:
            return
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        found = [hmac.compare_digest(given, good) for good in self._digests]
        if scheme.lower() != "bearer" or not any(found):
            what = "another API key than this server's" if authorization else "no API key"
            message = f"found {what}, expected the header 'Authorization: Bearer KEY'"
            raise ApiError(401, message, "authentication_error", code="invalid_api_key", headers=CHALLENGE)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
