"""Files that are either the old one or the whole new one, whatever kills the process."""

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
    """Opens a temporary file beside `path` and renames it over `path` when the block ends without an error.

    The bytes are on the disk (fsync) before the rename. Parent folders are made. If the block raises, the temporary
    file is removed and `path` stays as it was.

    Raises:
        OSError: no room, no permission; its text names `path` and what to do.
    """
    target = Path(path)
    temporary = None
    try:
        with naming(target):
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
def naming(target: Path) -> Iterator[None]:
    """Lets an OSError about `target`, or about what is written beside it, say so with a remedy."""
    try:
        yield
    except OSError as error:
        own = target.absolute().parents[:2]  # tempfile names its files by whole paths
        if error.filename is not None and Path(error.filename).absolute().parent not in own:
            raise  # the block's own business with another file
        reason = error.strerror or str(error)
        raise type(error)(
            error.errno,
            f"cannot write {target}: {reason}. Free some space or choose a folder that you may write to",
        ) from error


def put_in_place(temporary: Path, target: Path) -> None:
    """Renames a file that was written beside `target` over it, once its bytes are on the disk."""
    descriptor = os.open(temporary, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.chmod(temporary, 0o666 & ~_umask())  # a temporary file is private; the file that it becomes need not be
    os.replace(temporary, target)
    _sync_folder(target.parent)


def write_atomically(path: str | os.PathLike, data: bytes | str) -> None:
    """Writes `data` (text as UTF-8) to `path`; see `replacing` for what that promises."""
    with replacing(path, "w" if isinstance(data, str) else "wb") as stream:
        stream.write(data)


class ForeignFolderError(OSError):
    """A folder holds files that the program did not write, or that somebody has changed since."""


def write_folder(folder: str | os.PathLike, files: Mapping[str, bytes | str], marker: str) -> Path:
    """Writes files into a folder, and their digests into its file `marker`; returns the folder.

    A new folder appears with all files in it, or not at all. In one that was written before, which its marker shows,
    each file is replaced as a whole; what else is there (a build) stays.

    Raises:
        ForeignFolderError: the folder is not empty and has no marker, or a file that would be replaced was changed.
        OSError: as `replacing`.
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
    with naming(target):
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=target.absolute().parent, prefix=f".{target.name}.", suffix=".part"
        ) as new:
            inside = Path(new, "folder")
            for name, data in {**contents, marker: marked}.items():
                write_atomically(inside / name, data)
            os.replace(inside, target)  # over an empty folder, too
        _sync_folder(target.absolute().parent)
    return target


def check_folder(folder: str | os.PathLike, marker: str, digests: Mapping[str, str] | None = None) -> None:
    """Raises ForeignFolderError where `write_folder` would, with files of these digests; None looks for the marker."""
    folder = Path(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        before = json.loads((folder / marker).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ForeignFolderError(
            f"{folder} is not empty and holds no {marker}: it was not written by this program. Give another folder"
        ) from error
    for name in digests or ():
        file = folder / name
        found = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
        if found is not None and found not in (before.get(name), (digests or {})[name]):
            raise ForeignFolderError(
                f"{file} was changed after it was written, and would be lost. Give another folder, or delete that file"
            )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Puts the rename itself on the disk; some file systems cannot, which costs only the last write after a crash."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
