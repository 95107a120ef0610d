"""Any data set as two folders: ``images/`` and, when labelled, ``labels/`` with the same relative names.

With a split, ``<split>/images`` or ``images/<split>`` is read, whichever is there. A file ``tags.json`` of the form
``{"tags": {key: [class name, ...]}}`` adds image-level labels.
"""

import json
from collections.abc import Iterator

from distuda import storage
from distuda.data.layouts.entry import Entry, find_images
from distuda.errors import UserError


def entries(uri: str, split: str | None) -> Iterator[Entry]:
    """Every image below ``images/``; its key is the path below that folder without suffix."""
    images, labels = (_folder(uri, name, split) for name in ("images", "labels"))
    label_of = find_images(labels)
    tags_uri = storage.join(uri, "tags.json")
    tags = json.loads(storage.read_bytes(tags_uri))["tags"] if storage.exists(tags_uri) else {}
    for key, image in find_images(images).items():
        names = tuple(tags[key]) if key in tags else None
        yield Entry(key=key, image=image, label=label_of.get(key), tags=names)


def _folder(uri: str, name: str, split: str | None) -> str:
    if split is None:
        return storage.join(uri, name)
    choices = [storage.join(uri, split, name), storage.join(uri, name, split)]
    for choice in choices:
        if storage.exists(choice):
            return choice
    if name == "labels":
        return choices[0]
    raise UserError(f"no split {split!r} in {uri!r}: neither {choices[0]!r} nor {choices[1]!r} is there.")
