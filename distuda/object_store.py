"""S3 by pyarrow's own client, in the shape of an fsspec filesystem.

Bucket and key come from the URI; endpoint, region and credentials only from where AWS tools look for them. Errors are
never taken for absence: what cannot be asked raises, so that an outage does not look like an empty folder.
"""

import configparser
import ctypes
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from fsspec.implementations.arrow import ArrowFSWrapper

from distuda.errors import UserError
from distuda.outage import persist

SILENCE_S = 10.0
"""Seconds without a single byte after which a request is taken for lost; slow transfers are never cut.

curl looks at the mean of the last five seconds, so a transfer that falls silent is noticed up to five seconds later."""

CONNECT_S = 5.0

ATTEMPTS = 2
"""How often pyarrow's client tries one request; longer troubles are `outage.persist`'s."""

_PIECE_BYTES = 64 * 2**20
_MAX_FILES = 4096


def connect(bucket: str) -> "S3":
    """The filesystem for a bucket, made once for the same environment."""
    return _connect(bucket, tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))))


@lru_cache(maxsize=32)
def _connect(bucket: str, environment: tuple[tuple[str, str], ...]) -> "S3":
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem  # takes a second to import

    options: dict[str, Any] = _endpoint()
    if authority := os.environ.get("AWS_CA_BUNDLE"):
        options["tls_ca_file_path"] = authority
    return S3(
        S3FileSystem(
            **options,
            region=_region(bucket, own_service="endpoint_override" in options),
            request_timeout=SILENCE_S,
            connect_timeout=CONNECT_S,
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
            allow_delayed_open=True,  # one request for a small file instead of three
            background_writes=False,  # a shard is sent piece by piece, never held in memory
        )
    )


def _endpoint() -> dict[str, str]:
    """Scheme and host of an S3 service that is not AWS; pyarrow does not look for it itself."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    name = next((name for name in names if os.environ.get(name)), "endpoint_url")
    url = os.environ.get(name) or _profile().get("endpoint_url", "")
    if not url:
        return {}
    scheme, mark, host = url.rstrip("/").partition("://")
    if scheme not in ("http", "https") or not mark or not host or "@" in host or "/" in host:
        raise UserError(
            f"{name} is no address of an S3 service. Give scheme and host, for example https://storage.example.org:9000."
        )
    return {"scheme": scheme, "endpoint_override": host}


def _region(bucket: str, own_service: bool) -> str | None:
    """The region to sign for: as configured, else that of the bucket; other services than AWS take any."""
    configured = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or _profile().get("region")
    if configured or own_service:
        return configured or "us-east-1"
    from pyarrow.fs import resolve_s3_region

    return str(persist(f"s3://{bucket}", lambda: resolve_s3_region(bucket)))


def _profile() -> dict[str, str]:
    """The chosen profile's section of the AWS configuration file."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(Path(os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config").expanduser())
    name = os.environ.get("AWS_PROFILE") or "default"
    section = next((s for s in (f"profile {name}", name) if config.has_section(s)), None)
    return dict(config[section]) if section else {}


