"""Images a second of Distuda's streams beside the loaders people use, on the same samples, crop and cores.

    python benchmarks/input_throughput.py --camvid CAMVID --work runs/input

CAMVID is CamVid in the SegNet layout. Every reader serves shuffled batches of 8 random 240x320 crops with labels,
decoded by the same function, and all of them take turns in one run, `--rounds` times. webdataset and
mosaicml-streaming take part where they are installed (`pip install webdataset mosaicml-streaming`); the S3 server comes
with the extra `dev`. Pin the run to the cores you mean: `taskset -c 0,1 python ...`.
"""

import argparse
import importlib.util
import io
import json
import os
import platform
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import date
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from distuda import storage
from distuda.data.class_tables import CLASS_TABLES
from distuda.data.dataset import open_dataset
from distuda.data.decode import decode_sample
from distuda.data.order import Order
from distuda.data.reader import collate, read_batches
from distuda.data.sample import Sample
from distuda.data.shards import is_complete, write_shards

BATCH, CROP = 8, (240, 320)
Rows = list[tuple[bytes, bytes]]
Batches = Iterator[Any]


def main() -> None:
    arguments = parse()
    camvid = Path(arguments.camvid) / "train"
    if not camvid.is_dir():
        sys.exit(f"skipped: no CamVid at {arguments.camvid} (SegNet layout, with train/ and trainannot/)")
    work = Path(arguments.work).resolve()
    rows = load(camvid, arguments.samples)
    with ExitStack() as stack:
        readers = make_readers(rows, work, arguments, stack)
        print(f"{len(rows)} samples, {', '.join(readers)}", flush=True)
        results: dict[str, list[dict[str, float]]] = {name: [] for name in readers}
        for number in range(arguments.rounds):
            for name, start in readers.items():
                found = measure(start, len(rows))
                results[name].append(found)
                print(number, name, {key: round(value, 3) for key, value in found.items()}, flush=True)
    (work / "results.json").write_text(json.dumps(results, indent=1))
    print(table(results))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--camvid", required=True)
    parser.add_argument("--work", default="runs/input", help="where the samples are written in each loader's format")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--s3", action=argparse.BooleanOptionalAction, default=True, help="also from a local S3 server")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of the other loaders")
    return parser.parse_args()


def load(camvid: Path, count: int) -> Rows:
    """Encoded images and labels, repeated to the count; the labels keep CamVid's ids, which nothing here looks at."""
    images = sorted(camvid.iterdir())
    rows = [(p.read_bytes(), (camvid.parent / "trainannot" / f"{p.stem}.png").read_bytes()) for p in images]
    return [rows[i % len(rows)] for i in range(count)]


def decode(number: int, image: bytes, label: bytes) -> tuple[Any, Any, int]:
    """The work that is the same for all."""
    row = {"key": str(number), "image": image, "label": label}
    return (*decode_sample(row, size=None, region=CROP, seed=number), number)


def batch_of(items: list[tuple[Any, Any, int]]) -> Any:
    """The same batch as Distuda's."""
    return collate(
        [{"image": image, "label": label} for image, label, _ in items],
        [n for *_, n in items],
        [str(n) for *_, n in items],
    )


