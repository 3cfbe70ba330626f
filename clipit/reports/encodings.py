"""Text encodings of reports: find codecs, locate decoding errors, and detect files in a different encoding."""

import codecs
import json
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from string import punctuation

from clipit.errors import ConfigError, DataError, counted, shortlist
from clipit.input_files.csv_tables import PARQUET
from clipit.input_files.git_lfs import PULL, is_pointer
from clipit.input_files.zip_files import reject_compressed
from clipit.reports.symbol_fonts import UNKNOWN_SYMBOL

DOCUMENTS = frozenset({".doc", ".docx", ".htm", ".html", ".odt", ".pdf", ".rtf"})
"""Suffixes of documents that are not plain text."""
CONVERT = (
    "convert the reports to .txt files, for example with pdftotext (.pdf), pandoc -t plain (.docx, .odt, .rtf, .html) "
    "or soffice --headless --convert-to txt (.doc); scanned pages need text recognition (OCR)"
)
"""Fix for errors about documents."""
_CONVERT_OR_SAVE = f"if it is a table, save it as .csv or .xlsx; otherwise {CONVERT}"
_DOCUMENT_HEADS = {
    b"%PDF-": ("a PDF file", CONVERT),
    b"PK\3\4": ("a zip file or an Office document (.docx, .odt, .xlsx)", _CONVERT_OR_SAVE),
    b"\xd0\xcf\x11\xe0": ("an Office document (.doc, .xls)", _CONVERT_OR_SAVE),
    PARQUET: ("a parquet file", "name the file .parquet if it contains the reports, or save the table as .csv"),
}
"""Format of files that are not plain text, and how to convert them, by their first bytes."""
POINTER = "a Git LFS pointer"
"""Kind of document for a Git LFS pointer."""
_TEXT_DOCUMENTS = {
    "{\\rtf": "Rich Text Format (RTF)",
    "%PDF-": "a PDF file",
    "<!DOCTYPE html": "an HTML page",
    "<html": "an HTML page",
    "<?xml": "an XML document",
    "<ClinicalDocument": "an XML document (CDA)",
    "MSH|": "an HL7 message",
    "version https://git-lfs.github.com/spec/": POINTER,
}
"""First characters of documents that are not plain text."""
JSON = "a JSON object"
_HEAD_BYTES = 1024  # number of bytes checked at the start of a file
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose little-endian mark is a prefix of this one
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Codecs by byte order mark."""
_WIDE = ("utf-16", "utf-32")
_CODE_PAGES = {
    "cp1252": "Western Europe", "cp1250": "Central Europe", "cp1251": "Cyrillic", "cp1253": "Greek",
    "cp1254": "Turkish", "cp1255": "Hebrew", "cp1256": "Arabic", "cp1257": "Baltic", "gb18030": "Chinese",
    "cp932": "Japanese", "cp949": "Korean", "cp850": "DOS", "mac_roman": "classic Mac OS",
    "iso8859_2": "Central Europe", "iso8859_5": "Cyrillic", "iso8859_7": "Greek", "koi8_r": "Cyrillic",
    "big5": "Chinese", "euc_jp": "Japanese", "cp852": "DOS, Central Europe", "cp866": "DOS, Cyrillic",
}  # fmt: skip
_WORD = re.compile(rb"\S+")
_PUNCTUATION = "\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb\u2013\u2014\u2026\u2022"
"""Quotation marks, dashes, ellipsis and bullet of code pages."""
_SEPARATOR = re.compile(r"[^A-Za-z\x80-\U0010ffff]+")
_IN_WORD = re.compile("[\u00b0\u00b1\u00b2\u00b3\u00b5\u3000-\u303f\uff00-\uff20]")
"""Unit symbols, and the punctuation of Chinese and Japanese."""
_MAX_WORDS = 10_000  # maximum number of words that are decoded with all code pages
_MIN_SCORE = 0.8  # minimum number of plausible words, relative to the best code page
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


def describe_faults(texts: Sequence[str]) -> list[str]:
    """Describe faults that another program left in texts: lost letters, escape sequences, truncation."""
    checks = (
        describe_misread,
        describe_replaced,
        describe_surrogates,
        describe_controls,
        describe_unknown_symbols,
        describe_escaped,
        describe_truncated,
    )
    return [fault for check in checks if (fault := check(texts))]


def find_misread(texts: Sequence[str]) -> list[str]:
    """List the characters in texts that are UTF-8 misread as a different encoding."""
    return list(dict.fromkeys(match.group() for text in texts if (match := _MISREAD.search(text))))


def describe_misread(texts: Sequence[str]) -> str:
    """State how many texts contain UTF-8 that was misread as a different encoding; "" if none do."""
    return _describe_matches(
        _MISREAD,
        texts,
        "characters",
        "another program has misread UTF-8 as a different encoding (export the reports again), or reports.encoding is "
        "not the encoding of the file",
    )


def describe_replaced(texts: Sequence[str], noun: str = "report") -> str:
    """State how many texts contain replacement characters, which stand for undecodable letters; "" if none do."""
    return _describe_matches(
        re.compile(r"\S{0,40}\ufffd\S{0,40}"),
        texts,
        "replacement characters (U+FFFD)",
        f"another program replaced letters that it could not convert; export the {noun}s again",
        noun,
    )


def describe_surrogates(texts: Sequence[str]) -> str:
    """State how many texts contain lone surrogates, which JSON files can contain; "" if none do."""
    return _describe_matches(
        re.compile(r"\S{0,40}[\ud800-\udfff]\S{0,40}"),
        texts,
        "lone surrogates, which stand for no letter,",
        "another program could not decode these letters, or cut a text within an emoji; export the reports again",
    )


def describe_controls(texts: Sequence[str]) -> str:
    """State how many texts contain control characters that no program writes into texts; "" if none do."""
    return _describe_matches(
        re.compile(r"\S{0,40}[\x80-\x84\x86-\x9f]\S{0,40}"),
        texts,
        "control characters",
        "reports.encoding is probably not the encoding of the file (cp1252 is more common than latin-1)",
    )


def describe_unknown_symbols(texts: Sequence[str]) -> str:
    """State how many texts contain characters of an unknown symbol font, which are dropped; "" if none do."""
    return _describe_matches(
        re.compile(rf"\S{{0,40}}{UNKNOWN_SYMBOL}\S{{0,40}}"),
        texts,
        "private-use characters, which are dropped,",
        "their meaning depends on the font; replace them, or export the reports again",
    )


def describe_escaped(texts: Sequence[str], noun: str = "report") -> str:
    """State how many texts contain escape sequences of other formats; "" if none do."""
    return _describe_matches(
        _ESCAPED,
        texts,
        "escape sequences",
        "they stand for line breaks and letters in another format (HL7, JSON, Python, e-mail); decode them, or export "
        f"the {noun}s again",
        noun,
    )


def _describe_matches(
    pattern: re.Pattern[str], texts: Sequence[str], kind: str, advice: str, noun: str = "report"
) -> str:
    matches = [match.group() for text in texts if (match := pattern.search(text))]
    if not matches:
        return ""
    affected = counted(len(matches), f"{noun} contains", f"{noun}s contain")
    return f"{affected} {kind} such as {shortlist(list(dict.fromkeys(matches)), 3)}: {advice}"


def describe_truncated(texts: Collection[str], noun: str = "report") -> str:
    """State how many texts another program has probably truncated; "" if none were.

    Truncated texts have the same length, which no other text exceeds, and end mid-sentence. One text is enough if
    its length is a common limit of databases and spreadsheets.
    """
    longest = max(map(len, texts), default=0)
    cut = {text for text in texts if len(text) == longest and text[-1:].isalnum()}
    if longest < _MIN_LIMIT or len(cut) < (1 if longest in _LIMITS else 3):
        return ""
    return (
        f"{counted(len(cut), f'{noun} ends', f'{noun}s end')} mid-sentence at exactly {longest:,} characters, and no "
        f"{noun} is longer: another program has probably truncated them; export the {noun}s again"
    )


def codec(data: bytes, encoding: str) -> str:
    """Return the Python codec of a file: the one that its byte order mark states, or else that of an encoding.

    Args:
        data: Content of the file, or its first bytes.
        encoding: Encoding of files without a byte order mark.

    Raises:
        ConfigError: The encoding is unknown, or is not a text encoding.
    """
    try:
        name = codecs.lookup(encoding).name
        with suppress(UnicodeDecodeError):
            b"a".decode(name)  # a LookupError for codecs that do not return text, such as base64
    except (LookupError, ValueError) as error:
        raise ConfigError(
            f"unknown text encoding {encoding!r}", where="reports.encoding", fix="use utf-8 or a code page (cp1252)"
        ) from error
    return next((stated for mark, stated in _MARKS.items() if data.startswith(mark)), name)


@contextmanager
def decoding(path: Path, encoding: str) -> Iterator[str]:
    """Yield the codec of a file, and convert a decoding error within the block into a `DataError` that locates it."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    check_head(head, path, encoding)
    try:
        yield codec(head, encoding)
    except UnicodeError as error:
        raise decoding_error(path.read_bytes(), path, encoding) from error


