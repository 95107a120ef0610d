"""What every layout yields: where the files of one sample lie, and how they become a `Sample`."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distuda.data.decode import (
    SampleError,
    Size,
    decode_image,
    decode_label,
    image_size,
    resize_image,
    resize_label,
)
from distuda.data.labels import IGNORE, ClassTable, IdMap
from distuda.data.sample import Sample
from distuda.data.source import File, Tree
from distuda.errors import UserError, nearest


class Readable(Protocol):
    """Where an image comes from: a `File`, or a frame of a video."""

    def read(self) -> bytes:
        """The encoded image."""
        ...


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One sample of a source, not yet read.

    Attributes:
        key: of the sample.
        image: the image.
        label: the label file; None when there is none.
        unlabelled: whether there should be no label, as in a test split or between annotated frames.
        instance: the file of instance ids, where it is another one; None when there is none.
        tags: class names known to be in the image; None when unknown.
        tag_file: a file that says which classes are in the image, for layouts that read it later.
        segments: of a panoptic label: segment id -> (class id, instance number or 0); None for other labels.
        label_hint: where a missing label belongs and how one gets it; part of the message.
        clip, frame: place in a video; None for still images.
    """

    key: str
    image: Readable
    label: File | None = None
    unlabelled: bool = False
    instance: File | None = None
    tags: tuple[str, ...] | None = None
    tag_file: File | None = None
    segments: Mapping[int, tuple[int, int]] | None = None
    label_hint: str = field(default="", repr=False)  # wording must not change the plan of a prepared set
    clip: str | None = None
    frame: int | None = None


@dataclass(frozen=True)
class Annotation:
    """What a label file says.

    Attributes:
        ids_HW: the data set's own ids, unsigned integers (H, W).
        instance_HW: uint16 (H, W), 0 = no instance; None when unknown.
    """

    ids_HW: NDArray[Any]
    instance_HW: NDArray[np.uint16] | None = None


def plain_annotation(entry: Entry) -> Annotation:
    """A label file with one channel of ids, grey or palette, and no instances."""
    assert entry.label is not None
    return Annotation(decode_label(entry.label.read(), entry.key))


