"""Index tar shards: the locations of their images, and the fields of their samples."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from os.path import commonpath
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipit.config.run import TilesConfig
from clipit.distributed import build_once, get_processes
from clipit.errors import DataError, shortlist
from clipit.images.decode import SUFFIXES
from clipit.images.image_readers import file_stamp
from clipit.input_files.folder_files import is_hidden, is_unicode
from clipit.output_files.artifacts import MANIFEST, artifact_folder, fingerprint, reading
from clipit.output_files.json_record import unique_keys
from clipit.output_files.whole_files import write_parquet
from clipit.progress import progress
from clipit.tiles.cells import stored_cell
from clipit.tiles.groups import is_group_column
from clipit.tiles.tar_shards import TarMember, TarReader, list_shards, scan_tar

OWN_FIELDS = ("id", "label", "split", "group", "mpp")
"""Fields of a sample that are read under these names, unless `tiles.columns` sets others."""
FIELD_PREFIX = "field."
"""Prefix of the index columns that contain fields."""
_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
"""Key and suffix of a member: its file name is split at the first dot, as in the webdataset package."""
_FIELDS = re.compile(r"[.](json|jsn|cls|cls2|class|count|index|inx|id|txt|text)$", re.IGNORECASE)
"""Members that contain fields."""
_JSON = frozenset({"json", "jsn"})
_KIND = "tar_index"
_MAX_FIELD_BYTES = 16 * 2**20  # maximum size of a member with fields


@dataclass(frozen=True)
class TarIndex:
    """Samples of shards, with the locations of their images.

    Attributes:
        stamps: Size and modification time of each shard.
        table: One row per sample: shard, key, name of the image ("" if there is none), offset, size, and fields.
        names: Names of all fields in the shards, including those that are not in the table.
        unread: Number of members that are hidden, or neither images nor fields, by suffix.
    """

    shards: list[Path]
    stamps: list[str]
    table: pa.Table
    names: list[str]
    unread: dict[str, int]

    def __len__(self) -> int:
        """Return the number of samples."""
        return int(self.table.num_rows)

    @cached_property
    def shard_names(self) -> list[str]:
        """Paths of the shards relative to their common folder, without .tar."""
        return [shard.absolute().relative_to(self.folder).with_suffix("").as_posix() for shard in self.shards]

    @cached_property
    def folder(self) -> Path:
        """Innermost folder that contains all shards."""
        return Path(commonpath([shard.absolute().parent for shard in self.shards]))

    @cached_property
    def shard_of(self) -> np.ndarray:
        """Index of each row's shard."""
        return np.asarray(self.table.column("shard"), dtype=np.int32)

    @cached_property
    def members(self) -> list[str]:
        """Name of each sample: `<shard>/<key>`."""
        keys = self.text("key")
        return [f"{self.shard_names[shard]}/{key}" for shard, key in zip(self.shard_of, keys, strict=True)]

    @cached_property
    def image_stamps(self) -> list[str]:
        """Stamp of each image: stamp of its shard, offset and size."""
        offsets, sizes = self.table.column("offset").to_pylist(), self.table.column("size").to_pylist()
        locations = zip(self.shard_of, offsets, sizes, strict=True)
        return [f"{self.stamps[shard]}:{offset}:{size}" for shard, offset, size in locations]

    @property
    def unread_note(self) -> str:
        """Numbers of members that were not read; "" if all were."""
        listed = shortlist([f"{suffix} ({count})" for suffix, count in sorted(self.unread.items())])
        return f"unread members, by suffix: {listed}" if listed else ""

    @property
    def known_fields(self) -> str:
        """Names of all fields, for messages, and the members that were not read, although they may contain fields."""
        unread = self.unread_note and f"; {self.unread_note}; fields are read from members such as .txt, .cls and .json"
        return f"{shortlist(self.names, 20) or 'images only'}{unread}"

    def text(self, name: str) -> list[str]:
        """Return a column as text, "" where missing."""
        return [value or "" for value in self.table.column(name).to_pylist()]

    def has(self, field: str) -> bool:
        """Return whether any sample has this field."""
        name = f"{FIELD_PREFIX}{field}"
        return name in self.table.column_names and self.table.column(name).null_count < len(self)

    def reader(self) -> TarReader:
        """Return a reader for the images."""
        offsets, sizes = (np.asarray(self.table.column(name), dtype=np.int64) for name in ("offset", "size"))
        return TarReader(self.shards, self.text("name"), self.shard_of, offsets, sizes)


