"""Labels as COCO's panoptic task stores them: a JSON of segments and PNGs whose colours are the segments' ids.

Kirillov, He, Girshick, Rother, Dollár: Panoptic Segmentation, CVPR 2019; the format is that of cocodataset.org
("Data format", 4. Panoptic segmentation): id = R + 256 G + 65536 B, 0 = void.
"""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distuda.data.decode import SampleError, image_size
from distuda.data.labels import IGNORE
from distuda.data.layouts.entry import Annotation, Entry
from distuda.data.source import File
from distuda.errors import UserError

VOID = 0
MAX_INSTANCES = 65535  # instance maps have 16 bits

_FIELDS = {
    "images": ("id", "file_name"),
    "annotations": ("image_id", "file_name", "segments_info"),
    "categories": ("id", "name"),
}


def read_json(file: File) -> dict[str, Any]:
    """A panoptic JSON: ``images``, ``annotations`` and ``categories``, as lists of mappings.

    Raises:
        UserError: not JSON, or a list or a field of its items is missing.
    """
    try:
        data = json.loads(file.read())
    except ValueError as error:
        raise UserError(f"{str(file)!r} is no readable JSON ({error}). Download it again.") from error
    for name, fields in _FIELDS.items():
        items = data.get(name) if isinstance(data, dict) else None
        if not isinstance(items, list) or not all(field in item for item in items for field in fields):
            expected = f"a list {name!r} whose items have {', '.join(fields)}"
            raise UserError(f"{str(file)!r} is no panoptic JSON: it has not {expected}. Choose another file.")
    return dict(data)


def number_things(annotations: Sequence[Mapping[str, Any]], things: frozenset[int]) -> dict[int, int]:
    """Segment id -> instance number 1..n in the order of the ids, over one image or the frames of one clip.

    Stuff and crowds, which are many objects in one segment, get no number.

    Args:
        annotations: items of the JSON's ``annotations``.
        things: category ids of countable objects.
    """
    segments = [segment for annotation in annotations for segment in annotation["segments_info"]]
    single = {int(s["id"]) for s in segments if s["category_id"] in things and not s.get("iscrowd")}
    if len(single) > MAX_INSTANCES:
        raise UserError(f"{len(single)} objects in one clip are more than the {MAX_INSTANCES} that can be numbered.")
    return {segment: number for number, segment in enumerate(sorted(single), start=1)}


def segment_classes(
    annotation: Mapping[str, Any], place: Mapping[int, int], numbers: Mapping[int, int]
) -> dict[int, tuple[int, int]]:
    """Segment id -> (class id, instance number or 0) of one annotation.

    Args:
        annotation: item of the JSON's ``annotations``.
        place: category id -> class id.
        numbers: what `number_things` gives.
    """
    found: dict[int, tuple[int, int]] = {}
    for segment in annotation["segments_info"]:
        if segment["category_id"] not in place:
            raise UserError(
                f"segment {segment['id']} of {annotation['file_name']!r} has category {segment['category_id']}, which "
                f"the JSON does not list (it has {', '.join(map(str, sorted(place)[:8]))}, ...). Mend the JSON."
            )
        found[int(segment["id"])] = (place[segment["category_id"]], numbers.get(int(segment["id"]), 0))
    return found


def annotate(entry: Entry) -> Annotation:
    """Class ids and instance numbers of a panoptic PNG by way of the entry's segments; void becomes 255."""
    assert entry.label is not None and entry.segments is not None
    segments = _segment_ids(entry.label.read(), entry.key)
    known = np.array(sorted({VOID, *entry.segments}), np.int32)
    place = np.minimum(np.searchsorted(known, segments), len(known) - 1)
    unknown = np.unique(segments[known[place] != segments])
    if unknown.size:
        listed = ", ".join(map(str, unknown[:5]))
        raise SampleError(entry.key, f"segment {listed} of the PNG is not in the JSON's segments_info.")
    values = [entry.segments.get(int(segment), (IGNORE, 0)) for segment in known]
    ids, numbers = (np.array(column) for column in zip(*values, strict=True))
    return Annotation(ids.astype(np.uint8)[place], numbers.astype(np.uint16)[place])


def _segment_ids(content: bytes, key: str) -> NDArray[np.int32]:
    """Segment id of each pixel (H, W)."""
    image_size(content, key)
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode not in ("RGB", "RGBA"):
                raise SampleError(key, f"panoptic label has mode {image.mode}, expected colours that are segment ids.")
            red, green, blue = (np.asarray(image)[..., channel].astype(np.int32) for channel in range(3))
    except (OSError, SyntaxError, ValueError) as error:
        raise SampleError(key, f"damaged label ({error}). Replace the file.") from error
    return red + (green << 8) + (blue << 16)