def given_tags(entry: Entry) -> tuple[str, ...] | None:
    """Tags that the entry holds already."""
    return entry.tags


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a kind of source is read.

    Attributes:
        entries: (tree, split or None for all, variant) -> entries in key order; cheap, opens no image.
        classes: the class table's name unless the user names another; None when the user has to.
        ids: what the label files' ids are (`id_maps.LABEL_IDS`); None when they hold train ids.
        summary: what the folder looks like, in one line.
        obtain: what its owner calls the files, where they come from, and that one has to register.
        images: which of these files hold the images, and the folder they fill.
        splits: names of the splits; empty when the layout takes any.
        variants: kinds of the data set that lie side by side, the default first; empty when there is one.
        annotate: reads label (and instances) of an entry that has a label file.
        tags: reads the class names known to be in an entry's image; None when unknown.
        own_table: reads the class table out of the source, for layouts that carry it; their labels hold its train ids.
        bad_share: share of samples that may be unusable unless the user says otherwise, 0..1.
    """

    entries: Callable[[Tree, str | None, str | None], Iterable[Entry]]
    classes: str | None
    ids: str | None
    summary: str
    obtain: str = ""
    images: str = ""
    splits: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    annotate: Callable[[Entry], Annotation] = plain_annotation
    tags: Callable[[Entry], tuple[str, ...] | None] = given_tags
    own_table: Callable[[Tree, str | None], ClassTable] | None = None
    bad_share: float = 0.0


def stem(path: str) -> str:
    """A path without its suffix."""
    return path.rsplit(".", 1)[0]


def find_in(tree: Tree, folder: str, tops: Sequence[str]) -> dict[str, File]:
    """Path below ``folder`` -> file; the folder lies in the tree, or in one of the folders that copies add on top."""
    return tree.root(folder, tops).find(folder)


def pairs(images: Mapping[str, File], labels: Mapping[str, File], hint: str) -> Iterator[Entry]:
    """Still images and the labels of the same path, suffixes aside; that path is the key."""
    label_of = {stem(path): file for path, file in labels.items()}
    for path, image in images.items():
        yield Entry(key=stem(path), image=image, label=label_of.get(stem(path)), label_hint=hint)


def label_hint(archive: str, folder: str, site: str) -> str:
    """For `Entry.label_hint`: which archive a missing label is in, the folder it belongs in, and who has it."""
    return (
        f"It belongs in {folder}, which {archive} fills, from {site}. Put it beside the images, packed or not, and "
        "give the folder that holds both."
    )


def decode_planes(content: bytes, key: str) -> NDArray[Any]:
    """Encoded image -> (H, W) or (H, W, 3) as stored: red first, 8 or 16 bits (PIL cuts colours to 8)."""
    image_size(content, key)
    planes = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if planes is None:
        raise SampleError(key, "damaged image. Replace the file.")
    return planes if planes.ndim == 2 else np.asarray(planes[:, :, 2::-1])


def read_instances(entry: Entry, decode: Callable[[bytes, str], NDArray[Any]] = decode_label) -> NDArray[Any] | None:
    """What an entry's file of instances holds; None without one.

    Raises:
        SampleError: names that file, since messages about an annotation name the label file.
    """
    if entry.instance is None:
        return None
    try:
        return decode(entry.instance.read(), entry.key)
    except SampleError as error:
        raise SampleError(entry.key, f"instances {str(entry.instance)!r}: {error.reason}") from error


def choose(name: str, given: str | None, known: Sequence[str]) -> tuple[str, ...]:
    """The split or variant that was asked for; all known ones when none was.

    Raises:
        UserError: not a known one.
    """
    if given is None:
        return tuple(known)
    if given not in known:
        raise UserError(f"no {name} {given!r}{nearest(given, known)}. Known: {', '.join(known)}.")
    return (given,)


@dataclass(frozen=True)
class Reading:
    """What is taken from each entry, and how.

    Attributes:
        layout: the kind of source.
        table: what the written train ids mean.
        ids: from the files' ids to train ids.
        labels: whether labels and instances are taken.
        tags: image-level labels: "auto" = those that the layout gives, "masks" = the classes in the label, "none".
        resize: (height, width) to store smaller images; None keeps the files as they are.
        cut_bottom: rows of each picture that are left out below, before it is resized [pixels].
    """

    layout: Layout
    table: ClassTable
    ids: IdMap
    labels: bool = True
    tags: Literal["auto", "masks", "none"] = "auto"
    resize: Size | None = None
    cut_bottom: int = 0


def load_sample(entry: Entry, reading: Reading) -> Sample:
    """Read and check one sample; the image stays as it came unless it is to be cut or resized.

    Raises:
        SampleError: names the key and why the sample cannot be used.
    """
    try:
        return _load(entry, reading)
    except SampleError:
        raise
    except UserError as error:
        raise SampleError(entry.key, str(error)) from error


def _load(entry: Entry, reading: Reading) -> Sample:
    content = entry.image.read()
    image = _checked_image(content, entry.key)
    label, instance = _labels(entry, reading, image.shape[:2])
    if reading.cut_bottom:
        if reading.cut_bottom >= len(image):
            raise SampleError(entry.key, f"nothing is left of {len(image)} rows without the last {reading.cut_bottom}.")
        image = image[: -reading.cut_bottom]
        label = None if label is None else label[: -reading.cut_bottom]
        instance = None if instance is None else instance[: -reading.cut_bottom]
    tags = _tags(entry, reading, label)
    if not reading.labels:
        label = instance = None
    if reading.resize is not None:
        image = resize_image(image, reading.resize)
        label = None if label is None else resize_label(label, reading.resize)
        instance = None if instance is None else resize_label(instance, reading.resize)
    if reading.resize is not None or reading.cut_bottom:
        content = _encode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    return Sample(
        key=entry.key,
        image=content,
        label=None if label is None else _encode(".png", label, []),
        instance=None if instance is None else _encode(".png", instance, []),
        tags=tags,
        clip=entry.clip,
        frame=entry.frame,
        height=image.shape[0],
        width=image.shape[1],
    )


def _checked_image(content: bytes, key: str) -> NDArray[np.uint8]:
    image = decode_image(content, key)
    if content[:2] != b"\xff\xd8":  # OpenCV accepts a file that ends too early; PIL does not
        try:
            with Image.open(io.BytesIO(content)) as strict:
                strict.load()
        except (OSError, SyntaxError) as error:
            raise SampleError(key, f"damaged image ({error}). Replace the file.") from error
    return image


def _labels(
    entry: Entry, reading: Reading, size: tuple[int, ...]
) -> tuple[NDArray[np.uint8] | None, NDArray[np.uint16] | None]:
    """Train ids and instances, each checked against the image's size; None where they are absent or not wanted."""
    if not reading.labels and reading.tags != "masks":
        return None, None
    if entry.label is None:
        if entry.unlabelled:
            return None, None
        raise SampleError(entry.key, f"no label file for {str(entry.image)!r}. {entry.label_hint}".strip())
    try:
        found = reading.layout.annotate(entry)
        label = reading.ids.apply(found.ids_HW)
    except SampleError as error:
        raise SampleError(entry.key, f"{error.reason} ({str(entry.label)!r})") from error
    except UserError as error:
        raise SampleError(entry.key, f"{error} ({str(entry.label)!r})") from error
    for what, array in (("label", label), ("instance map", found.instance_HW)):
        if array is not None and array.shape != size:
            sizes = f"{what} is {array.shape[1]}x{array.shape[0]} but the image is {size[1]}x{size[0]}"
            raise SampleError(entry.key, f"{sizes} ({str(entry.label)!r}).")
    return label, found.instance_HW


def _tags(entry: Entry, reading: Reading, label: NDArray[np.uint8] | None) -> list[int] | None:
    """Train ids of the classes in the image, ascending; "background" is no tag."""
    if reading.tags == "none":
        return None
    if reading.tags == "auto":
        names = reading.layout.tags(entry)
        return None if names is None else sorted({reading.table.index(name) for name in names})
    if label is None:
        return None
    present = set(np.unique(label).tolist()) - {IGNORE}
    return sorted(i for i in present if reading.table.classes[i] != "background")


def _encode(suffix: str, array: NDArray[Any], options: list[int]) -> bytes:
    done, content = cv2.imencode(suffix, np.ascontiguousarray(array), options)
    assert done
    return content.tobytes()
