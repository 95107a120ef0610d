"""The source layouts that `distuda prepare` reads: one file each, one line each here."""

from distuda.data.layouts import camvid, folder
from distuda.data.layouts.entry import Entry, Layout, Reading, load_sample
from distuda.errors import UserError, nearest

__all__ = ["LAYOUTS", "Entry", "Layout", "Reading", "find_layout", "load_sample"]

LAYOUTS: dict[str, Layout] = {
    "camvid": camvid.LAYOUT,
    "folder": folder.LAYOUT,
}


def find_layout(name: str) -> Layout:
    """The layout of that name."""
    if name not in LAYOUTS:
        raise UserError(f"no layout {name!r}{nearest(name, LAYOUTS)}. Known: {', '.join(LAYOUTS)}.")
    return LAYOUTS[name]
