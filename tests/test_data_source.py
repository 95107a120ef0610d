import tarfile
import zipfile
from pathlib import Path

import pytest

from distuda.data.source import File, Tree
from distuda.errors import UserError

FILES = {"a/x.png": b"x" * 1000, "a/deep/y.PNG": b"why" * 50, "b/z.jpg": b"z"}


def _write(root: Path) -> None:
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def _pack(root: Path, kind: str, folder: Path) -> Path:
    """The files below ``root`` as an archive, in reverse order."""
    path = folder / f"set.{kind.removeprefix('stored-')}"
    names = sorted((p for p in root.rglob("*") if p.is_file()), reverse=True)
    if kind == "tar":
        with tarfile.open(path, "w") as tar:
            for name in names:
                tar.add(name, f"./{name.relative_to(root)}")
        return path
    with zipfile.ZipFile(
        path, "w", zipfile.ZIP_STORED if kind.startswith("stored") else zipfile.ZIP_DEFLATED
    ) as packed:
        for name in names:
            packed.write(name, name.relative_to(root))
    return path


@pytest.fixture(params=["folder", "zip", "stored-zip", "tar", "folder-with-zip", "folder-with-tar"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Tree:
    _write(tmp_path / "files")
    (tmp_path / "packed").mkdir()
    if request.param == "folder":
        return Tree(str(tmp_path / "files"))
    archive = _pack(tmp_path / "files", request.param.removeprefix("folder-with-"), tmp_path / "packed")
    return Tree(str(archive.parent if request.param.startswith("folder") else archive))


def test_a_tree_is_the_same_in_every_wrapping(tree: Tree) -> None:
    assert {path: file.read() for path, file in tree.find().items()} == {name: FILES[name] for name in sorted(FILES)}
    assert list(tree.find("a")) == ["deep/y.PNG", "x.png"]
    assert list(tree.at("a").find("deep")) == ["y.PNG"] and list(tree.find("b", (".png",))) == []
    assert tree.has("a") and tree.has("a/deep/") and tree.has("b/z.jpg") and not tree.has("a/dee")
    found = tree.file("a/x.png")
    assert found is not None and found.read() == FILES["a/x.png"] and tree.file("a") is None
    assert tree.file("nothing") is None
    assert tree.root("deep", ["b", "a"]).has("deep/y.PNG") and tree.root("nowhere", ["b"]) is tree


def test_files_and_archives_of_one_folder_are_one_tree(tmp_path: Path) -> None:
    _write(tmp_path / "other")
    _pack(tmp_path / "other", "zip", tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"loose")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "._x.png").write_bytes(b"")
    tree = Tree(str(tmp_path))
    assert list(tree.find("a")) == ["deep/y.PNG", "x.png"]
    assert tree.find("a")["x.png"].read() == b"loose"
    assert not any("MACOSX" in path for path in tree.find())


def test_damage_in_an_archive_is_named(tmp_path: Path) -> None:
    _write(tmp_path / "files")
    archive = _pack(tmp_path / "files", "zip", tmp_path)
    content = bytearray(archive.read_bytes())
    found = Tree(str(archive)).file("a/x.png")
    assert found is not None
    middle = found.start + 30 + len("a/x.png") + 2
    content[middle] ^= 0xFF
    archive.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"set.zip!a/x.png.*damaged"):
        found.read()
    archive.write_bytes(bytes(content[: len(content) // 2]))
    with pytest.raises(UserError, match="no readable archive"):
        Tree(str(archive)).find()
    with pytest.raises(UserError, match="cut off"):
        File(str(archive), "m", 0, 10**6, "tar").read()


def test_what_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Unpack it"):
        Tree("frames.tar.gz")
    with pytest.raises(UserError, match="no archive"):
        Tree(str(tmp_path / "missing.zip")).find()
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(UserError, match="is a file"):
        Tree(str(tmp_path / "x.txt"))


def test_a_long_extra_field_costs_a_second_request(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("m.png")
    info.extra = b"\x99\x99" + (600).to_bytes(2, "little") + bytes(600)
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as packed:
        packed.writestr(info, b"content" * 9)
    found = Tree(str(tmp_path / "m.zip")).file("m.png")
    assert found is not None and found.read() == b"content" * 9
