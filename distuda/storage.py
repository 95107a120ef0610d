"""Files on any fsspec URI, written whole or not at all."""

import io
import os
import re
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from distuda.errors import UserError
from distuda.object_store import connect
from distuda.outage import Unreachable, persist

Result = TypeVar("Result")


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URI and the path inside it; a bare path is local.

    Calls on remote ones are tried again while the storage is away (`outage.persist`).

    Raises:
        UserError: an unknown protocol, or credentials in the URI.
    """
    _require_no_secret(uri)
    if uri.startswith("s3://"):
        return Lasting(uri, connect(_bucket(uri))), uri.removeprefix("s3://").rstrip("/")
    try:
        fs, path = fsspec.core.url_to_fs(os.path.expanduser(uri))
    except (ValueError, ImportError) as error:
        raise UserError(
            f"cannot open {uri!r}: {error}. Use a local path or a URI whose fsspec package is installed."
        ) from error
    return fs if is_local(uri) else Lasting(uri, fs), path


class Lasting:
    """A remote fsspec filesystem that outlasts its storage's troubles.

    Every call is made again until it succeeds or is refused, and files opened for reading read on after a lost
    connection. Whether a path is there is asked by `info`, since fsspec's own questions take any error for a no.

    Args:
        uri: one on that storage.
        fs: the filesystem.
    """

    def __init__(self, uri: str, fs: Any) -> None:
        self._uri, self._fs = uri, fs

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._fs, name)
        return partial(self._call, value) if callable(value) else value

    def _call(self, method: Callable[..., Result], *args: Any, **options: Any) -> Result:
        return persist(self._uri, partial(method, *args, **options))

    def exists(self, path: str) -> bool:
        """Whether a file or folder is there."""
        return self._kind(path) is not None

    def isfile(self, path: str) -> bool:
        """Whether a file is there."""
        return self._kind(path) == "file"

    def isdir(self, path: str) -> bool:
        """Whether a folder is there."""
        return self._kind(path) == "directory"

    def _kind(self, path: str) -> str | None:
        try:
            return str(self.info(path)["type"])
        except FileNotFoundError:
            return None

    def open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        """A seekable file for reading; files are written whole, by ``pipe_file`` and ``put_file``."""
        if mode != "rb":
            raise ValueError(f"remote files are opened for reading only, not {mode!r}")
        return io.BufferedReader(_Ranges(self, path), _BUFFER_BYTES)


class _Ranges(io.RawIOBase):
    """A remote file as byte ranges, each a call of its own that lasts."""

    def __init__(self, fs: Lasting, path: str) -> None:
        self._fs, self._path, self._at = fs, path, 0
        info = fs.info(path)
        if info["type"] != "file":
            raise IsADirectoryError(f"{path} is a folder")
        self._size = int(info["size"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from here on by one ranged request; gives the number of bytes, 0 at the end."""
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        content = self._fs.cat_file(self._path, start=self._at, end=end)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def native(uri: str) -> Any:
    """A remote file for pyarrow's readers, to be used within `outage.persist`; it needs no closing."""
    fs, path = filesystem(uri)
    return fs.open_native(path) if uri.startswith("s3://") else fs.open(path, "rb")


_BUFFER_BYTES = 64 * 2**10

_SECRET = re.compile(r"://[^/]*:[^/]*@|\bs3a?://[^/]*@|[?&](secret|access|session)_\w*=", re.IGNORECASE)


def _require_no_secret(uri: str) -> None:
    """A URI travels into recipes, logs and manifests."""
    if "://" in uri and _SECRET.search(uri):
        raise UserError(
            f"a URI that begins with {uri.split('://')[0]}:// holds credentials. Take them out of it and give them by "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), by a profile file or by the machine's role."
        )


def _bucket(uri: str) -> str:
    bucket = uri.removeprefix("s3://").split("/")[0]
    if not bucket:
        raise UserError(f"{uri!r} names no bucket. Write s3://BUCKET/PATH.")
    return bucket


def is_local(uri: str) -> bool:
    """Whether a URI names a path of this machine."""
    return "://" not in uri or uri.startswith("file://")


def join(uri: str, *parts: str) -> str:
    """Parts appended to a URI with single slashes; empty parts are left out."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts if part.strip("/"))])


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def is_file(uri: str) -> bool:
    """Whether a file, not a folder, is there."""
    fs, path = filesystem(uri)
    return bool(fs.isfile(path))


def list_folder(uri: str) -> list[str]:
    """Base names of the entries of a folder, sorted; empty when the folder is missing."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    if not fs.exists(path):
        return []
    return sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))


def read_bytes(uri: str) -> bytes:
    """The whole file; a missing file is the user's error and names the URI."""
    return _read(uri, None, None)


def read_range(uri: str, start: int, end: int) -> bytes:
    """Bytes ``start`` to ``end - 1``, fewer where the file ends before; errors as in `read_bytes`."""
    return _read(uri, start, end)


def _read(uri: str, start: int | None, end: int | None) -> bytes:
    fs, path = filesystem(uri)
    try:
        return bytes(fs.cat_file(path, start=start, end=end))
    except FileNotFoundError as error:
        raise UserError(f"no file at {uri!r}. Check the path and that this machine can reach the storage.") from error
    except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"cannot read {uri!r}: {error}. Give a file that this user may read.") from error


def write_bytes(uri: str, content: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part."""
    fs, path = filesystem(uri)
    try:
        if is_local(uri):
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
            try:
                part.write_bytes(content)
                os.replace(part, target)
            finally:
                part.unlink(missing_ok=True)
        else:  # object stores show an object only once its upload is complete
            fs.pipe_file(path, content)
    except Unreachable:
        raise
    except OSError as error:
        raise UserError(f"cannot write {uri!r}: {error}. Choose a folder this user may write to.") from error


def write_file(local: Path, uri: str) -> None:
    """Copy a file of this machine to remote storage, where it appears whole or not at all."""
    fs, path = filesystem(uri)
    fs.put_file(str(local), path)


def remove(uri: str) -> None:
    """Remove a file or a folder with all it holds; nothing happens when it is missing."""
    fs, path = filesystem(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def remove_parts(uri: str) -> None:
    """Clear away what killed processes left half-written in a folder of this machine; nobody may be writing there."""
    if is_local(uri):
        for part in Path(filesystem(uri)[1]).glob(".*.part"):
            part.unlink(missing_ok=True)
