"""The files of a data set as its owner published them: a folder, or zip and tar archives read without unpacking.

Archives that lie in the folder count as if they were unpacked there. A member is read by byte range, so many workers
read one archive at once, from any storage.
"""

import io
import tarfile
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from distuda import storage
from distuda.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
ARCHIVES = (".zip", ".tar")
SEQUENTIAL = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".rar", ".7z")
"""Archives that can only be read from their beginning, or not at all; users have to unpack or repack them."""

Packing = Literal["whole", "tar", "zip_stored", "zip_deflated"]
_ZIP_PACKING: dict[int, Packing] = {zipfile.ZIP_STORED: "zip_stored", zipfile.ZIP_DEFLATED: "zip_deflated"}

_LOCAL_HEADER = 30  # fixed part of a zip member's own header; its name and extra field follow
_EXTRA_GUESS = 256


@dataclass(frozen=True)
class File:
    """Bytes of a source: a whole file, or one member of an archive.

    Attributes:
        uri: of the file or of the archive.
        member: path in the archive; empty for a whole file.
        start, size: where the member begins in the archive and its stored bytes; for a zip, at its own header.
        packing: how a member is stored.
        crc: of a zip member's content.
    """

    uri: str
    member: str = ""
    start: int = 0
    size: int = 0
    packing: Packing = "whole"
    crc: int = 0

    def __str__(self) -> str:
        return f"{self.uri}!{self.member}" if self.member else self.uri

    def read(self) -> bytes:
        """The content.

        Raises:
            UserError: missing, unreadable or damaged; the message names the file.
        """
        if self.packing == "whole":
            return storage.read_bytes(self.uri)
        if self.packing == "tar":
            return self._exactly(storage.read_range(self.uri, self.start, self.start + self.size))
        content = self._stored()
        try:
            plain = zlib.decompress(content, -zlib.MAX_WBITS) if self.packing == "zip_deflated" else content
        except zlib.error as error:
            raise UserError(f"{str(self)!r} is damaged ({error}). Download the archive again.") from error
        if zlib.crc32(plain) != self.crc:
            raise UserError(f"{str(self)!r} is damaged (checksum). Download the archive again.")
        return plain

    def _stored(self) -> bytes:
        """A zip member's bytes as they lie in the archive, mostly with one request."""
        head = _LOCAL_HEADER + len(self.member.encode()) + _EXTRA_GUESS
        content = storage.read_range(self.uri, self.start, self.start + head + self.size)
        if content[:4] != b"PK\x03\x04":
            raise UserError(f"{str(self)!r} is damaged (no header). Download the archive again.")
        skip = _LOCAL_HEADER + int.from_bytes(content[26:28], "little") + int.from_bytes(content[28:30], "little")
        if skip > head:
            return self._exactly(storage.read_range(self.uri, self.start + skip, self.start + skip + self.size))
        return self._exactly(content[skip : skip + self.size])

    def _exactly(self, content: bytes) -> bytes:
        if len(content) != self.size:
            raise UserError(f"{str(self)!r} is cut off: {len(content)} of {self.size} bytes. Download it again.")
        return content


