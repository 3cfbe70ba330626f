"""Write small slides in scanner formats that openslide reads.

The formats are Leica (SCN), Hamamatsu (NDPI), 3DHISTECH (MRXS), Ventana (BIF) and Philips (TIFF).
"""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from slide_files import levels_of

ORIGIN, SCANNED = (128, 64), (1024, 768)
"""Offset of the image in the scanned area of an SCN slide, and the size of that area, in pixels."""
_NDPI = {"format": 65420, "lens": 65421, "x": 65422, "y": 65423, "z": 65424}  # Hamamatsu's tags


def write_scn(path: Path, pixels: np.ndarray, mpp: float = 0.5) -> Path:
    """Write an SCN slide with two levels, with the image as one region of a larger scanned area."""
    nanometres = mpp * 1000

    def size(width: int, height: int) -> str:
        return f'sizeX="{width * nanometres:.0f}" sizeY="{height * nanometres:.0f}"'

    height, width = pixels.shape[:2]
    levels = levels_of(pixels, 2)
    dimensions = "".join(
        f'<dimension sizeX="{level.shape[1]}" sizeY="{level.shape[0]}" r="{number}" ifd="{number}"/>'
        for number, level in enumerate(levels)
    )
    place = f'offsetX="{ORIGIN[0] * nanometres:.0f}" offsetY="{ORIGIN[1] * nanometres:.0f}"'
    description = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="c" {size(*SCANNED)}><barcode>MQ==</barcode><image name="i">'
        '<creationDate>2026-01-01T00:00:00Z</creationDate><device model="m" version="1"/>'
        f'<pixels sizeX="{width}" sizeY="{height}">{dimensions}</pixels>'
        f'<view {size(width, height)} {place} spacingZ="0"/><scanSettings>'
        "<objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>"
        "<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>"
        "</illuminationSettings></scanSettings></image></collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, level in enumerate(levels):
            per_centimetre = 1e4 / (mpp * 2**number)
            file.write(
                level, tile=(64, 64), photometric="rgb", compression="deflate", metadata=None,
                description=None if number else description, resolution=(per_centimetre, per_centimetre),
                resolutionunit="CENTIMETER",
            )  # fmt: skip
    return path


def write_ndpi(path: Path, pixels: np.ndarray, mpp: float = 0.5) -> Path:
    """Write an NDPI slide with two levels, each a single JPEG."""
    plain = path.with_suffix(".tif")  # tifffile parses tags of .ndpi files differently
    with tifffile.TiffWriter(plain) as file:
        for number, level in enumerate(levels_of(pixels, 2)):
            per_centimetre = 1e4 / (mpp * 2**number)
            lens = (_NDPI["lens"], "f", 1, 20.0 / 2**number, True)
            places = [(_NDPI[name], "i", 1, 0, True) for name in "xyz"]
            file.write(
                iter([_jpeg(level)]), shape=level.shape, dtype=np.uint8, rowsperstrip=level.shape[0],
                photometric="rgb", compression="deflate", metadata=None, resolution=(per_centimetre, per_centimetre),
                resolutionunit="CENTIMETER", extratags=[(_NDPI["format"], "I", 1, 1, True), lens, *places],
            )  # fmt: skip
    with tifffile.TiffFile(plain, mode="r+b") as file:  # tifffile needs another package to encode JPEG
        for page in file.pages:
            page.tags["Compression"].overwrite(7)
            page.tags["PhotometricInterpretation"].overwrite(6)
    return plain.rename(path)


def write_mrxs(path: Path, pixels: np.ndarray, mpp: float = 0.5, edge: int = 100) -> Path:
    """Write a single-level MRXS slide without white tiles, as scanners do; `edge` must divide the image size."""
    rows, columns = pixels.shape[0] // edge, pixels.shape[1] // edge
    folder = path.with_suffix("")
    folder.mkdir()
    data, items = b"", []
    for number in range(rows * columns):
        top, left = number // columns * edge, number % columns * edge
        part = pixels[top : top + edge, left : left + edge]
        if (part == 255).all():
            continue
        encoded = _png(part)
        items.append(struct.pack("<4i", number, len(data), len(encoded), 0))
        data += encoded
    version, slide = b"01.02", b"0" * 32
    root = len(version) + len(slide)
    levels, first, page = root + 8, root + 12, root + 20
    index = version + slide + struct.pack("<2i", levels, 0) + struct.pack("<i", first) + struct.pack("<2i", 0, page)
    (folder / "Index.dat").write_bytes(index + struct.pack("<2i", len(items), 0) + b"".join(items))
    (folder / "Data0000.dat").write_bytes(data)
    sections = {
        "GENERAL": {
            "SLIDE_ID": slide.decode(), "IMAGENUMBER_X": columns, "IMAGENUMBER_Y": rows, "OBJECTIVE_MAGNIFICATION": 20,
            "CURRENT_SLIDE_VERSION": "01.02",
        },
        "HIERARCHICAL": {
            "INDEXFILE": "Index.dat", "HIER_COUNT": 1, "NONHIER_COUNT": 0, "HIER_0_NAME": "Slide zoom level",
            "HIER_0_COUNT": 1, "HIER_0_VAL_0_SECTION": "LAYER_0_LEVEL_0_SECTION",
        },
        "DATAFILE": {"FILE_COUNT": 1, "FILE_0": "Data0000.dat"},
        "LAYER_0_LEVEL_0_SECTION": {
            "OVERLAP_X": 0, "OVERLAP_Y": 0, "MICROMETER_PER_PIXEL_X": mpp, "MICROMETER_PER_PIXEL_Y": mpp,
            "IMAGE_FORMAT": "PNG", "IMAGE_FILL_COLOR_BGR": 16777215, "DIGITIZER_WIDTH": edge,
            "DIGITIZER_HEIGHT": edge, "IMAGE_CONCAT_FACTOR": 0,
        },
    }  # fmt: skip
    with (folder / "Slidedat.ini").open("w", encoding="utf-8") as file:
        for name, keys in sections.items():
            file.write(f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items()))
    path.write_bytes(_jpeg(pixels))
    return path


