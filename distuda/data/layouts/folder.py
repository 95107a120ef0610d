"""Any data set as two folders: ``images/`` and, when labelled, ``labels/`` with the same relative names.

With a split, ``<split>/images`` or ``images/<split>`` is read, whichever is there. A file ``tags.json`` of the form
``{"tags": {key: [class name, ...]}}`` adds image-level labels. With the variant ``clips`` each folder of images is one
clip and the number that a file's name ends with the frame's: ``images/drive_1/frame_0001.png``. Of clips, one frame in
many may be labelled; stills have a label each, or none has.
"""

import json
import re
from collections.abc import Iterator

from distuda.data.layouts.entry import Entry, Layout, stem
from distuda.data.source import Tree
from distuda.errors import UserError


def entries(tree: Tree, split: str | None, variant: str | None) -> Iterator[Entry]:
    """Every image below ``images/``; its key is the path below that folder without suffix."""
    images, labels = (_folder(tree, name, split) for name in ("images", "labels"))
    label_of = {stem(path): file for path, file in tree.find(labels).items()}
    tags, files = _tags(tree), {stem(path): image for path, image in tree.find(images).items()}
    sparse = variant == "clips" and not label_of.keys().isdisjoint(files)
    for key, image in files.items():
        names = tuple(tags[key]) if key in tags else None
        clip, frame = _place(key) if variant == "clips" else (None, None)
        label = label_of.get(key)
        unlabelled = sparse and label is None
        yield Entry(key=key, image=image, label=label, unlabelled=unlabelled, tags=names, clip=clip, frame=frame)


def _place(key: str) -> tuple[str, int]:
    """Clip and frame of a key."""
    clip, _, name = key.rpartition("/")
    number = re.search(r"(\d+)$", name)
    if not clip or number is None:
        raise UserError(
            f"image {key!r} is no frame of a clip: expected images/CLIP/NAME with a number at the name's end, such as "
            "images/drive_1/frame_0001.png. Rename the files, or leave --variant clips out."
        )
    return clip, int(number[1])


def _tags(tree: Tree) -> dict[str, list[str]]:
    """Class names by key as the file has them; none without the file."""
    file = tree.file("tags.json")
    if file is None:
        return {}
    form = 'Expected {"tags": {key: [class name, ...]}}.'
    try:
        content = json.loads(file.read())
    except ValueError as error:
        raise UserError(f"{file} is no JSON ({error}). {form}") from error
    tags = content.get("tags") if isinstance(content, dict) else None
    if not isinstance(tags, dict):
        raise UserError(f"{file} has no mapping 'tags'. {form}")
    for key, names in tags.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{file}: the tags of {key!r} are {names!r}. {form}")
    return tags


def _folder(tree: Tree, name: str, split: str | None) -> str:
    if split is None:
        return name
    choices = [f"{split}/{name}", f"{name}/{split}"]
    for choice in choices:
        if tree.has(choice):
            return choice
    if name == "labels":
        return choices[0]
    raise UserError(f"no split {split!r} in {tree.uri!r}: neither {choices[0]!r} nor {choices[1]!r} is there.")


LAYOUT = Layout(
    entries=entries,
    classes=None,
    ids=None,
    summary="images/ and labels/ with the same names",
    variants=("stills", "clips"),
)