def index_shards(config: TilesConfig, root: Path | None, captions: str = "") -> TarIndex:
    """Read the headers and fields of all shards, or open the existing index.

    If `root` is given, this function must be called by all processes.

    Args:
        config: Section `tiles`.
        root: Artefact folder for the index; None to build it each time.
        captions: Field with a text or a list of texts, of any length, which the index stores as JSON; "" for none.

    Raises:
        DataError: A shard is missing or damaged, or its samples do not follow the format of the webdataset package.
    """
    shards = list_shards(config.path)
    stamps = [file_stamp(shard) for shard in shards]
    suffixes, fields = _read_members(config)
    if root is None:
        tables = [_index_shard(shard, number, suffixes, fields, captions) for number, shard in enumerate(shards)]
        return _merge(shards, stamps, tables)

    def make(folder: Path) -> dict[str, Any]:
        processes = get_processes()
        files = [folder / f".part-{number:06d}.parquet" for number in range(len(shards))]
        with progress("indexing shards", len(shards), shown=processes.main) as advance:
            for number in processes.share(range(len(shards))):
                if not files[number].is_file():
                    table = _index_shard(shards[number], number, suffixes, fields, captions)
                    write_parquet(files[number], table, checksums=True)
                advance(processes.count)
        processes.barrier()
        if not processes.main:
            return {}
        tables = []
        for file in files:
            with reading(file, fix="delete this file and run the command again"):
                tables.append(pq.read_table(file, page_checksum_verification=True))
        index = _merge(shards, stamps, tables)
        write_parquet(folder / "index.parquet", index.table)
        for file in files:
            file.unlink()
        return {"samples": len(index), "names": index.names, "unread": index.unread}

    artifact = build_once(root, _KIND, _index_inputs(config, shards, stamps, captions), make)
    facts = artifact.manifest.facts
    return TarIndex(shards, stamps, artifact.table("index.parquet"), facts["names"], facts["unread"])


def has_index(config: TilesConfig, root: Path) -> bool:
    """Return whether an index of these shards exists and is current."""
    shards = list_shards(config.path)
    inputs = _index_inputs(config, shards, [file_stamp(shard) for shard in shards])
    return (artifact_folder(root, _KIND, inputs) / MANIFEST).is_file()


def _read_members(config: TilesConfig) -> tuple[tuple[str, ...], set[str]]:
    """Return the suffixes of images, and the names of the fields to index."""
    suffixes = tuple(config.columns.get("path", "").lower().split(";"))
    return suffixes, {*config.columns.values(), *OWN_FIELDS, "cls"}


def _index_inputs(config: TilesConfig, shards: list[Path], stamps: list[str], captions: str = "") -> dict[str, Any]:
    """Return the inputs that identify an index, with a fingerprint instead of a long list of shards."""
    suffixes, fields = _read_members(config)
    inputs = {
        "shards": [[str(shard), stamp] for shard, stamp in zip(shards, stamps, strict=True)],
        "suffixes": suffixes,
        "fields": sorted(fields),
        "version": 2,
        **({"captions": captions} if captions else {}),
    }
    return {"shards": len(shards), "content": fingerprint(inputs)}


def _merge(shards: list[Path], stamps: list[str], tables: list[pa.Table]) -> TarIndex:
    names: dict[str, None] = {}
    unread: Counter[str] = Counter()
    for each in tables:
        facts = json.loads(each.schema.metadata[b"facts"])
        names |= dict.fromkeys(facts["names"])
        unread.update(facts["unread"])
    table = pa.concat_tables([each.replace_schema_metadata(None) for each in tables], promote_options="default")
    return TarIndex(shards, stamps, table, sorted(names), dict(unread))


