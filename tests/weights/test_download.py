"""Downloads against a server on this machine: whole and unchanged, or nothing."""

import hashlib
import http.server
import io
import threading
import zipfile
from collections.abc import Callable, Iterator

import pytest

from zoo.manifest import Entry, NoWeightsError, Source
from zoo.weights import download
from zoo.weights.download import DownloadError, fetch

CONTENT = bytes(range(256)) * 20
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """A loopback server whose next answers are functions of the request's handler; it counts the requests."""

    def __init__(self):
        self.answer: Callable[[http.server.BaseHTTPRequestHandler], None] = whole
        self.requests = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests += 1
                outer.answer(self)

            def log_message(self, *arguments):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/weights"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def answer(content: bytes = CONTENT, status: int = 200, length: int | None = None, **headers: str):
    """Makes an answer; `length` is what it says that the content has."""

    def send(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(length or len(content)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)
        handler.close_connection = True

    return send


whole, cut_short, changed = answer(), answer(CONTENT[:1000], length=len(CONTENT)), answer(b"x" + CONTENT[1:])
missing, web_page = answer(status=404), answer(b"<html>please log in</html>", Content_Type="text/html; charset=utf-8")


def redirect(to: str) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    return answer(b"", 302, Location=to)


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    yield running
    running.close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(download.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(download, "PAUSE", 0.0)
    return tmp_path / "cache"


def entry(url: str, **digests: str) -> Entry:
    return entry_of(Source(url, "pth", **digests))


def entry_of(*sources: Source) -> Entry:
    normalization = {"mean": [0], "std": [1]}
    return Entry("some_weights", "darts", "cifar10", "cifar10", "us", 10, sources, "MIT", normalization, 0.0, "")


def files(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_file_is_fetched_once(server, cache):
    first = fetch(entry(server.url))
    assert first == cache / "some_weights.pth"
    assert first.read_bytes() == CONTENT
    assert fetch(entry(server.url)) == first
    assert server.requests == 1
    assert files(cache) == ["some_weights.pth", "some_weights.pth.sha256"]


@pytest.mark.parametrize(
    "digests",
    [
        {"sha256": DIGEST},
        {"sha256_prefix": DIGEST[:8]},
        {"md5": hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()},
    ],
    ids=lambda digests: next(iter(digests)),
)
def test_the_digest_of_the_manifest_is_checked(server, cache, digests):
    server.answer = changed
    with pytest.raises(DownloadError, match="damaged or changed"):
        fetch(entry(server.url, **digests))
    assert files(cache) == []
    server.answer = whole
    assert fetch(entry(server.url, **digests)).read_bytes() == CONTENT


def test_the_digest_of_the_file_in_an_archive_is_checked(server, cache):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as writer:
        writer.writestr("darts.pth", CONTENT)
    server.answer = answer(archive.getvalue())
    other = Source(server.url, "pth.zip", sha1_inside="0" * 40)
    with pytest.raises(DownloadError, match=r"its sha1_inside is .* damaged or changed"):
        fetch(entry_of(other))
    assert files(cache) == []
    right = other._replace(sha1_inside=hashlib.sha1(CONTENT, usedforsecurity=False).hexdigest())
    assert fetch(entry_of(right)) == cache / "some_weights.pth.zip"


def test_without_a_digest_in_the_manifest_later_downloads_must_equal_the_first(server, cache):
    fetch(entry(server.url)).unlink()
    server.answer = changed
    with pytest.raises(DownloadError, match=f"not {DIGEST}"):
        fetch(entry(server.url))
    assert files(cache) == ["some_weights.pth.sha256"]
    server.answer = whole
    assert fetch(entry(server.url)).read_bytes() == CONTENT


def test_a_file_that_changed_in_the_cache_is_refused_and_left_to_its_owner(server, cache):
    path = fetch(entry(server.url))
    path.write_bytes(b"something else")
    with pytest.raises(DownloadError, match=r"delete .*some_weights\.pth and try again"):
        fetch(entry(server.url))
    assert path.read_bytes() == b"something else"


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (cut_short, f"cut short: 1000 of {len(CONTENT)} bytes"),
        (missing, "404"),
        (web_page, "web page"),
        (redirect("http://example.com/weights"), "expected an https:// address"),
        (redirect("ftp://127.0.0.1/weights"), "expected an https:// address"),
        (redirect("file:///etc/hostname"), "not allowed"),
    ],
    ids=["cut short", "not found", "web page", "to http", "to ftp", "to a file"],
)
def test_what_is_not_the_file_is_an_error_and_leaves_nothing(server, cache, sent, message):
    server.answer = sent
    with pytest.raises(DownloadError, match=message):
        fetch(entry(server.url))
    assert files(cache) == []


def test_a_redirect_within_the_rules_is_followed(server):
    there = redirect(server.url.replace("weights", "there"))
    server.answer = lambda handler: (whole if handler.path == "/there" else there)(handler)
    assert fetch(entry(server.url)).read_bytes() == CONTENT


def test_a_server_that_is_not_there_is_an_error_with_the_way_out(server, cache):
    server.close()
    with pytest.raises(DownloadError, match=r"get the file by other means and put it at .*some_weights\.pth"):
        fetch(entry(server.url))
    assert files(cache) == []


def test_a_server_that_falls_silent_is_an_error(server, cache, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    over = threading.Event()

    def fall_silent(handler):
        answer(CONTENT[:10], length=len(CONTENT))(handler)
        handler.wfile.flush()
        over.wait(5)

    server.answer = fall_silent
    with pytest.raises(DownloadError, match="timed out"):
        fetch(entry(server.url))
    over.set()
    assert files(cache) == []


def test_more_bytes_than_any_weights_have_are_refused(server, cache, monkeypatch):
    monkeypatch.setattr(download, "LARGEST_FILE", 1000)
    with pytest.raises(DownloadError, match="more than 1000 bytes"):
        fetch(entry(server.url))
    assert files(cache) == []


@pytest.mark.parametrize("url", ["http://example.com/a.pth", "ftp://example.com/a.pth", "a.pth", "data:,x"])
def test_only_https_is_downloaded(url):
    with pytest.raises(DownloadError, match="expected an https:// address"):
        fetch(entry(url))


def test_a_file_of_ones_own_can_stand_in_the_manifest(tmp_path):
    own = tmp_path / "own.pth"
    own.write_bytes(CONTENT)
    assert fetch(entry(own.as_uri(), sha256=DIGEST)).read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written_says_where_and_what_to_do(tmp_path, monkeypatch, server):
    (tmp_path / "blocked").write_text("a file where a folder should be")
    monkeypatch.setenv(download.CACHE_VARIABLE, str(tmp_path / "blocked"))
    with pytest.raises(OSError, match="choose a folder"):
        fetch(entry(server.url))


def test_the_cache_is_in_keras_folder_unless_said_otherwise(monkeypatch, tmp_path):
    monkeypatch.delenv(download.CACHE_VARIABLE)
    monkeypatch.delenv("KERAS_HOME", raising=False)
    assert download.cache_folder().parts[-2:] == (".keras", "keras-searched-zoo")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / "keras-searched-zoo"


class Resumable:
    """Answers that know the file's version and give the rest of it; each connection breaks after `bytes_each`."""

    def __init__(self, content: bytes = CONTENT, bytes_each: int = 2000, tag: str | None = '"v1"', ranges: bool = True):
        self.content, self.bytes_each, self.tag, self.ranges = content, bytes_each, tag, ranges
        self.starts: list[int] = []

    def __call__(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if not self.ranges or handler.headers.get("If-Range") != self.tag:
            start = 0
        self.starts.append(start)
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if self.tag:
            handler.send_header("ETag", self.tag)
        handler.send_header("Content-Length", str(len(self.content) - start))
        handler.end_headers()
        handler.wfile.write(self.content[start : start + self.bytes_each])
        handler.close_connection = True


def test_a_connection_that_breaks_is_resumed_where_it_broke(server, cache):
    server.answer = answers = Resumable()
    assert fetch(entry(server.url)).read_bytes() == CONTENT
    assert answers.starts == [0, 2000, 4000]
    assert files(cache) == ["some_weights.pth", "some_weights.pth.sha256"]


def test_a_later_process_resumes_too(server, cache):
    server.answer = broken = Resumable(bytes_each=100)
    with pytest.raises(DownloadError, match=f"cut short: 400 of {len(CONTENT)} bytes arrived"):
        fetch(entry(server.url))
    assert files(cache) == ["some_weights.pth.part", "some_weights.pth.part.json"]
    server.answer = whole_rest = Resumable(bytes_each=10**6)
    assert fetch(entry(server.url)).read_bytes() == CONTENT
    assert (broken.starts, whole_rest.starts) == ([0, 100, 200, 300], [400])


@pytest.mark.parametrize("later", [{"tag": '"v2"'}, {"ranges": False}, {"tag": None}], ids=str)
def test_two_versions_of_a_file_are_never_joined(server, cache, later):
    server.answer = Resumable(b"y" * len(CONTENT), bytes_each=100)
    with pytest.raises(DownloadError, match="cut short"):
        fetch(entry(server.url))
    server.answer = answers = Resumable(bytes_each=10**6, **later)
    assert fetch(entry(server.url)).read_bytes() == CONTENT
    assert answers.starts == [0]


def test_a_place_that_fails_or_lies_is_followed_by_the_next(server, cache, tmp_path):
    own = tmp_path / "own.safetensors"
    own.write_bytes(CONTENT)
    for sent in (missing, changed, web_page, cut_short):
        server.answer = sent
        sources = Source(server.url, "pth", sha256=DIGEST), Source(own.as_uri(), "safetensors", sha256=DIGEST)
        path = fetch(entry_of(*sources))
        assert (path.name, path.read_bytes()) == ("some_weights.safetensors", CONTENT)
        assert fetch(entry_of(*sources)) == path  # of the second place, though the first one is asked for first
        path.unlink()


def test_when_all_places_fail_each_is_named_with_what_it_did(server, cache):
    server.answer = missing
    sources = Source(server.url, "pth"), Source(server.url.replace("weights", "mirror"), "h5")
    with pytest.raises(DownloadError) as caught:
        fetch(entry_of(*sources))
    text = str(caught.value)
    assert f"{server.url} answered 404" in text
    assert "/mirror answered 404" in text
    assert f"put it at {cache / 'some_weights.pth'} or {cache / 'some_weights.h5'}" in text


@pytest.mark.parametrize("name", ["some_weights.pth", "published-name.pth"])
def test_a_file_that_was_put_into_the_cache_by_hand_is_taken(server, cache, name):
    cache.mkdir()
    (cache / name).write_bytes(CONTENT)
    source = Source(server.url.replace("weights", "published-name.pth"), "pth", sha256=DIGEST)
    assert fetch(entry_of(source)) == cache / name
    assert server.requests == 0
    (cache / name).write_bytes(b"another file")
    with pytest.raises(DownloadError, match=f"delete .*{name}"):
        fetch(entry_of(source))


def test_weights_are_fetched_by_name_and_an_unknown_name_suggests_near_ones(cache):
    with pytest.raises(NoWeightsError, match="did you mean 'mcunet_in0_mit'"):
        fetch("mcunet_in0_mti")
