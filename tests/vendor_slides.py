"""Small slides in formats of scanners: Leica (SCN), Hamamatsu (NDPI) and 3DHISTECH (MRXS), as openslide reads them."""

import io
import struct
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from slide_files import levels_of

ORIGIN, SCANNED = (128, 64), (1024, 768)
"""Place of the picture in the scanned area of an SCN slide, and the size of that area, in pixels."""
_NDPI = {"format": 65420, "lens": 65421, "x": 65422, "y": 65423, "z": 65424}  # tags of Hamamatsu


def write_scn(path: Path, pixels: np.ndarray, mpp: float = 0.5) -> Path:
    """Write a picture as one region of a larger scanned area, with two levels."""
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
    """Write a picture as two levels, each a single JPEG."""
    plain = path.with_suffix(".tif")  # tifffile reads tags of files named .ndpi in another way
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
    with tifffile.TiffFile(plain, mode="r+b") as file:  # tifffile encodes JPEG only with a further package
        for page in file.pages:
            page.tags["Compression"].overwrite(7)
            page.tags["PhotometricInterpretation"].overwrite(6)
    return plain.rename(path)


def write_mrxs(path: Path, pixels: np.ndarray, mpp: float = 0.5, edge: int = 100) -> Path:
    """Write a picture, whose size is a multiple of `edge`, as one level; white images are left out, as scanners do."""
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


def _jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG")
    return stream.getvalue()
