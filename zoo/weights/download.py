"""Downloads files of published weights once into a cache folder, complete and unchanged or not at all.

A download that breaks off is resumed, by the same process or a later one. If a source fails or sends another file, the
next one is tried. If no digest is published, later downloads must equal the first one.
"""

import contextlib
import hashlib
import http.client
import ipaddress
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo import atomic, manifest
from zoo.manifest import Entry, Source
from zoo.weights.importing import WeightsError
from zoo.weights.tensor_files import zipped_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CACHE_VARIABLE = "KERAS_ZOO_CACHE"
LARGEST_FILE = 2**31  # bytes; the largest published file has 3.6e8
TIMEOUT = 60  # seconds without a byte
PAUSE = 2.0  # seconds before a download that broke off is resumed
_ATTEMPTS = 4  # for each source
_PIECE = 2**20


class DownloadError(WeightsError):
    """A file did not arrive, or is not the published one; only a part that can be resumed is kept."""


class _BrokenOffError(DownloadError):
    """The connection broke off; a retry may help."""


def cache_folder() -> Path:
    """Returns the folder of downloaded weights: $KERAS_ZOO_CACHE, or keras-searched-zoo in Keras' own folder.

    Keras' folder is $KERAS_HOME, or ~/.keras.
    """
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "keras-searched-zoo"


def fetch(weights: str | Entry) -> Path:
    """Returns the path of a file of published weights, after downloading it unless it is in the cache.

    A file that was put into the cache by hand is used, under our name for it or under its own. Digests are compared
    with the manifest's. If it has none, the first file's digest is kept next to the file, and later downloads must have
    the same.

    Args:
        weights: an entry or its name, as listed by zoo.info.

    Raises:
        NoWeightsError: there are no weights of this name.
        DownloadError: no source sent the file: no connection, an address that is not https, a file cut short, or
            another digest. The text says what each source did, and where to put the file by hand.
        OSError: the cache folder cannot be written.
    """
    entry = manifest.get(weights) if isinstance(weights, str) else weights
    for source in entry.sources:
        for path in (_cache_path(entry, source), cache_folder() / Path(urllib.parse.urlsplit(source.url).path).name):
            if path.is_file():
                remedy = f"delete {path} and try again"
                _check_digests(entry, source, _digests_of(path), path, f"the file {path} in the cache", remedy)
                return path
    failures = []
    for source in entry.sources:
        try:
            return _download(entry, source)
        except DownloadError as error:
            failures.append(f"{error}")
    paths = " or ".join(str(_cache_path(entry, source)) for source in entry.sources)
    raise DownloadError(
        f"could not fetch {entry.name}: {'; '.join(failures)}. Check the connection and try again, or get the file "
        f"by other means and put it at {paths}"
    )


def _cache_path(entry: Entry, source: Source) -> Path:
    return cache_folder() / f"{entry.name}.{source.format}"


