"""The other domain's image of (nearly) the same view: found by key in a data set that is prepared already."""

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from distuda import storage
from distuda.data.dataset import Dataset, open_dataset
from distuda.data.manifest import RowGroup
from distuda.data.shards import read_row_group
from distuda.errors import UserError, nearest

COLUMNS = ("key", "other_key")
"""First line of a list of pairs."""


@dataclass(frozen=True)
class Pairs:
    """Images of another data set by the keys of this one.

    Attributes:
        other: the data set that the images come from.
        numbers: key here -> number of the sample there, for the samples that have a partner.
    """

    other: Dataset
    numbers: Mapping[str, int]

    def image(self, key: str) -> bytes | None:
        """The encoded image of a sample's partner; None without one."""
        if key not in self.numbers:
            return None
        number = self.numbers[key]
        group = int(self.other.starts.searchsorted(number, side="right")) - 1
        row = number - int(self.other.starts[group])
        content: bytes = _images(self.other.uri, self.other.groups[group])[row].as_py()
        return content

    def digest(self) -> str:
        """Hash of all that decides the result, for the plan of a prepared set."""
        total = hashlib.sha256(self.other.manifest.content_hash.encode())
        total.update(repr(sorted(self.numbers.items())).encode())
        return total.hexdigest()


def find_pairs(keys: Iterable[str], other_uri: str, list_uri: str | None = None) -> Pairs:
    """Partners of samples in another prepared data set.

    Args:
        keys: of the samples that are to get partners.
        other_uri: a folder of shards.
        list_uri: CSV file with the columns ``key`` and ``other_key``; None = partners have the same key.

    Raises:
        UserError: a list that cannot be used, or not one partner found.
    """
    other, wanted = open_dataset(other_uri), list(keys)
    there = {str(key): number for number, key in enumerate(other.index["key"].to_pylist())}
    listed = {key: key for key in wanted} if list_uri is None else _read_list(list_uri, there, other_uri)
    numbers = {key: there[listed[key]] for key in wanted if listed.get(key) in there}
    if not numbers:
        how = f"are paired in {list_uri!r}" if list_uri else "have the same key"
        raise UserError(
            f"no two samples {how}: keys here look like {wanted[0]!r}, those of {other_uri!r} like "
            f"{next(iter(there))!r}. Give a list of pairs (--pair-list) with the first line {','.join(COLUMNS)}."
        )
    return Pairs(other, numbers)


def _read_list(uri: str, there: Mapping[str, int], other_uri: str) -> dict[str, str]:
    """Key -> the partner's key. Every partner must exist; keys that are not wanted here do no harm."""
    try:
        table = csv.DictReader(io.StringIO(storage.read_bytes(uri).decode("utf-8-sig")))
        lines = list(table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the list of pairs {uri!r}: {error}. It must be CSV in UTF-8.") from error
    if missing := [name for name in COLUMNS if name not in (table.fieldnames or ())]:
        raise UserError(
            f"the list of pairs {uri!r} has no column {missing[0]!r}. Its first line must be {','.join(COLUMNS)}."
        )
    partners: dict[str, str] = {}
    for line in lines:
        key, other = str(line["key"]), str(line["other_key"])
        if key in partners:
            raise UserError(f"the list of pairs {uri!r} has {key!r} twice. A sample has one pair; remove a line.")
        if other not in there:
            raise UserError(
                f"the list of pairs {uri!r} names {other!r}, which {other_uri!r} does not hold{nearest(other, there)}. "
                f"Correct the line, or remove it: {key!r} is then kept without a pair."
            )
        partners[key] = other
    return partners


@lru_cache(maxsize=2)  # sets in one order meet the same row group again and again
def _images(uri: str, group: RowGroup) -> pa.ChunkedArray:
    """Encoded images of one row group."""
    return read_row_group(uri, group, ["image"])["image"]
