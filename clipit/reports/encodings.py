"""Text encodings of reports: find codecs, locate decoding errors, and detect files in a different encoding."""

import codecs
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from clipit.errors import ConfigError, DataError, counted, shortlist
from clipit.input_files.git_lfs import PULL, is_pointer

_HEAD_BYTES = 1024  # number of bytes checked at the start of a file
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF32_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)  # the little-endian mark begins with that of UTF-16
_RUN_OF_NULLS = re.compile(rb"\0{16,}")
_CONTINUATION = "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(0x80, 0xC0))
_MISREAD = re.compile(
    rf"[\u00c2-\u00c5\u00ce\u00cf][{re.escape(_CONTINUATION)}]|\u00e2\u20ac[{re.escape(_CONTINUATION)}]"
)
"""UTF-8 misread as cp1252: two or three characters in place of one, such as \u00c3\u00a4 for \u00e4."""


_ESCAPED = re.compile(
    r"\\(?:\.(?:br|sp|ce|fi|nf|in|ti|sk)[+\-0-9]*|X(?:[0-9A-Fa-f]{2})+|[TFSRE])\\|\\u[0-9A-Fa-f]{4}|(?:=[0-9A-F]{2}){2,}"
    r"|\Ab['\"](?=.*['\"]\s*\Z)",
    re.DOTALL,
)
"""Escape sequences of HL7 messages, JSON and e-mails, and the text of a Python bytes object."""

_LIMITS = frozenset({255, 256, 500, 512, 1000, 1024, 2000, 2048, 4000, 4096, 8000, 32_767, 65_535})
"""Lengths to which databases and spreadsheets truncate texts."""
_MIN_LIMIT = 200  # characters; shorter reports may have equal lengths by chance


def describe_misread(texts: Sequence[str]) -> str:
    """Describe how many texts contain UTF-8 that was misread as a different encoding; "" if none do."""
    return _describe_matches(
        _MISREAD,
        texts,
        "characters",
        "UTF-8 that another program misread as a different encoding; export the reports again",
    )


def describe_escaped(texts: Sequence[str]) -> str:
    """Describe how many texts contain escape sequences of other formats; "" if none do."""
    return _describe_matches(
        _ESCAPED,
        texts,
        "escape sequences",
        "another format (HL7, JSON, Python, e-mail) uses them for line breaks and letters; decode them, or export the "
        "reports again",
    )


def _describe_matches(pattern: re.Pattern[str], texts: Sequence[str], kind: str, advice: str) -> str:
    matches = [match.group() for text in texts if (match := pattern.search(text))]
    if not matches:
        return ""
    reports = counted(len(matches), "report contains", "reports contain")
    return f"{reports} {kind} such as {shortlist(list(dict.fromkeys(matches)), 3)}: {advice}"


def describe_truncated(texts: Collection[str]) -> str:
    """Describe how many texts another program has probably truncated; "" if none were.

    Truncated texts have the same length, which no other text exceeds, and end mid-sentence. One text is enough if
    its length is a common limit of databases and spreadsheets.
    """
    longest = max(map(len, texts), default=0)
    cut = {text for text in texts if len(text) == longest and text[-1:].isalnum()}
    if longest < _MIN_LIMIT or len(cut) < (1 if longest in _LIMITS else 3):
        return ""
    return (
        f"{counted(len(cut), 'report ends', 'reports end')} mid-sentence at exactly {longest:,} characters, and no "
        "report is longer: another program has probably truncated them; export the reports again"
    )


def codec(encoding: str) -> str:
    """Return the Python codec of an encoding; UTF-8 also skips a byte order mark.

    Raises:
        ConfigError: The encoding is unknown, or is not a text encoding.
    """
    try:
        name = codecs.lookup(encoding).name
        with suppress(UnicodeDecodeError):
            b"a".decode(name)  # a LookupError for codecs that do not return text, such as base64
    except (LookupError, ValueError) as error:
        raise ConfigError(
            f"unknown text encoding {encoding!r}", where="reports.encoding", fix="use utf-8, latin-1 or cp1252"
        ) from error
    return "utf-8-sig" if name == "utf-8" else name


@contextmanager
def decoding(path: Path, encoding: str) -> Iterator[None]:
    """Convert a decoding error within the block into a `DataError` that names the file, line and byte."""
    with path.open("rb") as stream:
        _check_utf16(stream.read(_HEAD_BYTES), path, encoding)
    try:
        yield
    except UnicodeError as error:
        raise decoding_error(path.read_bytes(), path, encoding) from error


def check_head(data: bytes, where: object, encoding: str) -> None:
    """Reject Git LFS pointers, and UTF-16 text if a different encoding is configured.

    Raises:
        DataError: The content is a Git LFS pointer or UTF-16.
    """
    if is_pointer(data):
        raise DataError("this file is a Git LFS pointer, not the data", where=where, fix=PULL)
    _check_utf16(data[:_HEAD_BYTES], where, encoding)


def _check_utf16(first_bytes: bytes, where: object, encoding: str) -> None:
    """Reject UTF-16 text, which many encodings decode without an error, leaving a null character next to each letter.

    Longer runs of null characters are ignored: they indicate damage, such as a lost disk sector.
    """
    first_bytes = _RUN_OF_NULLS.sub(b"", first_bytes)
    even, odd = first_bytes[::2].count(0), first_bytes[1::2].count(0)
    if codec(encoding).startswith(("utf-16", "utf-32")) or not first_bytes or 4 * (even + odd) < len(first_bytes):
        return
    likely = "utf-16-le" if odd > even else "utf-16-be"
    fix = f"set reports.encoding to the file's encoding, probably {likely} (--reports.encoding={likely})"
    raise DataError(
        f"many null characters: the file is not {encoding} text",
        where=where,
        fix=_encoding_hint(first_bytes) if first_bytes.startswith(_UTF16_MARKS + _UTF32_MARKS) else fix,
    )


def decoding_error(data: bytes, where: object, encoding: str) -> DataError:
    """Build the error for text that cannot be decoded, with the line and position of the first invalid byte."""
    position = "unknown position"
    try:
        data.decode(codec(encoding))
    except UnicodeDecodeError as error:
        start = error.start + (3 if codec(encoding) == "utf-8-sig" and data.startswith(codecs.BOM_UTF8) else 0)
        line_start = data.rfind(b"\n", 0, start) + 1
        line = data.count(b"\n", 0, start) + 1
        position = "end of file"
        if start < len(data):
            position = f"line {line}, byte {start - line_start + 1} (0x{data[start]:02x})"
    except UnicodeError:
        pass
    return DataError(f"the text is not valid {encoding}", where=f"{where}, {position}", fix=_encoding_hint(data))


def _encoding_hint(data: bytes) -> str:
    """Suggest an encoding, from a byte order mark or from bytes that are printable only in some encodings."""
    if data.startswith(_UTF32_MARKS):
        return "set reports.encoding to utf-32, as the byte order mark indicates (--reports.encoding=utf-32)"
    if data.startswith(_UTF16_MARKS):
        return "set reports.encoding to utf-16, as the byte order mark indicates (--reports.encoding=utf-16)"
    guess = "latin-1"
    if any(0x80 <= byte <= 0x9F for byte in data):  # control characters in latin-1
        try:
            data.decode("cp1252")
        except UnicodeDecodeError:
            return "set reports.encoding (the file is neither latin-1 nor cp1252), or convert the file to UTF-8"
        guess = "cp1252"
    return f"set reports.encoding to the file's encoding (--reports.encoding={guess}), or convert the file to UTF-8"
