"""S3 with a real server: the same bytes as from a disk through every fault of a network, and no secret anywhere."""

import gc
import logging
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import psutil
import pytest
import torch
from data_trees import TABLE as TREE_TABLE
from data_trees import samples, write_camvid
from s3_server import BUCKET, CLOSED_BUCKET, READER, READER_SECRET, SECRET, Proxy
from settings import tiny_recipe

from distuda import object_store, outage, storage
from distuda.data.batch import Batch
from distuda.data.dataset import Dataset, open_dataset
from distuda.data.order import Order
from distuda.data.prepare import prepare
from distuda.data.reader import read_batches
from distuda.data.shards import write_shards
from distuda.data.source import Tree
from distuda.engine.checkpoint import Checkpoints
from distuda.engine.loop import fit, settle
from distuda.engine.run import open_run, read_rows
from distuda.errors import UserError

CONTENT = bytes(range(256)) * 2000
OPTIONS = {"batch_size": 3, "size": (10, 14), "region": (6, 8), "columns": ("label",)}


@pytest.fixture
def uri(s3: Proxy, request: pytest.FixtureRequest) -> str:
    """A folder of this test's own."""
    return f"s3://{BUCKET}/{request.node.name.replace('[', '-').rstrip(']')}"


@pytest.fixture(scope="module")
def sets(s3_server: Proxy, tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    """The same shards on S3 and on the disk."""
    s3_server.reset()
    folder = str(tmp_path_factory.mktemp("sets") / "set")
    for where in (f"s3://{BUCKET}/set", folder):
        write_shards(samples(13), where, TREE_TABLE, row_group_bytes=2000, shard_samples=5)
    return open_dataset(f"s3://{BUCKET}/set"), open_dataset(folder)


def order(data: Dataset) -> Order:
    return Order(data.rows_per_group, seed=3, domain="source", window=2)


def same(first: Iterator[Batch], second: Iterator[Batch], count: int) -> None:
    for a, b in islice(zip(first, second, strict=False), count):
        assert a.keys == b.keys and torch.equal(a.seed_B, b.seed_B) and torch.equal(a.image_BCHW, b.image_BCHW)
        assert a.label_BHW is not None and b.label_BHW is not None and torch.equal(a.label_BHW, b.label_BHW)
    first.close()  # type: ignore[attr-defined]
    second.close()  # type: ignore[attr-defined]


def test_every_question_to_storage(uri: str, tmp_path: Path) -> None:
    assert storage.list_folder(uri) == [] and not storage.exists(uri)
    storage.remove(uri)
    for name in ("b", "a #1?x=%41", "sub/c"):
        storage.write_bytes(storage.join(uri, name), name.encode())
    assert storage.list_folder(uri) == ["a #1?x=%41", "b", "sub"]
    assert storage.read_bytes(storage.join(uri, "a #1?x=%41")) == b"a #1?x=%41"
    assert storage.read_range(storage.join(uri, "sub/c"), 2, 4) == b"b/"
    assert storage.read_range(storage.join(uri, "sub/c"), 3, 99) == b"/c"
    assert storage.read_range(storage.join(uri, "sub/c"), 9, 99) == b""
    assert storage.is_file(storage.join(uri, "b")) and not storage.is_file(storage.join(uri, "sub"))
    fs, path = storage.filesystem(uri + "/")
    assert fs.isdir(f"{path}/sub") and not fs.isdir(f"{path}/b") and not fs.isdir(f"{path}/missing")
    assert fs.info(f"{path}/sub/c")["size"] == 5 and fs.find(f"{path}/missing") == []
    assert [found.removeprefix(f"{path}/") for found in fs.find(path)] == ["a #1?x=%41", "b", "sub/c"]
    assert storage.read_range(storage.join(uri, "b"), 0, 99) == b"b"
    storage.write_bytes(storage.join(uri, "b"), b"longer than before")
    assert storage.read_range(storage.join(uri, "b"), 0, 99) == b"longer than before"
    assert storage.read_bytes(storage.join(uri, "b")) == b"longer than before"
    storage.write_bytes(storage.join(uri, "empty"), b"")
    assert storage.read_bytes(storage.join(uri, "empty")) == b""
    (tmp_path / "file").write_bytes(CONTENT)
    storage.write_file(tmp_path / "file", storage.join(uri, "file"))
    with fs.open(f"{path}/file") as file:
        file.seek(-300, 2)
        assert file.read(10) == CONTENT[-300:-290] and file.tell() == len(CONTENT) - 290
        file.seek(0)
        assert file.read() == CONTENT
    storage.remove(uri)
    assert storage.list_folder(uri) == [] and not storage.exists(storage.join(uri, "sub/c"))
    with pytest.raises(UserError, match="no file at"):
        storage.read_bytes(storage.join(uri, "b"))


def test_how_many_requests_it_takes(uri: str, s3: Proxy, sets: tuple[Dataset, Dataset]) -> None:
    storage.write_bytes(storage.join(uri, "x"), b"content")
    assert len(s3.requests) == 1
    sets[0].read_group(0)
    s3.requests.clear()
    storage.write_bytes(storage.join(uri, "x"), b"other content")
    sets[0].read_group(0)
    assert [request.split()[0] for request in s3.requests] == ["PUT", "GET"]


def test_prepare_from_and_to_s3_equals_the_disk(uri: str, tmp_path: Path) -> None:
    write_camvid(tmp_path / "camvid", "train", [f"0006R0_f{i:05d}" for i in range(5)])
    with zipfile.ZipFile(tmp_path / "camvid.zip", "w") as archive:
        for file in sorted((tmp_path / "camvid").rglob("*")):
            if file.is_file():
                name = file.relative_to(tmp_path / "camvid")
                archive.write(file, name)
                storage.write_file(file, storage.join(uri, "folder", str(name)))
    storage.write_file(tmp_path / "camvid.zip", storage.join(uri, "camvid.zip"))
    local = prepare("camvid", str(tmp_path / "camvid"), str(tmp_path / "local"), shard_samples=2)
    for source in ("folder", "camvid.zip"):
        remote = prepare("camvid", storage.join(uri, source), storage.join(uri, f"from-{source}"), shard_samples=2)
        assert remote.manifest.content_hash == local.manifest.content_hash
        assert storage.list_folder(remote.uri) == storage.list_folder(local.uri)
    assert open_dataset(remote.uri).index.equals(open_dataset(local.uri).index)


def test_batches_equal_those_from_the_disk(sets: tuple[Dataset, Dataset], s3: Proxy) -> None:
    remote, local = sets
    same(read_batches(remote, order(remote), **OPTIONS), read_batches(local, order(local), **OPTIONS), 12)  # type: ignore[arg-type]


def test_streamed_batches_equal_those_from_the_disk(
    sets: tuple[Dataset, Dataset], s3: Proxy, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distuda.data import stream

    monkeypatch.setattr(stream, "STRETCH", 5)
    monkeypatch.setattr(stream, "LEAD", 2)
    remote, local = sets
    s3.spoil("busy", times=2, method="GET")
    same(stream.stream_batches(remote, order(remote), **OPTIONS), read_batches(local, order(local), **OPTIONS), 12)  # type: ignore[arg-type]
    assert s3.spoiled  # Ray's processes did the reading, with this process's environment


@pytest.mark.parametrize("fault", ["busy", "cut", "stall"])
def test_reads_survive(fault: str, uri: str, s3: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "SILENCE_S", 1.0)
    object_store._connect.cache_clear()
    storage.write_bytes(storage.join(uri, "x"), CONTENT)
    times = 1 if fault == "stall" else object_store.ATTEMPTS + 1  # more than pyarrow's client tries by itself
    s3.spoil(fault, times=times, method="GET")
    assert storage.read_bytes(storage.join(uri, "x")) == CONTENT
    s3.spoil(fault, times=times, method="GET")
    assert storage.read_range(storage.join(uri, "x"), 1000, 300_000) == CONTENT[1000:300_000]
    assert len(s3.spoiled) == 2 * times and not s3.faults
    object_store._connect.cache_clear()


@pytest.mark.parametrize("fault", ["busy", "cut"])
@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_writes_survive_and_never_leave_a_part(fault: str, method: str, uri: str, s3: Proxy) -> None:
    """PUT: a small file, and parts of a large one; POST: the begin and the end of a large one's upload."""
    large = CONTENT * 24 if method == "POST" else CONTENT
    at = storage.join(uri, "x")
    s3.spoil(fault, times=object_store.ATTEMPTS, method=method)
    fs, path = storage.filesystem(at)
    with pytest.raises(OSError, match="AWS Error"):
        fs._fs.pipe_file(path, large)
    gc.collect()  # pyarrow would now send an empty object for the upload that failed
    assert not storage.exists(at)
    s3.spoil(fault, times=object_store.ATTEMPTS + 1, method=method)
    storage.write_bytes(at, large)
    assert storage.read_bytes(at) == large and not s3.faults


def test_an_upload_that_failed_stays_away_when_the_process_ends(uri: str, s3: Proxy) -> None:
    s3.spoil("busy", times=object_store.ATTEMPTS, method="PUT")
    code = f"from distuda import storage; fs, path = storage.filesystem({uri + '/x'!r}); fs._fs.pipe_file(path, b'1')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "HTTP status 503" in ended.stderr
    assert not storage.exists(storage.join(uri, "x"))
    assert SECRET not in ended.stderr and "destroying" not in ended.stderr


def test_an_outage_is_said_once_and_survived(
    uri: str, s3: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outage, "_QUIET_S", 0.5)
    storage.write_bytes(storage.join(uri, "x"), CONTENT)
    read: list[bytes] = []
    with caplog.at_level(logging.WARNING), s3.outage(3.0):
        readers = [
            threading.Thread(target=lambda: read.append(storage.read_bytes(storage.join(uri, "x")))) for _ in "ab"
        ]
        for reader in readers:
            reader.start()
        storage.write_bytes(storage.join(uri, "y"), b"written")
        for reader in readers:
            reader.join()
    assert read == [CONTENT, CONTENT] and storage.read_bytes(storage.join(uri, "y")) == b"written"
    lines = [record.getMessage() for record in caplog.records if record.name == "distuda.storage"]
    assert [" ".join(line.split()[1:3]) for line in lines] == ["does not", "answers again"], lines
    assert lines[0].startswith(f"s3://{BUCKET} ")


def test_patience_ends(uri: str, s3: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(outage.PATIENCE, "0.2")
    s3.down()
    with pytest.raises(outage.Unreachable, match="did not answer for"):
        storage.read_bytes(storage.join(uri, "x"))
    monkeypatch.setenv(outage.PATIENCE, "soon")
    with pytest.raises(UserError, match="no number of seconds"):
        storage.read_bytes(storage.join(uri, "x"))
    s3.up()
    assert not storage.exists(storage.join(uri, "x"))


def test_an_outage_is_not_an_empty_folder(uri: str, s3: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(storage.join(uri, "a/x.png"), b"1")
    fs, path = storage.filesystem(uri)
    s3.spoil("busy", times=object_store.ATTEMPTS + 1)
    assert Tree(uri).find("a").keys() == {"x.png"}
    for question in (fs.exists, fs.isfile, fs.isdir):
        s3.spoil("busy", times=object_store.ATTEMPTS + 1)
        assert question(f"{path}/a/x.png") is (question.__name__ != "isdir")
    s3.spoil("busy", times=object_store.ATTEMPTS + 1)
    assert fs.find(path) == [f"{path}/a/x.png"]
    assert not s3.faults


def run_words(domains: list[str], uri: str, sets_on: str) -> list[str]:
    """The tiny recipe's words with data and run on S3."""
    words = []
    for word in domains:
        name, folder = word.split(".uri=")
        for file in sorted(Path(folder).iterdir()):
            storage.write_file(file, storage.join(sets_on, name, file.name))
        words.append(f"{name}.uri={storage.join(sets_on, name)}")
    return [*words, f"out={storage.join(uri, 'run')}", "checkpoint.every_steps=2", "evaluation.every_steps=100"]


def test_training_survives_an_outage_and_resumes(
    domains: list[str], uri: str, s3: Proxy, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    words = run_words(domains, uri, storage.join(uri, "data"))
    began = threading.Event()

    def fail_when_it_runs() -> None:
        while not any("step-00000002" in request for request in s3.requests):
            time.sleep(0.01)
        s3.down()
        time.sleep(3)
        s3.up()
        began.set()

    breaker = threading.Thread(target=fail_when_it_runs)
    breaker.start()
    out = fit(settle(tiny_recipe(*words)))
    breaker.join()
    assert began.is_set() and [row["step"] for row in read_rows(out) if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert open_run(out).step == 6
    checkpoints = Checkpoints(out, tiny_recipe().checkpoint)
    storage.remove(checkpoints.find("last"))
    storage.write_bytes(storage.join(out, "checkpoints/step-00000006/training.pt"), b"")  # as if killed while writing
    assert checkpoints.find("last").endswith("step-00000004")
    before = open_run(out).step
    fit(settle(tiny_recipe(*words, "resume=true")))
    assert (before, open_run(out).step) == (4, 6)
    printed = capfd.readouterr()
    assert_no_secret(uri, printed.out + printed.err + caplog.text)


def assert_no_secret(uri: str, printed: str) -> None:
    fs, path = storage.filesystem(uri)
    found = fs.find(path)
    assert any(name.endswith("manifest.json") for name in found) and any(name.endswith("recipe.yaml") for name in found)
    for name in found:
        assert SECRET.encode() not in fs.cat_file(name), name
    assert SECRET not in printed


def test_no_such_bucket(s3: Proxy, domains: list[str], tmp_path: Path) -> None:
    for act in (
        lambda: open_dataset("s3://no-such-bucket/set"),
        lambda: settle(tiny_recipe(*domains, "out=s3://no-such-bucket/run")),
        lambda: storage.read_bytes("s3://no-such-bucket/x"),
        lambda: storage.list_folder("s3://no-such-bucket"),
        lambda: Tree("s3://no-such-bucket/x").find(),
    ):
        with pytest.raises(UserError, match=r"(no such bucket|no file at)") as caught:
            act()
        assert "no-such-bucket" in str(caught.value)


def test_denied(s3: Proxy, sets: tuple[Dataset, Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    assert len(open_dataset(sets[0].uri)) == 13
    began_s = time.monotonic()
    for act in (
        lambda: storage.write_bytes(f"s3://{BUCKET}/new", b"1"),
        lambda: storage.read_bytes(f"s3://{CLOSED_BUCKET}/x"),
        lambda: storage.list_folder(f"s3://{CLOSED_BUCKET}/x"),
        lambda: open_dataset(f"s3://{CLOSED_BUCKET}/set"),
    ):
        with pytest.raises(UserError, match=r"access denied. Check the credentials .* AWS_PROFILE"):
            act()
    assert time.monotonic() - began_s < 60  # not tried again and again


@pytest.mark.parametrize(
    "given", [{}, {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "x"}, {"AWS_SECRET_ACCESS_KEY": "wrong"}]
)
def test_missing_and_wrong_credentials(
    given: dict[str, str], s3: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if not given:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="Check the credentials") as caught:
        open_dataset(f"s3://{BUCKET}/set")
    assert SECRET not in str(caught.value)


def test_profile_files(s3: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(f"[profile lab]\nregion = eu-north-1\nendpoint_url = {s3.endpoint}/\n")
    (tmp_path / "credentials").write_text(
        f"[lab]\naws_access_key_id = {READER}\naws_secret_access_key = {READER_SECRET}\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert storage.read_bytes(f"s3://{BUCKET}/ready") == b"ready"


@pytest.mark.parametrize(
    "uri",
    [f"s3://key:{SECRET}@tests/x", f"s3://key@{SECRET}/x", f"gs://user:{SECRET}@bucket/x",
     f"s3://tests/x?access_key=a&secret_key={SECRET}"],
)  # fmt: skip
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str, domains: list[str], tmp_path: Path) -> None:
    for act in (
        lambda: storage.read_bytes(uri),
        lambda: settle(tiny_recipe(*domains, f"out={uri}")),
        lambda: fit(settle(tiny_recipe(*domains, f"source.uri={uri}", f"out={tmp_path / 'run'}"))),
    ):
        with pytest.raises(UserError, match="holds credentials") as caught:
            act()
        assert SECRET not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "ftp://host", "http://", f"http://key:{SECRET}@host"])
def test_an_endpoint_that_is_none(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL_S3 is no address") as caught:
        storage.exists("s3://tests/x")
    assert SECRET not in str(caught.value)


def test_a_long_call_that_fails_late_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s, tries = [0.0], []
    monkeypatch.setattr(outage.time, "monotonic", lambda: clock_s[0])
    monkeypatch.setattr(outage.time, "sleep", lambda seconds: None)

    def upload() -> str:
        tries.append(clock_s[0])
        clock_s[0] += 10 * outage.DEFAULT_PATIENCE_S
        if len(tries) == 1:
            raise ConnectionResetError("gone")
        return "done"

    assert outage.persist("s3://slow/x", upload) == "done" and len(tries) == 2


def test_what_passes_and_what_does_not() -> None:
    class HttpError(Exception):
        code = 503

    for error in (ConnectionResetError("gone"), TimeoutError(), HttpError(), OSError("AWS Error SLOW_DOWN during x"),
                  OSError("AWS Error UNKNOWN (HTTP status 502) during GetObject operation")):  # fmt: skip
        assert outage.may_pass(error)
    for error in (FileNotFoundError(), PermissionError(), ValueError("x"), OSError("No space left on device"),
                  OSError("AWS Error UNKNOWN (HTTP status 400) during GetObject operation"),
                  OSError("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 60, SSL")):  # fmt: skip
        assert not outage.may_pass(error)


def test_everything_listens_on_loopback(s3: Proxy) -> None:
    own = psutil.Process()
    server = [child for child in own.children(recursive=True) if child.name() == "weed"]
    assert server
    ends = [end.laddr for process in (own, *server) for end in process.net_connections("tcp") if end.status == "LISTEN"]
    assert s3.port in {end.port for end in ends}
    assert {end.ip.removeprefix("::ffff:") for end in ends} == {"127.0.0.1"}  # IPv4 as an IPv6 socket shows it
