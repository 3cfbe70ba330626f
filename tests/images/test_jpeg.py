import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipit.images import jpeg
from clipit.images.decode import ImageError, Unreadable, attempt, decode

simplejpeg = pytest.importorskip("simplejpeg")


@pytest.fixture(autouse=True)
def _clear_cache() -> Iterator[None]:
    jpeg.find_decoder.cache_clear()
    yield
    jpeg.find_decoder.cache_clear()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Encoded images that were passed to simplejpeg."""
    jpeg.find_decoder()  # compares simplejpeg with Pillow
    decoded: list[bytes] = []
    original = simplejpeg.decode_jpeg

    def record(data: bytes, *arguments: object, **options: object) -> np.ndarray:
        decoded.append(data)
        pixels: np.ndarray = original(data, *arguments, **options)
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", record)
    jpeg.find_decoder.cache_clear()
    jpeg.find_decoder()
    decoded.clear()
    return decoded


def picture(width: int = 61, height: int = 45, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_common_files_are_decoded_by_simplejpeg_to_equal_pixels(
    sampling: str, calls: list[bytes], tmp_path: Path
) -> None:
    files = [encoded(picture(61, height), subsampling=sampling, quality=q) for height, q in ((45, 95), (8, 30))]
    files.append(encoded(picture(), subsampling=sampling, progressive=True, restart_marker_blocks=2))
    for data in files:
        assert np.array_equal(np.asarray(decode(io.BytesIO(data))), by_pillow(data))
    (tmp_path / "a.jpg").write_bytes(files[0])
    assert np.array_equal(np.asarray(decode(tmp_path / "a.jpg")), by_pillow(files[0]))
    assert calls == [*files, files[0]]


def test_other_kinds_of_files_are_decoded_by_pillow(calls: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    rgb = picture()
    rotated = bytearray(encoded(rgb))
    frame = rotated.index(b"\xff\xc0")
    rotated[frame + 11] = 0x12  # luma sampled 1 x 2, a layout that is not compared with Pillow
    png = io.BytesIO()
    rgb.save(png, "PNG")
    for data in (encoded(picture(mode="L")), encoded(picture(mode="CMYK")), bytes(rotated), png.getvalue()):
        result = attempt(lambda data=data: decode(io.BytesIO(data)), tile_id="a", where="b")  # type: ignore[misc]
        assert isinstance(result, Image.Image | Unreadable)
    assert len(calls) == 3, "files should be decoded again for the warnings of libjpeg"
    calls.clear()
    monkeypatch.setattr(jpeg, "_MAX_PIXELS", 100)
    for data in (encoded(rgb), encoded(picture(mode="L"))):
        assert decode(io.BytesIO(data)).size == rgb.size
    assert not calls


def test_damaged_files_are_decoded_like_pillow_or_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    intact = encoded(picture(40, 40), quality=85)

    def outcome(data: bytes) -> str | bytes:
        result = attempt(lambda: decode(io.BytesIO(data)), tile_id="a", where="b")
        return result.reason if isinstance(result, Unreadable) else result.tobytes()

    damaged = []
    for seed in range(400):
        random = np.random.default_rng(seed)
        data = np.frombuffer(intact, dtype=np.uint8).copy()
        data[random.integers(2, len(data), 2)] = random.integers(0, 256, 2)
        damaged.append(data.tobytes()[: len(data) if seed % 3 else int(random.integers(2, len(data)))])
    assert jpeg.find_decoder() is not None
    fast = [outcome(data) for data in damaged]
    monkeypatch.setattr(jpeg, "find_decoder", lambda: None)
    pillow = [outcome(data) for data in damaged]
    reported = [isinstance(text, str) and "some of its pixels are wrong" in text for text in fast]
    assert sum(reported) > 50
    for with_pillow, with_simplejpeg, is_reported in zip(pillow, fast, reported, strict=True):
        assert isinstance(with_pillow, bytes) if is_reported else with_pillow == with_simplejpeg
    assert len({text for text in pillow if isinstance(text, str)}) > 1
    assert any(isinstance(text, bytes) for text in fast)


def test_damaged_pixels_are_reported_but_not_padding_at_the_end() -> None:
    intact = encoded(picture(200, 200), quality=85)
    middle = len(intact) // 2
    zeros = intact[:middle] + bytes(300) + intact[middle + 300 :]
    repeated = intact[:middle] + intact[middle + 200 : middle + 400] + intact[middle + 200 :]
    for data in (zeros, repeated):
        assert by_pillow(data).shape == (200, 200, 3)
        with pytest.raises(ImageError, match=r"some of its pixels are wrong .*Corrupt JPEG data"):
            decode(io.BytesIO(data))
    for padding in (bytes(20), b"\xff" * 7):
        padded = intact[:-2] + padding + intact[-2:] + b"trailing"
        assert np.array_equal(np.asarray(decode(io.BytesIO(padded))), by_pillow(intact))


def test_repeated_bytes_are_reported_in_tables_but_not_after_comments() -> None:
    intact = encoded(picture(200, 200), comment=b"a comment")
    table = intact.index(b"\xff\xc4\x00\xb5")  # Huffman table (181 bytes)
    for place in range(table + 30, table + 180, 10):
        with pytest.raises(ImageError, match=r"some of its pixels are wrong|broken data stream"):
            decode(io.BytesIO(intact[:place] + intact[place : place + 4] + intact[place:]))
    comment = intact.index(b"a comment") + len(b"a comment")
    longer = intact[:comment] + b"\x01\x02" + intact[comment:]
    assert np.array_equal(np.asarray(decode(io.BytesIO(longer))), by_pillow(intact))


def with_1x2_sampling(image: Image.Image) -> bytes:
    """Encode an image, and change the sampling of luma in the header to 1 x 2."""
    data = bytearray(encoded(image, subsampling="4:2:2"))
    data[data.index(b"\xff\xc0") + 11] = 0x12
    return bytes(data)


def in_tiff(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", compression="jpeg", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "intact",
    [
        encoded(picture(200, 200, "L")),
        encoded(picture(200, 200, "CMYK")),
        with_1x2_sampling(picture(200, 200)),
        in_tiff(picture(200, 200)),
        in_tiff(picture(200, 200, "L")),
        in_tiff(picture(200, 200), strip_size=200 * 3 * 64),
    ],
    ids=["grey", "CMYK", "1x2", "TIFF", "grey TIFF", "strips"],
)
def test_damage_that_pillow_decodes_without_a_warning_is_reported(intact: bytes) -> None:
    assert np.array_equal(np.asarray(decode(io.BytesIO(intact))), by_pillow(intact))
    middle = intact.index(b"\xff\xda") + 400
    repeated = intact[:middle] + intact[middle - 200 : middle] + intact[middle + 200 :]
    with pytest.raises(ImageError, match=r"damaged.*Corrupt JPEG data"):
        decode(io.BytesIO(repeated))


@pytest.mark.parametrize("options", [{"restart_marker_rows": 1}, {"progressive": True}], ids=str)
def test_damage_before_a_marker_is_reported_but_not_padding(options: dict[str, bool]) -> None:
    intact = encoded(picture(200, 200), **options)
    start = jpeg._first_scan(intact) + 2
    marker = next(place for place in range(start, len(intact)) if intact[place] == 0xFF and intact[place + 1])
    rest = bytes(range(1, 40))
    with pytest.raises(ImageError, match=r"some of its pixels are wrong .*3\d extraneous bytes before marker"):
        decode(io.BytesIO(intact[:marker] + rest + intact[marker:]))
    padded = intact[:marker] + bytes(20) + intact[marker:]
    assert np.array_equal(np.asarray(decode(io.BytesIO(padded))), by_pillow(intact))
    table = intact.index(b"\xff\xdb")
    odd = intact[:table] + rest + intact[table:]
    assert np.array_equal(np.asarray(decode(io.BytesIO(odd))), by_pillow(intact)), (
        "the additional bytes should not affect pixels"
    )


def test_a_missing_scan_is_reported() -> None:
    """Later scans refine coefficients of the missing one."""
    intact = encoded(picture(200, 200), progressive=True)
    scans = [match.start() for match in re.finditer(b"\xff\xda", intact)]
    first = scans[2]  # first scan of the higher frequencies of a colour channel
    assert intact[first + 7 : first + 10] == bytes([1, 63, 1]), (
        "expected the scan of coefficients 1 to 63 without the last bit"
    )
    tables = intact.index(b"\xff\xc4", first)  # Huffman tables of the next scan
    with pytest.raises(ImageError, match=r"some of its pixels are wrong .*Inconsistent progression sequence"):
        decode(io.BytesIO(intact[:first] + intact[tables:]))
    unrefined = intact[: scans[-1]] + intact[-2:]  # the last scans are optional
    assert decode(io.BytesIO(unrefined)).size == (200, 200)


def test_a_strip_without_an_end_marker_is_complete() -> None:
    """Some programs omit the marker, and libtiff does not require it."""
    intact = in_tiff(picture(64, 64), strip_size=2**20)
    end = intact.rindex(b"\xff\xd9")
    omitted = intact[:end] + b"\0\0" + intact[end + 2 :]
    assert np.array_equal(np.asarray(decode(io.BytesIO(omitted))), by_pillow(intact))


def test_simplejpeg_is_not_used_if_its_pixels_differ_from_pillow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original: Callable[..., np.ndarray] = simplejpeg.decode_jpeg

    def brighter(*arguments: object, **options: object) -> np.ndarray:
        pixels = original(*arguments, **options).copy()
        pixels[0, 0, 0] ^= 1
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", brighter)
    caplog.set_level("INFO", logger="clipit")
    assert jpeg.find_decoder() is None
    assert "differently from this build of Pillow" in caplog.text
    data = encoded(picture())
    assert np.array_equal(np.asarray(decode(io.BytesIO(data))), by_pillow(data))


def test_pillow_is_used_if_simplejpeg_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "simplejpeg", None)
    assert jpeg.find_decoder() is None
    data = encoded(picture())
    assert np.array_equal(np.asarray(decode(io.BytesIO(data))), by_pillow(data))