def _index_shard(path: Path, number: int, suffixes: tuple[str, ...], indexed: set[str], captions: str = "") -> pa.Table:
    """Tabulate the samples of a shard; the table's metadata lists the names of all fields."""
    samples: dict[str, _Sample] = {}
    current, names, unread = "", dict[str, None](), Counter[str]()
    for member, content in scan_tar(path, _FIELDS, _MAX_FIELD_BYTES):
        if not is_unicode(member.name):
            raise DataError("a member's name is not UTF-8", where=f"{path}, byte {member.offset}", fix="rename it")
        match, hidden = _NAME.match(member.name), is_hidden(member.name)
        name = Path(member.name).name
        if match is None or hidden or name.startswith("__"):  # the writer adds metadata under such names
            suffix = name.rpartition(".")[2] if "." in name else "(no suffix)"
            unread[f"hidden {suffix}" if hidden else suffix] += 1
            continue
        key, suffix = match[1], match[2].lower()
        if key != current and key in samples:
            raise DataError(
                f"the members of sample {key} are not consecutive, so it may be read as several samples",
                where=path,
                fix="write the shard again with tar --sort=name, or with the webdataset package; make keys unique",
            )
        current = key
        sample = samples.setdefault(key, _Sample())
        if suffix in sample.suffixes:
            raise DataError(f"two members have the name {member.name}", where=path, fix="write the shard again")
        sample.suffixes.add(suffix)
        if content is not None:
            fields = _parse(content, suffix, f"{path}!{member.name}")
            names |= dict.fromkeys(fields)
            read = {
                name: stored_cell(value)
                for name, value in fields.items()
                if name in indexed or (is_group_column(name) and is_unicode(name))
            }
            if captions and captions in fields:
                read[captions] = json.dumps(fields[captions])
            sample.add(read, f"{path}!{key}")
        elif f".{suffix.rpartition('.')[2]}" in SUFFIXES or suffix in suffixes:
            sample.images[suffix] = member
        else:
            unread[suffix] += 1
    chosen = [sample.choose(suffixes, f"{path}!{key}") for key, sample in samples.items()]
    columns = sorted({name for sample in samples.values() for name in sample.fields})
    table = pa.table(
        {
            "shard": pa.array([number] * len(samples), pa.int32()),
            "key": pa.array(list(samples), pa.string()),
            "name": pa.array([member.name for member in chosen], pa.string()),
            "offset": pa.array([member.offset for member in chosen], pa.int64()),
            "size": pa.array([member.size for member in chosen], pa.int64()),
        }
        | {
            f"{FIELD_PREFIX}{name}": pa.array([sample.fields.get(name) for sample in samples.values()], pa.string())
            for name in columns
        }
    )
    return table.replace_schema_metadata({"facts": json.dumps({"names": list(names), "unread": unread})})


class _Sample:
    def __init__(self) -> None:
        self.suffixes: set[str] = set()
        self.images: dict[str, TarMember] = {}
        self.fields: dict[str, str] = {}

    def add(self, fields: Mapping[str, str], where: str) -> None:
        """Add the fields of one member; another member's value replaces an empty one.

        Raises:
            DataError: Another member of the sample has a field of the same name with a different value.
        """
        for name, value in fields.items():
            known = self.fields.get(name, "")
            if known and value and known != value:
                raise DataError(
                    f"two members of the sample have different values for the field {name}: "
                    f"{shortlist(sorted({known, value}))}",
                    where=where,
                    fix="keep one of them; if they belong to different samples, write the shard again with no dots in "
                    "the sample names: everything after the first dot is taken as the suffix",
                )
            self.fields[name] = known or value

    def choose(self, suffixes: tuple[str, ...], where: str) -> TarMember:
        """Return the image whose suffix is first in `suffixes`, or the only image; an empty member if there is none."""
        if any(suffixes):
            matching = [self.images[suffix] for suffix in suffixes if suffix in self.images]
            return matching[0] if matching else TarMember("", 0, 0)
        if len(self.images) > 1:
            raise DataError(
                f"the sample has several images: {shortlist(sorted(self.images))}",
                where=where,
                fix="name the suffix of the tile images in tiles.columns.path; if these are images of different "
                "samples, write the shard again with no dots in the sample names: everything after the first dot is "
                "taken as the suffix",
            )
        return next(iter(self.images.values()), TarMember("", 0, 0))


def _parse(content: bytes, suffix: str, where: str) -> Mapping[str, Any]:
    try:
        text = content.decode("utf-8-sig")
        if suffix.rpartition(".")[2] not in _JSON:
            return {suffix: text}
        values = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"unreadable: {error}", where=where, fix="encode text as UTF-8, and use valid JSON in .json members"
        ) from error
    if not isinstance(values, dict):
        raise DataError("not a JSON object", where=where, fix='write an object such as {"label": "tumour"}')
    return values