class S3(ArrowFSWrapper):
    """One bucket's filesystem.

    fsspec's wrapper of pyarrow is followed except where it takes errors for absence (`isfile`, `isdir`, `find`), reads
    in many small requests or leaves half an upload behind.
    """

    cachable = False

    def __init__(self, fs: Any) -> None:
        super().__init__(fs)
        self._files: dict[str, Any] = {}
        self._known_buckets: set[str] = set()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        """Bucket and key; keys may hold any sign."""
        return str(path).split("://", 1)[-1].rstrip("/")

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Name, size in bytes and type; `FileNotFoundError` only where the bucket exists."""
        path = self._strip_protocol(path)
        try:
            return dict(super().info(path))
        except FileNotFoundError:
            self._require_bucket(path.split("/")[0])
            raise

    def _require_bucket(self, bucket: str) -> None:
        if bucket in self._known_buckets:
            return
        try:
            super().info(bucket)
        except FileNotFoundError as error:
            raise OSError(f"AWS Error NO_SUCH_BUCKET: {bucket}") from error
        except OSError as error:
            if "ACCESS_DENIED" not in str(error):  # rights to a prefix only; the bucket is there
                raise
        self._known_buckets.add(bucket)

    def isfile(self, path: str) -> bool:
        """Whether an object is there."""
        return self._kind(path) == "file"

    def isdir(self, path: str) -> bool:
        """Whether there are objects below."""
        return self._kind(path) == "directory"

    def _kind(self, path: str) -> str:
        try:
            return str(self.info(path)["type"])
        except FileNotFoundError:
            return "missing"

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        """All objects below a path by one recursive listing, sorted; the object itself if it is one."""
        from pyarrow.fs import FileSelector, FileType

        root = self._strip_protocol(path)
        entries = self.fs.get_file_info(FileSelector(root, allow_not_found=True, recursive=True))
        entries = entries or [entry for entry in self.fs.get_file_info([root]) if entry.type == FileType.File]
        depth = root.count("/") + (maxdepth or 0)
        wanted = {
            entry.path: self._make_entry(entry)
            for entry in sorted(entries, key=lambda entry: str(entry.path))
            if (withdirs or entry.type == FileType.File) and (maxdepth is None or entry.path.count("/") <= depth)
        }
        return wanted if detail else list(wanted)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """The object, or bytes ``start`` to ``end - 1`` of one that does not change, fewer where it ends before.

        What was learned of an object at its first range (its size) saves a request at each later one.
        """
        path = self._strip_protocol(path)
        if start is None and end is None:
            with self.fs.open_input_file(path) as stream:
                return bytes(stream.read())
        stream = self.open_native(path)
        low, high, _step = slice(start, end).indices(stream.size())
        return bytes(stream.read_at(max(0, high - low), low)) if high > low else b""

    def open_native(self, path: str) -> Any:
        """A file of pyarrow's own, for its readers: they fetch many ranges at once without Python in between.

        Of objects that do not change. It holds no connection and is shared, so it is not to be closed.
        """
        path = self._strip_protocol(path)
        file = self._files.get(path)
        if file is None:
            if len(self._files) >= _MAX_FILES:
                self._files.clear()
            file = self._files[path] = self.fs.open_input_file(path)
        return file

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget what was learned of all objects, or of those at and below a path."""
        for known in list(self._files):
            if path is None or f"{known}/".startswith(f"{path}/"):
                self._files.pop(known, None)

    def pipe_file(self, path: str, value: Any, mode: str = "overwrite", **_: Any) -> None:
        """Write an object."""
        view = memoryview(value)
        self._upload(path, (view[at : at + _PIECE_BYTES] for at in range(0, len(view), _PIECE_BYTES)))

    def put_file(self, lpath: str, rpath: str, callback: Any = None, mode: str = "overwrite", **_: Any) -> None:
        """Write an object from a local file, in pieces."""
        with open(lpath, "rb") as file:
            self._upload(rpath, _pieces(file))

    def _upload(self, path: str, pieces: Iterable[Any]) -> None:
        """The object appears when all of it has arrived."""
        path = self._strip_protocol(path)
        self.invalidate_cache(path)
        stream = self.fs.open_output_stream(path, compression=None)
        try:
            for piece in pieces:
                stream.write(piece)
            stream.close()
        except BaseException:
            _abandon(stream)
            raise

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove an object or all below a path; what is gone already is no error, so it may be tried again."""
        path = self._strip_protocol(path)
        self.invalidate_cache(path)
        try:
            if self.isdir(path):
                self.fs.delete_dir(path)
            else:
                self.fs.delete_file(path)
        except FileNotFoundError:
            return


def _abandon(stream: Any) -> None:
    """Keep a failed upload for ever.

    pyarrow cannot abort one: when such a stream is collected it sends what it has, and an empty or cut object appears.
    One reference too many keeps it from that, at the price of what it had buffered (some megabytes at most).
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(stream))


def _pieces(file: Any) -> Iterator[bytes]:
    while piece := file.read(_PIECE_BYTES):
        yield piece