def measure(start: Callable[[], Batches], count: int) -> dict[str, float]:
    """First batch, then one epoch's worth of images; with the longest wait for a batch."""
    began = time.perf_counter()
    batches = start()
    try:
        next(batches)
        first, waits, images = time.perf_counter(), [], 0
        last = first
        for batch in islice(batches, count // BATCH - 2):
            now = time.perf_counter()
            waits.append(now - last)
            last, images = now, images + len(batch.seed_B)
    finally:
        close = getattr(batches, "close", None)
        if close:
            close()
    return {"images_per_s": images / (last - first), "first_batch_s": first - began, "longest_wait_s": max(waits)}


def make_readers(
    rows: Rows, work: Path, arguments: argparse.Namespace, stack: ExitStack
) -> dict[str, Callable[[], Batches]]:
    """Name -> function that starts an iterator of batches; Ray runs already, as it does when training asks for data."""
    from distuda.cluster.local import start_ray

    shards = distuda_shards(rows, work / "shards")
    readers = {"distuda in process": lambda: ours(shards, read_batches), "distuda Ray Data": lambda: on_ray(shards)}
    if arguments.s3:
        remote = on_s3(Path(shards), stack)
        readers["distuda in process, S3"] = lambda: ours(remote, read_batches)
        readers["distuda Ray Data, S3"] = lambda: on_ray(remote)
    start_ray()  # after the S3 server, whose address its workers inherit
    files = plain_files(rows, work / "files")
    for n in (0, arguments.workers):
        readers[f"torch DataLoader {n}"] = lambda n=n: iter(files_loader(files, n))
        if importlib.util.find_spec("webdataset"):
            tars = tar_shards(rows, work / "tars")
            readers[f"webdataset {n}"] = lambda n=n, tars=tars: iter(tar_loader(tars, n))
        if importlib.util.find_spec("streaming"):
            mds = mosaic_shards(rows, work / "mds")
            readers[f"mosaicml-streaming {n}"] = lambda n=n, mds=mds: iter(mosaic_loader(mds, n))
    return readers


def distuda_shards(rows: Rows, folder: Path) -> str:
    """Our shards of the samples."""
    if not is_complete(str(folder)):
        samples = (
            Sample(key=f"{i:05d}", image=image, label=label, height=360, width=480)
            for i, (image, label) in enumerate(rows)
        )
        table = CLASS_TABLES["cityscapes13"]  # CamVid's 12 ids fit; nothing here asks what they mean
        write_shards(samples, str(folder), table)
    return str(folder)


def ours(uri: str, open_stream: Callable[..., Batches]) -> Batches:
    """Our batches, by the reader given."""
    data = open_dataset(uri)
    order = Order(data.rows_per_group, seed=0, domain="source")
    return open_stream(data, order, batch_size=BATCH, size=None, region=CROP, columns=("label",))


def on_ray(uri: str) -> Batches:
    """Our batches, read by Ray Data."""
    from distuda.data.stream import stream_batches

    return ours(uri, stream_batches)


def on_s3(shards: Path, stack: ExitStack) -> str:
    """The shards on a local S3 server that lives as long as the stack."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from s3_server import BUCKET, KEY, SECRET, seaweed

    folder = Path(stack.enter_context(TemporaryDirectory()))
    port = stack.enter_context(seaweed(folder))
    keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    os.environ.update(keys, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", AWS_REGION="us-east-1")
    uri = f"s3://{BUCKET}/input"
    for file in sorted(shards.iterdir()):
        storage.write_bytes(storage.join(uri, file.name), file.read_bytes())
    return uri


def plain_files(rows: Rows, folder: Path) -> list[tuple[Path, Path]]:
    """A file an image and a file a label."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [(folder / f"{i:05d}.jpg", folder / f"{i:05d}.png") for i in range(len(rows))]
    for (image_path, label_path), (image, label) in zip(paths, rows, strict=True):
        if not label_path.exists():
            image_path.write_bytes(image)
            label_path.write_bytes(label)
    return paths


class Files(torch.utils.data.Dataset[Any]):
    """What most projects have: a data set of paths."""

    def __init__(self, paths: list[tuple[Path, Path]]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Any:
        image, label = self.paths[number]
        return decode(number, image.read_bytes(), label.read_bytes())


def files_loader(paths: list[tuple[Path, Path]], workers: int) -> Any:
    """Batches of plain files by torch's loader."""
    return torch.utils.data.DataLoader(
        Files(paths), BATCH, shuffle=True, drop_last=True, num_workers=workers, collate_fn=batch_of
    )


def tar_shards(rows: Rows, folder: Path) -> str:
    """Shards of 100 samples."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(rows), 100):
        path = folder / f"{first // 100:05d}.tar"
        if path.exists():
            continue
        with tarfile.open(path, "w") as tar:
            for number, (image, label) in enumerate(rows[first : first + 100], start=first):
                for suffix, content in (("jpg", image), ("png", label)):
                    info = tarfile.TarInfo(f"{number:05d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return f"{folder}/{{00000..{(len(rows) - 1) // 100:05d}}}.tar"


def tar_loader(urls: str, workers: int) -> Any:
    """Batches of tar shards by webdataset."""
    import webdataset as wds

    dataset = wds.WebDataset(urls, shardshuffle=100, seed=0, empty_check=False).shuffle(256)
    dataset = dataset.map(lambda row: decode(int(row["__key__"].rsplit("/", 1)[-1]), row["jpg"], row["png"]))
    return torch.utils.data.DataLoader(dataset, BATCH, drop_last=True, num_workers=workers, collate_fn=batch_of)


def mosaic_shards(rows: Rows, folder: Path) -> str:
    """MosaicML's shards of the samples."""
    from streaming import MDSWriter

    if not (folder / "index.json").exists():
        columns = {"number": "int", "image": "bytes", "label": "bytes"}
        with MDSWriter(out=str(folder), columns=columns, size_limit=2**24) as writer:
            for number, (image, label) in enumerate(rows):
                writer.write({"number": number, "image": image, "label": label})
    return str(folder)


def mosaic_loader(folder: str, workers: int) -> Any:
    """Batches of MosaicML's shards by its streaming."""
    from streaming import StreamingDataset

    class Decoded(StreamingDataset):
        def __getitem__(self, at: int) -> Any:
            row = super().__getitem__(at)
            return decode(row["number"], row["image"], row["label"])

    dataset = Decoded(local=folder, shuffle=True, shuffle_seed=int(time.time()), batch_size=BATCH)
    return torch.utils.data.DataLoader(dataset, BATCH, drop_last=True, num_workers=workers, collate_fn=batch_of)


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Medians; the ratio is the median over rounds of a reader's rate to the round's best other loader."""
    best = [
        max(found[i]["images_per_s"] for name, found in results.items() if not name.startswith("distuda"))
        for i in range(len(next(iter(results.values()))))
    ]
    lines = [
        f"{date.today()} · {platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "",
        "| reader | images/s, median (all) | of the best other loader | first batch [s] | longest wait [s] |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, found in results.items():
        rates = [f["images_per_s"] for f in found]
        ratio = statistics.median(r / b for r, b in zip(rates, best, strict=True))
        each = " ".join(f"{r:.0f}" for r in rates)
        first, wait = (statistics.median(f[key] for f in found) for key in ("first_batch_s", "longest_wait_s"))
        lines.append(f"| {name} | {np.median(rates):.0f} ({each}) | {ratio:.2f} | {first:.2f} | {wait:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
