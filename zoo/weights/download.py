"""Files of published weights: fetched once into a cache folder, whole and unchanged or not at all."""

import hashlib
import http.client
import ipaddress
import os
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo import atomic
from zoo.manifest import Entry
from zoo.weights.torch_import import WeightsError

CACHE_VARIABLE = "KERAS_ZOO_CACHE"
LARGEST_FILE = 2**31  # bytes; the largest published file has 3.6e8
TIMEOUT = 60  # seconds without a byte
_PIECE = 2**20
_SUFFIXES = {"h5": ".h5", "safetensors": ".safetensors", "pth": ".pth"}


class DownloadError(WeightsError):
    """A file that did not arrive, or is not the one that was published; nothing of it is kept."""


def cache_folder() -> Path:
    """Returns the folder of downloaded weights: what KERAS_ZOO_CACHE in the environment names, or one in ~/.cache."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "keras-searched-zoo"


def fetch(entry: Entry) -> Path:
    """Returns the path of the file of `entry`, which is downloaded unless it is in the cache.

    The file's digest is compared with the manifest's. Where the manifest has none, or a part only, the digest of the
    first download is kept beside the file and whatever comes later must have the same.

    Raises:
        DownloadError: no connection, an address that is not https, a file cut short, or a digest that differs.
        OSError: the cache folder cannot be written.
    """
    path = cache_folder() / f"{entry.name}{_SUFFIXES[entry.format]}"
    digest_path = path.with_name(f"{path.name}.sha256")
    if path.is_file():
        _check(entry, _digests_of(path), digest_path, f"the file {path} in the cache", f"delete {path} and try again")
        return path
    _check_address(entry.url)
    hashes = _hashes()
    with atomic.replacing(path) as stream:
        for piece in _pieces(entry.url, path):
            for digest in hashes.values():
                digest.update(piece)
            stream.write(piece)
        digests = {name: digest.hexdigest() for name, digest in hashes.items()}
        remedy = f"try again; if it stays so, the file was replaced at its source (then delete {digest_path})"
        _check(entry, digests, digest_path, f"what came from {entry.url}", remedy)
        atomic.write_atomically(digest_path, digests["sha256"] + "\n")
    return path


def _pieces(url: str, path: Path) -> Iterator[bytes]:
    """Yields the file at `url`, all of it, or raises DownloadError.

    No OSError leaves it: `atomic` would take the network's trouble for the disk's.
    """
    opener = urllib.request.build_opener(_CheckedRedirects)
    request = urllib.request.Request(url, headers={"User-Agent": "keras-searched-zoo", "Accept-Encoding": "identity"})
    received = 0
    try:
        with opener.open(request, timeout=TIMEOUT) as response:
            if (response.headers.get("Content-Type") or "").startswith("text/html"):
                raise DownloadError(f"{url} gave a web page instead of the file; look at it in a browser")
            announced = response.headers.get("Content-Length") or "an unknown number of"
            if sys.stderr.isatty():
                print(f"downloading {url} ({announced} bytes)", file=sys.stderr)
            while piece := response.read(_PIECE):
                received += len(piece)
                if received > LARGEST_FILE:
                    raise DownloadError(f"{url} has more than {LARGEST_FILE} bytes; no published weights have so many")
                yield piece
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(
            f"could not download {url}: {error or type(error).__name__}. Nothing was kept. Check the connection and "
            f"try again, or bring the file by other means and put it at {path}"
        ) from error
    if announced.isdigit() and received != int(announced):
        raise DownloadError(f"{url} was cut short: {received} of {announced} bytes came. Nothing was kept; try again")


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to addresses that we would go to ourselves; never from https to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme in ("https", "file") or (parts.scheme == "http" and _is_loopback(parts.hostname)):
        return
    raise DownloadError(f"weights are not downloaded from {url}; expected an https:// address")


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _check(entry: Entry, digests: dict[str, str], digest_path: Path, what: str, remedy: str) -> None:
    """Compares digests with the manifest's and with that of the first download."""
    first = digest_path.read_text(encoding="utf-8").strip() if digest_path.is_file() else ""
    for name, expected in (
        ("sha256", entry.sha256),
        ("sha256", entry.sha256_prefix),
        ("md5", entry.md5),
        ("sha256", first),
    ):
        if expected and not digests[name].startswith(expected):
            raise DownloadError(
                f"{what} is not the {entry.name} that was expected: its {name} is {digests[name]}, not {expected}. "
                f"It was damaged or changed: {remedy}"
            )


def _digests_of(path: Path) -> dict[str, str]:
    hashes = _hashes()
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            for digest in hashes.values():
                digest.update(piece)
    return {name: digest.hexdigest() for name, digest in hashes.items()}


def _hashes() -> dict[str, Any]:
    # md5 only because keras.applications gives no other digest: it tells damage, not malice
    return {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