class Tree:
    """Files below a URI by their relative paths.

    Args:
        uri: a folder, which may hold archives, one archive, or one video; any fsspec URI.

    Raises:
        UserError: nothing is there, or an archive that cannot be read.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._prefix = ""
        if uri.lower().endswith(SEQUENTIAL):
            raise UserError(f"{uri!r} cannot be read piece by piece. Unpack it, or repack it as .zip or .tar.")
        self._folder = None if uri.lower().endswith(ARCHIVES + VIDEO_SUFFIXES) else uri
        self._indices = [_Index(uri)] if self._folder is None else [_Index(found) for found in _archives(uri)]

    def at(self, path: str) -> "Tree":
        """The tree below a relative path, whether it is there or not."""
        below = Tree.__new__(Tree)
        below.uri, below._folder, below._indices = storage.join(self.uri, path), self._folder, self._indices
        below._prefix = f"{self._prefix}{path.strip('/')}/" if path.strip("/") else self._prefix
        return below

    def root(self, marker: str, candidates: Sequence[str] = ()) -> "Tree":
        """This tree, or the first candidate folder in it, that holds ``marker``; this tree where none does."""
        for place in ("", *candidates):
            if self.at(place).has(marker):
                return self.at(place)
        return self

    def has(self, path: str) -> bool:
        """Whether a file or a folder with files is at a relative path."""
        where = self._prefix + path.strip("/")
        if self._folder is not None and storage.exists(storage.join(self._folder, where)):
            return True
        return any(index.has(where) for index in self._indices)

    def file(self, path: str) -> File | None:
        """The file at a relative path; None where there is none."""
        where = self._prefix + path.strip("/")
        if self._folder is not None and storage.is_file(storage.join(self._folder, where)):
            return File(storage.join(self._folder, where))
        return next((index.files[where] for index in self._indices if where in index.files), None)

    def find(self, folder: str = "", suffixes: Sequence[str] = IMAGE_SUFFIXES) -> dict[str, File]:
        """Path below ``folder``, suffix included -> file, sorted by path; a file beside an archive hides its member.

        Args:
            folder: relative path; a missing one gives an empty result.
            suffixes: endings wanted, lower case.
        """
        base = self._prefix + (f"{folder.strip('/')}/" if folder.strip("/") else "")
        found: dict[str, File] = {}
        for index in self._indices:
            found.update((path[len(base) :], file) for path, file in index.below(base))
        if self._folder is not None:
            found.update(_loose(self._folder, base))
        wanted = (path for path in sorted(found) if path.lower().endswith(tuple(suffixes)) and not _is_junk(path))
        return {path: found[path] for path in wanted}


@dataclass(frozen=True)
class _Index:
    """What lies in an archive, read when first asked; a video counts as an archive of itself."""

    uri: str

    @cached_property
    def files(self) -> dict[str, File]:
        """Member path -> where it lies, sorted."""
        if self.uri.lower().endswith(VIDEO_SUFFIXES):
            return {self.uri.rsplit("/", 1)[-1]: File(self.uri)}
        fs, path = storage.filesystem(self.uri)
        list_members = _zip_members if self.uri.lower().endswith(".zip") else _tar_members
        try:
            with fs.open(path, "rb") as raw:
                return {file.member: file for file in sorted(list_members(self.uri, raw), key=lambda f: f.member)}
        except FileNotFoundError as error:
            raise UserError(f"no archive at {self.uri!r}. Check the path.") from error
        except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            raise UserError(f"{self.uri!r} is no readable archive ({error}). Download it again.") from error

    @cached_property
    def _names(self) -> list[str]:
        return list(self.files)

    def below(self, base: str) -> Iterator[tuple[str, File]]:
        """Members whose path begins with ``base``."""
        for name in self._names[bisect_left(self._names, base) :]:
            if not name.startswith(base):
                return
            yield name, self.files[name]

    def has(self, path: str) -> bool:
        return path in self.files or next(self.below(f"{path}/" if path else ""), None) is not None


def _archives(uri: str) -> list[str]:
    """Archives that lie directly in a folder."""
    fs, path = storage.filesystem(uri)
    if fs.isfile(path):
        raise UserError(f"{uri!r} is a file. Give the folder it lies in, or a {' or '.join(ARCHIVES)} archive.")
    return [storage.join(uri, name) for name in storage.list_folder(uri) if name.lower().endswith(ARCHIVES)]


def _loose(uri: str, base: str) -> Iterator[tuple[str, File]]:
    """Files of a folder below ``base``, which ends in a slash or is empty."""
    fs, root = storage.filesystem(uri)
    start = f"{root.rstrip('/')}/{base}".rstrip("/")
    for path in fs.find(start) if fs.isdir(start) else []:
        below = str(path)[len(start) + 1 :]
        yield below, File(storage.join(uri, base, below))


def _is_junk(path: str) -> bool:
    """Files that operating systems leave in folders and archives."""
    parts = path.split("/")
    return "__MACOSX" in parts or parts[-1].startswith("._")


def _zip_members(uri: str, raw: io.BufferedIOBase) -> Iterator[File]:
    with zipfile.ZipFile(raw) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if info.compress_type not in _ZIP_PACKING or info.flag_bits & 1:
                raise UserError(f"{uri!r}: {info.filename!r} is encrypted or packed unusually. Unpack the archive.")
            place = File(uri, info.filename, info.header_offset, info.compress_size, crc=info.CRC)
            yield replace(place, packing=_ZIP_PACKING[info.compress_type])


def _tar_members(uri: str, raw: io.BufferedIOBase) -> Iterator[File]:
    with tarfile.open(fileobj=raw, mode="r:") as archive:
        for info in archive:
            if info.isfile():
                yield File(uri, info.name.removeprefix("./"), info.offset_data, info.size, "tar")
