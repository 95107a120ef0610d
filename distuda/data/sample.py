"""One sample as it lies in a shard: encoded bytes and what is known about them."""

from dataclasses import dataclass

import pyarrow as pa

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("label", pa.binary()),
        pa.field("instance", pa.binary()),
        pa.field("tags", pa.list_(pa.int32())),
        pa.field("clip", pa.string()),
        pa.field("frame", pa.int32()),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("pair", pa.binary()),
        pa.field("flow", pa.binary()),
    ]
)


@dataclass(kw_only=True)
class Sample:
    """One image with what is known about it; all pictures stay encoded.

    Attributes:
        key: unique in the data set; letters, digits and ``._-/``, never used as a path unchecked.
        image: the bytes of the image file as they came (JPEG, PNG, ...), never re-encoded.
        label: 8-bit single-channel PNG of train ids, 255 = ignore; None when unlabelled.
        instance: 16-bit single-channel PNG, 0 = none, else unique for its class within the clip; None when unknown.
        tags: train ids known to be in the image (image-level labels); None when unknown.
        clip, frame: the clip's name and the frame's number in it; None for still images.
        height, width: of the decoded image, pixels.
        pair: the bytes of the other domain's image of (nearly) the same view, as they came; None when there is none.
        flow: backward optical flow to the clip's frame before and where it holds (`encode_flow`); None when unknown.
    """

    key: str
    image: bytes
    height: int
    width: int
    label: bytes | None = None
    instance: bytes | None = None
    tags: list[int] | None = None
    clip: str | None = None
    frame: int | None = None
    pair: bytes | None = None
    flow: bytes | None = None