def check_head(data: bytes, where: object, encoding: str) -> None:
    """Reject Git LFS pointers, compressed files, documents, and UTF-16 text that is read as another encoding.

    Raises:
        DataError: The content is a Git LFS pointer, a compressed file, a document or UTF-16 text.
    """
    if is_pointer(data):
        raise DataError("this file is a Git LFS pointer, not the data", where=where, fix=PULL)
    reject_compressed(data, where)
    for mark, (kind, fix) in _DOCUMENT_HEADS.items():
        if data.startswith(mark):
            raise DataError(f"this file is {kind}, not plain text", where=where, fix=fix)
    _check_utf16(data[:_HEAD_BYTES], where, encoding)


def document_kind(text: str) -> str:
    """Name the format of a text that is not plain text; "" for plain text."""
    start = text.lstrip()
    if start.startswith(("{", "[{")):
        with suppress(ValueError, RecursionError):
            json.JSONDecoder().raw_decode(start.removeprefix("["))
            return JSON
    return next((name for mark, name in _TEXT_DOCUMENTS.items() if start.startswith(mark)), "")


def _check_utf16(first_bytes: bytes, where: object, encoding: str) -> None:
    """Reject UTF-16 text without a byte order mark that is read as another encoding, and the reverse.

    Many encodings decode UTF-16 without an error, leaving a null character next to each letter, and UTF-16 decodes
    other text to Chinese characters. Longer runs of null characters are ignored: they indicate damage, such as a lost
    disk sector.
    """
    name = codec(first_bytes, encoding)
    if name.startswith(_WIDE):
        if first_bytes and not first_bytes.startswith(tuple(_MARKS)) and _is_utf8(first_bytes):
            raise DataError(
                f"the file is UTF-8 text, not {encoding}",
                where=where,
                fix="set reports.encoding to utf-8 (--reports.encoding=utf-8); files with a byte order mark are read "
                "as the mark states",
            )
        return
    first_bytes = _RUN_OF_NULLS.sub(b"", first_bytes)
    even, odd = first_bytes[::2].count(0), first_bytes[1::2].count(0)
    if not first_bytes or 4 * (even + odd) < len(first_bytes):
        return
    likely = "utf-16-le" if odd > even else "utf-16-be"
    raise DataError(
        f"many null characters: the file is not {encoding} text",
        where=where,
        fix=f"set reports.encoding to the file's encoding, probably {likely} (--reports.encoding={likely}), or convert "
        "the file to UTF-8",
    )


