"""Files on any fsspec URI, written whole or not at all."""

import os
import uuid
from pathlib import Path
from typing import Any

import fsspec

from distuda.errors import UserError


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URI and the path inside it; a bare path is local."""
    try:
        return fsspec.core.url_to_fs(os.path.expanduser(uri))
    except (ValueError, ImportError) as error:
        raise UserError(
            f"cannot open {uri!r}: {error}. Use a local path or a URI whose fsspec package is installed."
        ) from error


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
    fs, path = filesystem(uri)
    try:
        return bytes(fs.cat_file(path))
    except FileNotFoundError as error:
        raise UserError(f"no file at {uri!r}. Check the path and that this machine can reach the storage.") from error
    except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"cannot read {uri!r}: {error}. Give a file that this user may read.") from error


def read_range(uri: str, start: int, end: int) -> bytes:
    """Bytes ``start`` to ``end - 1``, fewer where the file ends before; errors as in `read_bytes`."""
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
    except (PermissionError, NotADirectoryError, FileExistsError, OSError) as error:
        raise UserError(f"cannot write {uri!r}: {error}. Choose a folder this user may write to.") from error


def remove(uri: str) -> None:
    """Remove a file or a folder with all it holds; nothing happens when it is missing."""
    fs, path = filesystem(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)