def write_bif(
    path: Path, pixels: np.ndarray, mpp: float = 0.5, edge: int = 80, advance: tuple[int, int] = (52, 64)
) -> Path:
    """Write a BIF slide: a label page with the metadata, then one scanned area of overlapping tiles in two levels.

    Args:
        path: Path of the slide.
        pixels: Image whose size exceeds that of a tile by a multiple of `advance`.
        mpp: Micrometres per pixel.
        edge: Edge length of a tile in pixels.
        advance: Stride of the tiles in x and y; the remainder of a tile overlaps the next one.
    """
    columns, rows = ((size - edge) // step + 1 for size, step in zip(pixels.shape[1::-1], advance, strict=True))
    parts = [
        [pixels[y : y + edge, x : x + edge] for x in range(0, columns * advance[0], advance[0])]
        for y in range(0, rows * advance[1], advance[1])
    ]
    joint = '<TileJointInfo Confidence="100" Direction="{}" Tile1="{}" Tile2="{}" OverlapX="{}" OverlapY="{}"/>'
    stitching = (
        f'<EncodeInfo Ver="2"><SlideStitchInfo><ImageInfo AOIScanned="1" AOIIndex="0" NumRows="{rows}" '
        f'NumCols="{columns}" Width="{edge}" Height="{edge}" Pos-X="0" Pos-Y="0">'
        + joint.format("RIGHT", 1, 2, edge - advance[0], 0)
        + joint.format("UP", columns, columns + 1, 0, edge - advance[1])  # numbered from the bottom in serpentine order
        + '</ImageInfo></SlideStitchInfo><AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>'
    )
    scan = f'<Metadata><iScan Magnification="20" ScanRes="{mpp}" Z-layers="1"/></Metadata>'
    options: dict[str, Any] = {"photometric": "rgb", "compression": "deflate", "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        label = np.full((32, 32, 3), 200, dtype=np.uint8)
        file.write(label, description="Label_Image", extratags=[_xmp(scan)], **options)
        for number, level in enumerate(levels_of(np.concatenate([np.concatenate(row, axis=1) for row in parts]), 2)):
            tags = [] if number else [_xmp(stitching)]
            description = f"level={number} mag={20 // 2**number} quality=95"
            file.write(level, tile=(edge, edge), description=description, extratags=tags, **options)
    return path


def write_philips(path: Path, pixels: np.ndarray, mpp: float = 0.5, edge: int = 64) -> Path:
    """Write a Philips TIFF with three levels padded to whole tiles, without white tiles, as scanners do."""
    height, width = (-(-size // edge) * edge for size in pixels.shape[:2])
    padded = np.full((height, width, 3), 255, dtype=np.uint8)
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    levels = levels_of(padded, 3)
    spacing = '<Attribute Name="DICOM_PIXEL_SPACING">"{0}" "{0}"</Attribute>'
    representations = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{spacing.format(mpp / 1000 * 2**number)}</DataObject>'
        for number in range(len(levels))
    )
    description = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="PIM_DP_SCANNED_IMAGES"><Array><DataObject ObjectType="DPScannedImage">'
        f'<Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>{spacing.format(mpp / 1000)}'
        '<Attribute Name="DICOM_DERIVATION_DESCRIPTION">tiff-useBigTIFF=1-levels=20,10002</Attribute>'
        f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{representations}</Array></Attribute>'
        "</DataObject></Array></Attribute></DataObject>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, level in enumerate(levels):
            rows, columns = (-(-size // edge) for size in level.shape[:2])
            whole = np.full((rows * edge, columns * edge, 3), 255, dtype=np.uint8)
            whole[: level.shape[0], : level.shape[1]] = level
            tiles = whole.reshape(rows, edge, columns, edge, 3).swapaxes(1, 2).reshape(-1, edge, edge, 3)
            file.write(
                (b"" if (tile == 255).all() else zlib.compress(tile.tobytes()) for tile in tiles),
                shape=whole.shape, dtype=np.uint8, tile=(edge, edge), photometric="rgb", compression="deflate",
                metadata=None, subfiletype=int(number > 0), software="Philips DP v1.0",
                description=None if number else description,
            )  # fmt: skip
    return path


def _xmp(text: str) -> tuple[int, str, int, bytes, bool]:
    return (700, "B", len(text), text.encode(), True)


def _jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG")
    return stream.getvalue()
