"""Video files as unlabelled clips, one sample a frame; `--every` thins them."""

import re
from collections.abc import Iterator

from distuda.data.layouts.entry import Entry, Layout, stem
from distuda.data.source import VIDEO_SUFFIXES, File, Tree
from distuda.data.video import VideoFrame, count_frames
from distuda.errors import UserError

_UNSAFE = re.compile(r"[^A-Za-z0-9._/-]")  # what keys may not hold


def entries(tree: Tree, split: str | None, variant: str | None) -> Iterator[Entry]:
    """Frames of every video below the source, or below the folder that is named as split; numbered from 0."""
    seen: dict[str, File] = {}
    for path, file in tree.find(split or "", VIDEO_SUFFIXES).items():
        clip = _UNSAFE.sub("_", stem(path))
        if clip in seen:
            raise UserError(f"{str(seen[clip])!r} and {str(file)!r} would both be clip {clip!r}. Rename one of them.")
        seen[clip] = file
        count, version = count_frames(file)
        for number in range(count):
            image = VideoFrame(file, number, version)
            yield Entry(key=f"{clip}/{number:06d}", image=image, clip=clip, frame=number, unlabelled=True)


LAYOUT = Layout(
    entries=entries,
    classes=None,
    ids=None,
    summary=f"a video ({' '.join(VIDEO_SUFFIXES)}) or a folder of videos",
    obtain="your own recordings",
    bad_share=0.01,  # containers may promise a few frames more than there are
)