def _is_utf8(first_bytes: bytes) -> bool:
    """Return whether the first bytes of a file are UTF-8 text without null characters."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(first_bytes)
    except UnicodeDecodeError:
        return False
    return b"\0" not in first_bytes


def decoding_error(data: bytes, where: object, encoding: str) -> DataError:
    """Build the error for text that cannot be decoded, with the line and position of the first invalid byte."""
    position, name = "unknown position", codec(data, encoding)
    try:
        data.decode(name)
    except UnicodeDecodeError as error:
        start = error.start + (3 if data.startswith(codecs.BOM_UTF8) else 0)
        line_start = data.rfind(b"\n", 0, start) + 1
        line = data.count(b"\n", 0, start) + 1
        position = "end of file"
        if start < len(data):
            position = f"line {line}, byte {start - line_start + 1} (0x{data[start]:02x})"
    except UnicodeError:
        pass
    is_marked = data.startswith(tuple(_MARKS))
    return DataError(
        f"the text is not valid {name.removesuffix('-sig') if is_marked else encoding}",
        where=f"{where}, {position}",
        fix=f"copy or export the file again; its byte order mark states {name}, so it is damaged"
        if is_marked and name in _WIDE
        else _encoding_hint(data),
    )


def _encoding_hint(data: bytes) -> str:
    """Suggest an encoding, based on the spelling of words with letters that are not ASCII."""
    spelled_words = (word for match in _WORD.finditer(data) if not (word := match.group()).isascii())
    words = list(dict.fromkeys(islice(spelled_words, _MAX_WORDS)))
    valid = sum(bool(_decode_words([word], "utf-8")) for word in words)
    if valid == len(words):
        return "set reports.encoding to utf-8 (--reports.encoding=utf-8)"
    if 2 * valid > len(words):
        return "most of the file is UTF-8: correct this line, or export the reports again"
    readings = {page: read for page in _CODE_PAGES if (read := _decode_words(words, page))}
    scores = {page: sum(map(_is_plausible, read)) for page, read in readings.items()}
    pages = [page for page in readings if scores[page] >= max(1, _MIN_SCORE * max(scores.values()))]
    if not pages:
        return "set reports.encoding to the encoding in which the file was written, or convert the file to UTF-8"
    spelled = {page: [word.strip(f"{punctuation}{_PUNCTUATION}")[:20] for word in readings[page]] for page in pages}
    variants = [{spelled[page][word] for page in pages} for word in range(len(words))]
    clearest = max(range(len(words)), key=lambda word: ("" not in variants[word], len(variants[word])))
    spellings: dict[str, str] = {}
    for page in pages:  # if several code pages give the same spelling, show the first one
        spellings.setdefault(spelled[page][clearest], page)
    shown = [f"{page} {word!r} ({_CODE_PAGES[page]})" for word, page in spellings.items()]
    return (
        f"set reports.encoding to the encoding that spells this word correctly: {', '.join(shown)}; or convert the "
        "file to UTF-8"
        if len(shown) > 1
        else f"set reports.encoding to the file's encoding, probably {pages[0]} (--reports.encoding={pages[0]}), or "
        "convert the file to UTF-8"
    )


def _decode_words(words: Sequence[bytes], encoding: str) -> list[str]:
    """Decode all words; [] if a word is not valid or contains control characters."""
    try:
        decoded = [word.decode(encoding) for word in words]
    except UnicodeDecodeError:
        return []
    return decoded if all(map(str.isprintable, decoded)) else []


def _is_plausible(word: str) -> bool:
    """Return whether a word has only letters, ordinary capitalisation, and either only Latin or no Latin letters.

    Parts that are separated by ASCII characters such as commas are checked one by one.
    """
    parts = [_IN_WORD.sub("", part.strip(_PUNCTUATION)) for part in _SEPARATOR.split(word) if not part.isascii()]
    return all(
        part.isalpha()
        and (part[1:] == part[1:].lower() or part == part.upper())
        and len({unicodedata.name(letter).startswith("LATIN") for letter in part}) == 1
        for part in filter(None, parts)
    )
