"""Any data set in the format of COCO's panoptic task: a JSON, a folder of PNGs named like it, and a folder of images.

The class table is the JSON's own. How the files of COCO 2017 lie is what `obtain` says; other owners keep to the rule
that the PNGs of ``annotations/NAME.json`` are in ``annotations/NAME/``.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distuda.data.class_tables import bit_palette
from distuda.data.labels import RGB, ClassTable
from distuda.data.layouts.entry import Entry, Layout, stem
from distuda.data.layouts.panoptic import annotate, number_things, read_json, segment_classes
from distuda.data.source import File, Tree
from distuda.errors import UserError

_OBTAIN = (
    "panoptic_annotations_trainval2017.zip, unpacked, with train2017.zip and val2017.zip from cocodataset.org, no "
    "registration; or any other data set in this format"
)


def entries(tree: Tree, split: str | None, variant: str | None) -> Iterator[Entry]:
    """The JSON's images, with the classes as their place in its list of categories."""
    path, data = _panoptic(tree, split)
    place = {category["id"]: number for number, category in enumerate(data["categories"])}
    things = frozenset(category["id"] for category in data["categories"] if category.get("isthing"))
    of_image = {annotation["image_id"]: annotation for annotation in data["annotations"]}
    images = _images(tree, path, split, data["images"])
    labels, where = _labels(tree, path, data["annotations"])
    for item in sorted(data["images"], key=lambda item: stem(item["file_name"])):
        name, annotation = item["file_name"], of_image.get(item["id"])
        label = None if annotation is None else labels.get(annotation["file_name"])
        hint = f"It belongs in {where}." if annotation else f"{path} annotates no image with id {item['id']!r}."
        segments = segment_classes(annotation, place, number_things([annotation], things)) if annotation else {}
        if name not in images:
            raise UserError(f"{path} lists the image {name!r}, which is not in {tree.uri!r}. Add the missing images.")
        yield Entry(key=stem(name), image=images[name], label=label, segments=segments, label_hint=hint)


def own_table(tree: Tree, split: str | None) -> ClassTable:
    """The JSON's categories in their order; colours are made where it gives none."""
    path, data = _panoptic(tree, split)
    categories: Sequence[Mapping[str, Any]] = data["categories"]
    palette = bit_palette(len(categories) + 1)[1:]
    colours = [_colour(category) or palette[number] for number, category in enumerate(categories)]
    things = frozenset(number for number, category in enumerate(categories) if category.get("isthing"))
    return ClassTable(stem(path).rsplit("/", 1)[-1], tuple(str(c["name"]) for c in categories), tuple(colours), things)


def _colour(category: Mapping[str, Any]) -> RGB | None:
    if "color" not in category:
        return None
    red, green, blue = (int(part) for part in category["color"])
    return red, green, blue


def _panoptic(tree: Tree, split: str | None) -> tuple[str, dict[str, Any]]:
    """Path and content of the one JSON that is meant; of several, those with ``panoptic`` in their names count."""
    found = [f"annotations/{path}" for path in tree.find("annotations", (".json",)) if "/" not in path]
    found = found or [path for path in tree.find("", (".json",)) if "/" not in path]
    if not found:
        raise UserError(f"no JSON in {tree.uri!r} or in annotations/ there. A panoptic data set comes as {_OBTAIN}.")
    found = [path for path in found if "panoptic" in path] or found
    fitting = [path for path in found if split is None or split in path.rsplit("/", 1)[-1]]
    if len(fitting) != 1:
        how = "Name a split that" if split is None else f"The split {split!r} does not; name one that"
        raise UserError(f"{tree.uri!r} holds {', '.join(found)}. {how} occurs in the name of one of them only.")
    file = tree.file(fitting[0])
    assert file is not None
    return fitting[0], read_json(file)


def _images(tree: Tree, path: str, split: str | None, items: Sequence[Mapping[str, Any]]) -> dict[str, File]:
    """Name in the JSON -> file, out of the folder that holds the first one."""
    name = stem(path).rsplit("/", 1)[-1].replace("panoptic_", "")
    folders = [place for part in (name, split) if part for place in (part, f"images/{part}")] + ["images", ""]
    for folder in folders:
        if not items or tree.at(folder).file(items[0]["file_name"]) is not None:
            return tree.find(folder)
    listed = ", ".join(repr(folder) for folder in folders if folder)
    raise UserError(
        f"the images of {path} are not in {tree.uri!r}: looked for {items[0]['file_name']!r} in "
        f"{listed} and the folder itself. COCO's come as {name}.zip from cocodataset.org."
    )


def _labels(tree: Tree, path: str, annotations: Sequence[Mapping[str, Any]]) -> tuple[dict[str, File], str]:
    """Name in the JSON -> PNG, and where they belong; COCO's lie in a zip beside the JSON."""
    folder = stem(path)
    packed = tree.file(f"{folder}.zip")
    if packed is not None and annotations and not tree.has(folder):
        if packed.member:
            raise UserError(f"{str(packed)!r} is an archive in an archive. Unpack {packed.uri!r}.")
        inside = Tree(packed.uri)
        return inside.root(annotations[0]["file_name"], [folder.rsplit("/", 1)[-1]]).find(), folder
    return tree.find(folder, (".png",)), f"{folder}/"


LAYOUT = Layout(
    entries=entries,
    classes=None,
    ids=None,
    summary="annotations/NAME.json, annotations/NAME/*.png and a folder of images",
    obtain=_OBTAIN,
    annotate=annotate,
    own_table=own_table,
)
