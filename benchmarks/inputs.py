"""Seeded synthetic inputs: tiles in a zip, stores of random vectors, models with random weights."""

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

    from benchmarks.harness import Options
    from clipit.models.vlm import VLM
    from clipit.stores.embed import Store
    from clipit.tiles.tileset import TileSet

SIZE = 224  # default edge length of a tile in pixels
CLASSES = ("first", "second", "third")


def make_tiles(folder: Path, count: int, distinct: int = 1024, size: int = SIZE) -> "TileSet":
    """Write JPEG tiles to a zip with a table beside it, and open them as a user's own table.

    The pixels are noise on smooth random shapes, so that a file is about as large (20 kB) as that of a real tile.

    Args:
        folder: New folder.
        count: Number of tiles.
        distinct: Number of different images, which the other tiles repeat.
        size: Edge length of a tile in pixels.
    """
    from clipit.config.run import LabelsConfig, TilesConfig
    from clipit.tiles.hidden_labels import hide_labels
    from clipit.tiles.load_tiles import read_tiles

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["path,label,split"]
    with zipfile.ZipFile(folder / "tiles.zip", "w") as archive:
        images = [encode(draw_tile(rng, size)) for _ in range(min(count, distinct))]
        for number in range(count):
            archive.writestr(f"{number:05d}.jpg", images[number % len(images)])
            rows.append(f"{number:05d}.jpg,{CLASSES[number % 3]},{'train' if number < count - 6 else 'validation'}")
    (folder / "tiles.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    labels = LabelsConfig(kind="fraction", value=0.5)
    config = TilesConfig(
        source="table", path=str(folder / "tiles.csv"), images=str(folder / "tiles.zip"), labels=labels
    )
    return hide_labels(read_tiles(config), config.labels, 0)


def make_image_folder(folder: Path, count: int, distinct: int = 1024, kinds: Sequence[str] = ("JPEG", "PNG")) -> Path:
    """Write image files of several formats in turn to a folder, with pixels as in `make_tiles`."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    images = [encode(draw_tile(rng), kinds[number % len(kinds)]) for number in range(min(count, distinct))]
    for number in range(count):
        suffix = {"JPEG": "jpg", "PNG": "png"}[kinds[number % len(kinds)]]
        (folder / f"{number:05d}.{suffix}").write_bytes(images[number % len(images)])
    return folder


def draw_tile(rng: np.random.Generator, size: int = SIZE) -> "Image.Image":
    """Draw noise on smooth random shapes."""
    from PIL import Image

    coarse = Image.fromarray(rng.integers(60, 240, (size // 16, size // 16, 3), dtype=np.uint8))
    soft = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
    return Image.fromarray((soft + rng.normal(0, 12, soft.shape)).clip(0, 255).astype(np.uint8))


def encode(image: "Image.Image", kind: str = "JPEG", **options: Any) -> bytes:
    """Encode an image, with quality 90 unless Pillow options are given."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **(options or {"quality": 90}))
    return buffer.getvalue()


def make_vlm(folder: Path, options: "Options", pixels: int = SIZE) -> "VLM":
    """Build a VLM with random weights.

    Args:
        folder: New folder for its files.
        options: Options that select the image tower: a ViT-S/16; on a GPU, a ViT-L/16; if quick, two layers of a
            ViT-Ti/16.
        pixels: Input size in pixels; above 224 px, the tower is a ViT-B/16, like that of CONCH.
    """
    import open_clip
    import torch
    from open_clip.push_to_hf_hub import save_config_for_hf
    from safetensors.torch import save_file

    from clipit.config.run import VLMConfig
    from clipit.distributed import get_processes
    from clipit.models.vlm import load_vlm

    width, layers = (768, 12) if pixels > SIZE else (1024, 24) if options.gpu else (384, 12)
    if options.quick:
        width, layers = 192, 2
    architecture: dict[str, Any] = {
        "embed_dim": 512,
        "vision_cfg": {"image_size": pixels, "layers": layers, "width": width, "head_width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**architecture)
    preprocess = {"size": pixels, "interpolation": "bicubic", "resize_mode": "shortest"}
    open_clip.model.set_model_preprocess_cfg(model, {**preprocess, "mean": (0.5,) * 3, "std": (0.5,) * 3})
    folder.mkdir(parents=True)
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    save_config_for_hf(model, folder / "open_clip_config.json", architecture)
    config = VLMConfig(name=str(folder), precision="bf16" if options.gpu else "fp32")
    return load_vlm(config, get_processes().device)


def make_store(root: Path, kind: str, count: int, dim: int, seed: int) -> "Store":
    """Write a complete store of random unit vectors, in the format of `embed_texts` and `embed_tiles`.

    Args:
        root: Output root.
        kind: `text_store` or `tile_store`.
        count: Number of rows.
        dim: Dimension of the vectors.
        seed: Seed for the vectors.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from clipit.distributed import build_once
    from clipit.stores.embed import SHARD, Store
    from clipit.vectors import unit

    def make(folder: Path) -> dict[str, Any]:
        for start in range(0, count, SHARD):
            rows = min(SHARD, count - start)
            vectors = unit(np.random.default_rng([seed, start]).standard_normal((rows, dim), dtype=np.float32))
            np.save(folder / f"emb-{start // SHARD:05d}.npy", vectors.astype(np.float16))
            ids = [f"{kind[:4]}{row:012d}" for row in range(start, start + rows)]
            pq.write_table(pa.table({"id": ids}), folder / f"ids-{start // SHARD:05d}.parquet")
        return {"rows": count, "dim": dim, "vlm": "random vectors"}

    inputs = {"rows": count, "dim": dim, "seed": seed, "vlm": "random"}
    return Store(build_once(root, kind, inputs, make))


def write_jpeg_slide(
    path: Path,
    levels: Sequence[tuple[int, int]],
    tile: Callable[[int, int, int], bytes],
    *,
    edge: int = 256,
    mpp: float = 0.25,
    rgb: bool = False,
) -> Path:
    """Write a tiled pyramid of JPEG tiles, which openslide opens as a generic TIFF.

    Args:
        path: Path of the TIFF file.
        levels: Width and height of each level in pixels, finest first.
        tile: Function that returns the JPEG of a tile of `edge` pixels, given its level, row and column.
        edge: Edge length of a tile in pixels.
        mpp: Micrometres per pixel of the finest level.
        rgb: Whether the tiles are encoded as RGB, as in some SVS files, instead of YCbCr.
    """
    changes = {"Compression": 7} | ({} if rgb else {"PhotometricInterpretation": 6})
    sampling = [] if rgb else [(530, "H", 2, (2, 2), True)]
    return _write_slide(path, levels, tile, edge, mpp, changes, extratags=sampling, metadata=None)


def write_jpeg2000_slide(
    path: Path, size: tuple[int, int], tile: Callable[[int, int, int], bytes], *, edge: int = 256, mpp: float = 0.5
) -> Path:
    """Write a slide with one level of JPEG 2000 tiles (RGB codestreams), which openslide opens as Aperio SVS.

    Args:
        path: Path of the SVS file.
        size: Width and height in pixels.
        tile: Function that returns the codestream of a tile of `edge` pixels, given its level, row and column.
        edge: Edge length of a tile in pixels.
        mpp: Micrometres per pixel.
    """
    description = f"Aperio Image Library\r\n{size[0]}x{size[1]} J2K|AppMag = {10 / mpp:.0f}|MPP = {mpp}"
    return _write_slide(path, [size], tile, edge, mpp, {"Compression": 33005}, description=description, metadata=None)


def _write_slide(
    path: Path,
    levels: Sequence[tuple[int, int]],
    tile: Callable[[int, int, int], bytes],
    edge: int,
    mpp: float,
    changes: Mapping[str, int],
    **options: Any,
) -> Path:
    """Write tiles that are already encoded, because tifffile needs an additional package to encode them.

    The tiles are first declared as deflate-compressed, and the tags are corrected afterwards.
    """
    import tifffile

    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for number, (width, height) in enumerate(levels):
            pixels = 1e4 / mpp * width / levels[0][0]  # per centimetre
            writer.write(
                (tile(number, row, column) for row in range(-(-height // edge)) for column in range(-(-width // edge))),
                shape=(height, width, 3), dtype=np.uint8, tile=(edge, edge), photometric="rgb", compression="deflate",
                subfiletype=int(number > 0), resolution=(pixels, pixels), resolutionunit="CENTIMETER", **options,
            )  # fmt: skip
    with tifffile.TiffFile(path, mode="r+b") as file:
        for page in file.pages:
            for name, value in changes.items():
                page.tags[name].overwrite(value)
    return path
