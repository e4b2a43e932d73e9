"""Atomic writes: whatever kills the process, a file is either the old one or the complete new one."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """Opens a temporary file next to `path` and renames it to `path` when the block ends without an error.

    The bytes are flushed to disk (fsync) before the rename. Parent folders are created. If the block raises, the
    temporary file is removed and `path` stays as it was.

    Raises:
        OSError: no space or no permission; the text names `path` and the remedy.
    """
    target = Path(path)
    temporary = None
    try:
        with explaining_write_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            encoding = None if "b" in mode else "utf-8"
            with tempfile.NamedTemporaryFile(
                mode, dir=target.parent, prefix=f".{target.name}.", suffix=".part", delete=False, encoding=encoding
            ) as stream:
                temporary = Path(stream.name)
                yield stream
            put_in_place(temporary, target)
            temporary = None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


@contextlib.contextmanager
def explaining_write_errors(target: Path) -> Iterator[None]:
    """Rewords an OSError about `target`, or about a file written next to it, to name `target` and a remedy."""
    try:
        yield
    except OSError as error:
        own = target.absolute().parents[:2]  # tempfile reports absolute paths
        if error.filename is not None and Path(error.filename).absolute().parent not in own:
            raise  # about another file that the block uses
        reason = error.strerror or str(error)
        raise type(error)(
            error.errno,
            f"cannot write {target}: {reason}. Free some space or choose a folder that you may write to",
        ) from error


def put_in_place(temporary: Path, target: Path) -> None:
    """Flushes a file written next to `target` to disk and renames it to `target`."""
    descriptor = os.open(temporary, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.chmod(temporary, 0o666 & ~_umask())  # tempfile's files are private; `target` gets ordinary permissions
    os.replace(temporary, target)
    _sync_folder(target.parent)


def write_atomically(path: str | os.PathLike, data: bytes | str) -> None:
    """Writes `data` (text as UTF-8) to `path`, with the guarantees of `replacing`."""
    with replacing(path, "w" if isinstance(data, str) else "wb") as stream:
        stream.write(data)


class ForeignFolderError(OSError):
    """A folder holds files that this program did not write, or that were changed since."""


def write_folder(folder: str | os.PathLike, files: Mapping[str, bytes | str], marker: str) -> Path:
    """Writes files, and a file `marker` with their digests, into a folder; returns the folder.

    A new folder appears complete or not at all. In a folder written earlier, recognised by its marker, each file is
    replaced atomically; other files there (a build) stay.

    Raises:
        ForeignFolderError: the folder is not empty and has no marker, or a file to be replaced was changed.
        OSError: as in `replacing`.
    """
    target = Path(folder)
    contents = {name: data.encode() if isinstance(data, str) else data for name, data in files.items()}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    marked = json.dumps({"files": digests}, indent=1).encode() + b"\n"
    check_folder(target, marker, digests)
    if target.exists() and any(target.iterdir()):
        for name, data in {**contents, marker: marked}.items():
            write_atomically(target / name, data)
        return target
    with explaining_write_errors(target):
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=target.absolute().parent, prefix=f".{target.name}.", suffix=".part"
        ) as new:
            inside = Path(new, "folder")
            for name, data in {**contents, marker: marked}.items():
                write_atomically(inside / name, data)
            os.replace(inside, target)  # replaces an empty folder, too
        _sync_folder(target.absolute().parent)
    return target


def check_folder(folder: str | os.PathLike, marker: str, digests: Mapping[str, str] | None = None) -> None:
    """Raises ForeignFolderError if `write_folder` would for files of these digests; None checks the marker only."""
    folder = Path(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        before = dict(json.loads((folder / marker).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ForeignFolderError(
            f"{folder} is not empty and holds no {marker}: it was not written by this program. Choose another folder"
        ) from error
    for name in digests or ():
        file = folder / name
        found = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
        if found is not None and found not in (before.get(name), (digests or {})[name]):
            raise ForeignFolderError(
                f"{file} was changed after it was written, and the changes would be lost. Choose another folder, or "
                "delete the file"
            )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Flushes a rename to disk. On file systems that cannot do that, a crash may undo the last write."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
