"""Write small slides in real formats: pyramidal TIFFs that openslide can open, OME-TIFFs and DICOM."""

import struct
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

WHITE, PINK, PURPLE, PEN = (255, 255, 255), (225, 120, 170), (120, 70, 160), (20, 160, 60)


def picture(width: int = 600, height: int = 400) -> np.ndarray:
    """White image with a rectangle (x 100 to 400, y 80 to 320) that is pink up to x = 250 and purple beyond."""
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    pixels[80:320, 100:400] = PINK
    pixels[80:320, 250:400] = PURPLE
    return pixels


def levels_of(pixels: np.ndarray, count: int) -> list[np.ndarray]:
    image = Image.fromarray(pixels)
    sizes = [(image.width >> level, image.height >> level) for level in range(count)]
    return [np.asarray(image.resize(size, Image.Resampling.BOX)) for size in sizes]


def write_slide(path: Path, pixels: np.ndarray, mpp: float | None = 1.0, levels: int = 3) -> Path:
    """Write a tiled pyramidal TIFF, one page per level, which openslide opens as generic TIFF."""
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(levels_of(pixels, levels)):
            scaled = {k: tuple(v / 2**number for v in r) if k == "resolution" else r for k, r in resolution.items()}
            file.write(
                level, tile=(64, 64), photometric="rgb", compression="deflate", subfiletype=int(number > 0),
                metadata=None, **scaled,
            )  # fmt: skip
    return path


def write_ome(path: Path, pixels: np.ndarray, mpp: float = 1.0, levels: int = 2, axes: str = "YXS") -> Path:
    """Write an OME-TIFF with the lower-resolution levels as sub-IFDs."""
    first, *others = levels_of(pixels, levels) if axes == "YXS" else [pixels]
    units = {"PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp, "PhysicalSizeYUnit": "µm"}
    rgb = {"photometric": "rgb"} if axes == "YXS" else {"photometric": "minisblack"}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(first, tile=(64, 64), subifds=len(others), metadata={"axes": axes, **units}, **rgb)
        for level in others:
            file.write(level, tile=(64, 64), subfiletype=1, **rgb)
    return path


def damage_tile(path: Path, x: int, y: int) -> None:
    """Corrupt the internal tile of level 0 that contains pixel (x, y), so that it cannot be decoded."""
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        number = (y // 64) * -(-page.imagewidth // 64) + x // 64
        start, count = page.dataoffsets[number], page.databytecounts[number]
    content = bytearray(path.read_bytes())
    content[start : start + count] = bytes(count)
    path.write_bytes(content)


def write_dicom(path: Path, pixels: np.ndarray, mpp: float = 1.0, series: str = "2.25.1", edge: int = 64) -> Path:
    """Write a single-level DICOM slide with uncompressed tiles (explicit VR, little endian)."""
    height, width = pixels.shape[:2]
    rows, columns = -(-height // edge), -(-width // edge)
    padded = np.pad(pixels, ((0, rows * edge - height), (0, columns * edge - width), (0, 0)), constant_values=255)
    tiles = padded.reshape(rows, edge, columns, edge, 3).swapaxes(1, 2)
    instance = f"{series}.{width}"
    measures = _sequence(0x0028, 0x9110, _text(0x0028, 0x0030, "DS", f"{mpp / 1000}\\{mpp / 1000}"))
    body = [
        _text(0x0008, 0x0008, "CS", "ORIGINAL\\PRIMARY\\VOLUME\\NONE"),
        _text(0x0008, 0x0016, "UI", "1.2.840.10008.5.1.4.1.1.77.1.6"),
        _text(0x0008, 0x0018, "UI", instance),
        _text(0x0008, 0x0060, "CS", "SM"),
        _text(0x0020, 0x000D, "UI", "2.25.9"),
        _text(0x0020, 0x000E, "UI", series),
        _text(0x0020, 0x9311, "CS", "TILED_FULL"),
        _number(0x0028, 0x0002, 3),
        _text(0x0028, 0x0004, "CS", "RGB"),
        _number(0x0028, 0x0006, 0),
        _text(0x0028, 0x0008, "IS", str(rows * columns)),
        *(_number(0x0028, tag, value) for tag, value in ((16, edge), (17, edge))),
        *(_number(0x0028, 0x0100 + tag, value) for tag, value in enumerate((8, 8, 7, 0))),
        *(_number(0x0048, tag, value, "UL") for tag, value in ((6, width), (7, height))),
        _number(0x0048, 0x0303, 1, "UL"),
        _sequence(0x5200, 0x9229, measures),
        _element(0x7FE0, 0x0010, "OB", tiles.tobytes()),
    ]
    meta = [
        _element(0x0002, 0x0001, "OB", b"\0\1"),
        _text(0x0002, 0x0002, "UI", "1.2.840.10008.5.1.4.1.1.77.1.6"),
        _text(0x0002, 0x0003, "UI", instance),
        _text(0x0002, 0x0010, "UI", "1.2.840.10008.1.2.1"),
    ]
    length = _number(0x0002, 0x0000, sum(map(len, meta)), "UL")
    path.write_bytes(bytes(128) + b"DICM" + length + b"".join(meta) + b"".join(body))
    return path


def _element(group: int, tag: int, kind: str, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    head = struct.pack("<HH2s", group, tag, kind.encode())
    return (
        head
        + (struct.pack("<HI" if kind in ("OB", "SQ") else "<H", *([0] if kind in ("OB", "SQ") else []), len(value)))
        + value
    )


def _text(group: int, tag: int, kind: str, value: str) -> bytes:
    return _element(group, tag, kind, (value + (" " if len(value) % 2 and kind != "UI" else "")).encode())


def _number(group: int, tag: int, value: int, kind: str = "US") -> bytes:
    return _element(group, tag, kind, struct.pack("<I" if kind == "UL" else "<H", value))


def _sequence(group: int, tag: int, item: bytes) -> bytes:
    return _element(group, tag, "SQ", struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item)
