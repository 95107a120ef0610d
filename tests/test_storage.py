"""Files appear whole or not at all, on any URI, and what cannot be done is said to the user."""

from pathlib import Path

import pytest

from distuda import storage
from distuda.errors import UserError


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "a b") if request.param == "local" else f"memory://{tmp_path}"


def test_write_read_list_remove(folder: str) -> None:
    assert storage.list_folder(folder) == []
    for name in ("b", "a", "sub/c"):
        storage.write_bytes(storage.join(folder, name), name.encode())
    assert storage.list_folder(folder) == ["a", "b", "sub"]
    assert storage.read_bytes(storage.join(folder, "sub", "/c")) == b"sub/c"
    storage.write_bytes(storage.join(folder, "a"), b"new")
    assert storage.read_bytes(storage.join(folder, "a")) == b"new"
    storage.remove(storage.join(folder, "sub"))
    storage.remove(storage.join(folder, "missing"))
    assert storage.list_folder(folder) == ["a", "b"]
    assert not storage.exists(storage.join(folder, "sub/c"))


def test_missing_file_names_the_uri(folder: str) -> None:
    with pytest.raises(UserError, match=r"no file at .*gone"):
        storage.read_bytes(storage.join(folder, "gone"))


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        storage.read_bytes(str(tmp_path))


def test_unknown_protocol() -> None:
    with pytest.raises(UserError, match="cannot open 's4://bucket/x'"):
        storage.read_bytes("s4://bucket/x")


def test_a_path_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot write .*Choose a folder"):
        storage.write_bytes(str(tmp_path / "file" / "x"), b"content")


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    storage.write_bytes(str(path), b"old")

    def full_disk(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(UserError, match="No space left"):
        storage.write_bytes(str(path), b"longer content")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    storage.write_bytes("~/x", b"1")
    assert (tmp_path / "x").read_bytes() == b"1"