def _download(entry: Entry, source: Source) -> Path:
    path = _cache_path(entry, source)
    _check_address(source.url)
    with atomic.explaining_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path.parent):
        if path.is_file():  # another process was faster
            return path
        part = path.with_name(f"{path.name}.part")
        with atomic.explaining_write_errors(path):
            _receive_whole(source.url, part)
        try:
            remedy = f"if this happens again, the file was replaced at its source (then delete {_digest_path(path)})"
            digests = _digests_of(part)
            _check_digests(entry, source, digests, path, f"the file from {source.url}", remedy)
        except DownloadError:
            part.unlink()
            raise
        with atomic.explaining_write_errors(path):
            atomic.put_in_place(part, path)
        atomic.write_atomically(_digest_path(path), digests["sha256"] + "\n")
    return path


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lets one process at a time download into a folder."""
    descriptor = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    try:
        if fcntl is not None and descriptor is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _receive_whole(url: str, part: Path) -> None:
    """Downloads into `part` with retries, each of which resumes where the last one ended if the server can do that.

    A part that cannot be resumed later is removed. Otherwise it stays, with a small file next to it that says what it
    is a part of.
    """
    origin = part.with_name(f"{part.name}.json")
    for attempt in range(_ATTEMPTS):
        before = part.stat().st_size if part.is_file() else 0
        try:
            _receive(url, part, origin)
            origin.unlink(missing_ok=True)
            return
        except DownloadError as error:
            received = part.stat().st_size if part.is_file() else 0
            if not origin.is_file():
                part.unlink(missing_ok=True)
            last = attempt + 1 == _ATTEMPTS or not isinstance(error, _BrokenOffError)
            if last or (received <= before and attempt > 0):
                raise
            time.sleep(PAUSE)


def _receive(url: str, part: Path, origin: Path) -> None:
    """Makes one attempt; writes `origin` if the rest can be fetched later.

    Raises:
        DownloadError: also instead of the network's OSErrors; an OSError is the disk's.
    """
    start, validator = 0, _read_validator(url, part, origin)
    headers = {"User-Agent": "keras-searched-zoo", "Accept-Encoding": "identity"}
    if validator is not None:
        start = part.stat().st_size
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.build_opener(_CheckedRedirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        origin.unlink(missing_ok=True)  # 416: `part` is not the beginning of the file
        kind = _BrokenOffError if error.code in (416, 429, 500, 502, 503, 504) else DownloadError
        raise kind(f"{url} answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOffError(f"could not download {url}: {error or type(error).__name__}") from error
    with response:
        if (response.headers.get("Content-Type") or "").startswith("text/html"):
            raise DownloadError(f"{url} sent a web page instead of the file; look at it in a browser")
        if start and not (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
            start = 0  # the file has changed, or the server gives whole files only
        _write_origin(url, response, origin)
        announced = response.headers.get("Content-Length") or ""
        total = start + int(announced) if announced.isdigit() else None
        if sys.stderr.isatty():
            rest = f"from byte {start:,} of " if start else ""
            print(f"downloading {url} ({rest}{total or 'an unknown number of'} bytes)", file=sys.stderr)
        with part.open("r+b" if start else "wb") as stream:
            stream.seek(start)
            for piece in _read_pieces(url, response, start):
                stream.write(piece)
            received = stream.tell()
    if total is not None and received != total:
        raise _BrokenOffError(f"{url} was cut short: {received} of {total} bytes arrived")


def _read_validator(url: str, part: Path, origin: Path) -> str | None:
    """Returns the ETag or date of the file that `part` is the beginning of; None if there is nothing to resume."""
    try:
        known = json.loads(origin.read_text(encoding="utf-8"))
        return known["validator"] if known["url"] == url and part.stat().st_size else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_origin(url: str, response: Any, origin: Path) -> None:
    tag = response.headers.get("ETag") or ""
    validator = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
    if validator:
        atomic.write_atomically(origin, json.dumps({"url": url, "validator": validator}))
    else:
        origin.unlink(missing_ok=True)


def _read_pieces(url: str, response: Any, received: int) -> Iterator[bytes]:
    try:
        while piece := response.read(_PIECE):
            received += len(piece)
            if received > LARGEST_FILE:
                raise DownloadError(f"{url} has more than {LARGEST_FILE} bytes; no published weights have that many")
            yield piece
    except http.client.IncompleteRead as error:
        yield error.partial
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOffError(f"could not download {url}: {error or type(error).__name__}") from error


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects only to addresses that we would download from; never from https to http."""

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


def _digest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _check_digests(entry: Entry, source: Source, digests: dict[str, str], path: Path, what: str, remedy: str) -> None:
    """Compares digests with those of the manifest and of the first download."""
    kept = _digest_path(path)
    first = kept.read_text(encoding="utf-8").strip() if kept.is_file() else ""
    for name, expected in (
        ("sha256", source.sha256),
        ("sha256", source.sha256_prefix),
        ("md5", source.md5),
        ("sha1_inside", source.sha1_inside),
        ("sha256", first),
    ):
        if expected and not digests[name].startswith(expected):
            raise DownloadError(
                f"{what} is not the {entry.name} that was expected: its {name} is {digests[name]}, not {expected}. "
                f"It was damaged or changed: {remedy}"
            )


def _digests_of(path: Path) -> dict[str, str]:
    # md5 only because keras.applications publishes no other digest: it detects damage, not malice
    hashes: dict[str, Any] = {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            for digest in hashes.values():
                digest.update(piece)
    if path.name.removesuffix(".part").endswith(".zip"):  # pytorchcv publishes the SHA-1 of the file in the archive
        hashes["sha1_inside"] = hashlib.sha1(usedforsecurity=False)
        with zipped_file(path) as stream:
            while piece := stream.read(_PIECE):
                hashes["sha1_inside"].update(piece)
    return {name: digest.hexdigest() for name, digest in hashes.items()}
