"""SYNTHIA video sequences (SYNTHIA-SEQS-04-DAWN and its sisters): one folder a sequence, 5 frames a second.

Ros, Sellart, Materzynska, Vazquez, Lopez: The SYNTHIA Dataset, CVPR 2016. As published, a sequence holds
``RGB/Stereo_Left/Omni_F/000000.png`` and ``GT/LABELS/Stereo_Left/Omni_F/000000.png`` for four directions and two
cameras; the copies behind DA-VSN's list hold ``rgb/`` and ``label/``. Labels are encoded as in `synthia`.
"""

from collections.abc import Iterator

from distuda.data.layouts.entry import Entry, Layout, choose, label_hint, stem
from distuda.data.layouts.synthia import SITE, annotate
from distuda.data.source import Tree

SPLITS = ("train",)

VIEWS = {"front": "Omni_F", "back": "Omni_B", "left": "Omni_L", "right": "Omni_R"}
"""Variant -> folder of that direction; of the stereo pair, the left camera is read."""

_ARCHIVE = "SYNTHIA-SEQS-<number>-<weather>.rar (to be unpacked first: a .rar cannot be read in place)"


def entries(tree: Tree, split: str | None, variant: str | None) -> Iterator[Entry]:
    """Frames of every sequence in the tree; the path of its folder is the clip, ``sequence`` for the tree itself."""
    choose("split", split, SPLITS)
    place = f"Stereo_Left/{VIEWS[variant or 'front']}"
    label_folder = {f"RGB/{place}": f"GT/LABELS/{place}"}
    if variant in (None, "front"):
        label_folder["rgb"] = "label"
    hint = label_hint(_ARCHIVE, f"<sequence>/GT/LABELS/{place}/ (or label/)", SITE)
    files = tree.find()
    for path, image in files.items():
        folder, _, name = path.rpartition("/")
        for images, labels in label_folder.items():
            top = f"/{folder}".removesuffix(f"/{images}")
            if top != f"/{folder}" and stem(name).isdigit():
                clip = top.strip("/") or "sequence"
                label = files.get(f"{top}/{labels}/{name}".lstrip("/"))
                yield Entry(
                    key=f"{clip}/{stem(name)}",
                    image=image,
                    label=label,
                    clip=clip,
                    frame=int(stem(name)),
                    label_hint=hint,
                )


LAYOUT = Layout(
    entries=entries,
    classes="synthia_seq12",
    ids="synthia_seq_ids",
    summary="<sequence>/RGB/Stereo_Left/Omni_F/ and <sequence>/GT/LABELS/Stereo_Left/Omni_F/, or rgb/ and label/",
    obtain=f"{_ARCHIVE}, such as SYNTHIA-SEQS-04-DAWN.rar, from {SITE}",
    images="SYNTHIA-SEQS-<number>-<weather>.rar, which fills RGB/ (or rgb/)",
    splits=SPLITS,
    variants=tuple(VIEWS),
    annotate=annotate,
)
