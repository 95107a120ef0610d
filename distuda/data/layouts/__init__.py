"""The source layouts that `distuda prepare` reads: one file each, one line each here."""

from distuda.data.layouts import (
    camvid,
    cityscapes,
    cityscapes_vps,
    coco_panoptic,
    foggy_cityscapes,
    folder,
    gta5,
    synthia,
    synthia_seq,
    video,
    viper,
    voc,
)
from distuda.data.layouts.entry import Entry, Layout, Reading, load_sample
from distuda.errors import UserError, nearest

__all__ = ["LAYOUTS", "Entry", "Layout", "Reading", "find_layout", "load_sample"]

LAYOUTS: dict[str, Layout] = {
    "camvid": camvid.LAYOUT,
    "cityscapes": cityscapes.LAYOUT,
    "cityscapes_vps": cityscapes_vps.LAYOUT,
    "coco_panoptic": coco_panoptic.LAYOUT,
    "foggy_cityscapes": foggy_cityscapes.LAYOUT,
    "folder": folder.LAYOUT,
    "gta5": gta5.LAYOUT,
    "synthia": synthia.LAYOUT,
    "synthia_seq": synthia_seq.LAYOUT,
    "video": video.LAYOUT,
    "viper": viper.LAYOUT,
    "voc": voc.LAYOUT,
}


def find_layout(name: str) -> Layout:
    """The layout of that name."""
    if name not in LAYOUTS:
        raise UserError(f"no layout {name!r}{nearest(name, LAYOUTS)}. Known: {', '.join(LAYOUTS)}.")
    return LAYOUTS[name]
