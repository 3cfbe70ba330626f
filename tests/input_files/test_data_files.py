"""Test reading data files: Hugging Face data sets, and advice for missing files."""

import errno
import gzip
import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipit.annotators.label_table import read_annotations
from clipit.config.run import AnnotationsConfig, ReportsConfig
from clipit.errors import DataError
from clipit.images.image_set import open_images
from clipit.input_files.csv_delimiter import layout_hint
from clipit.input_files.data_files import cell_text, load_huggingface
from clipit.input_files.dataset_errors import load_error
from clipit.input_files.nearby_files import similar_names
from clipit.input_files.zip_files import compression
from clipit.reports.readers import read_reports
from clipit.slides.opening import open_slide
from clipit.tiles.table import open_table


def _write_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_formulas_of_constant_text_are_replaced_by_the_text() -> None:
    assert [cell_text(cell) for cell in ('="007"', ' ="A 1" ', "=1+1", '="a"&"b"')] == [
        "007",
        "A 1",
        "=1+1",
        '="a"&"b"',
    ]


def test_byte_order_marks_are_removed_from_cells() -> None:
    assert [cell_text(cell) for cell in ("\ufeffgland", " gland\u200b ", "\ufeff", "\u200bgl\u00e4nd")] == [
        "gland",
        "gland",
        "",
        "gl\u00e4nd",
    ]


def test_only_the_prefix_requests_a_data_set_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    requested: list[str] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **options: requested.append(name))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"(?s)no such folder.*dta/reports.*correct a\.path.*hf:owner/name"):
        load_huggingface("dta/reports", "a.path")
    with pytest.raises(DataError, match="is a file, not the folder of a data set"):
        load_huggingface(str(_write_file(tmp_path / "set.parquet")), "a.path")
    load_huggingface("hf:owner/name", "a.path")
    _write_file(tmp_path / "owner" / "name" / "train.parquet")
    load_huggingface("owner/name", "a.path")
    assert requested == ["owner/name", "owner/name"]
    with pytest.raises(DataError, match=r"(?s)owner/name is a local folder.*remove hf: from a\.path"):
        load_huggingface("hf:owner/name", "a.path")
    with pytest.raises(DataError, match="is a local folder"):
        load_huggingface(f"hf:{tmp_path}", "a.path")


def _write_to_cache(hub: Path, revision: str, orders: Sequence[Sequence[str]]) -> list[str]:
    """Write a Parquet file of lab/tiles for each order of classes to the Hub's cache, and return their URLs."""
    import datasets

    snapshot = hub / "datasets--lab--tiles" / "snapshots" / revision
    for folder in (snapshot, hub / "datasets--lab--tiles" / "blobs", hub / "datasets--lab--tiles" / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    for number, names in enumerate(orders):
        features = datasets.Features({"label": datasets.ClassLabel(names=list(names))})
        rows = datasets.Dataset.from_dict({"label": [0, 1]}, features=features)
        rows.to_parquet(str(snapshot / f"train-{number}.parquet"))
    return [f"hf://datasets/lab/tiles@{revision}/train-{number}.parquet" for number in range(len(orders))]


def test_classes_of_cached_files_from_the_hub_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets, constants = pytest.importorskip("datasets"), pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **options: name)
    orders = {"a" * 40: [["x", "y"], ["x", "y"]], "b" * 40: [["x", "y"], ["y", "x"]]}
    for revision, order in orders.items():
        config = SimpleNamespace(data_files={"train": _write_to_cache(tmp_path, revision, order)})
        monkeypatch.setattr(
            datasets, "load_dataset_builder", lambda name, config=config, **options: SimpleNamespace(config=config)
        )
        if revision.startswith("a"):
            assert load_huggingface("hf:lab/tiles", "a.path") == "lab/tiles"
        else:
            with pytest.raises(DataError, match="classes of the column label are y, x, but x, y in train-0"):
                load_huggingface("hf:lab/tiles", "a.path")
    with pytest.raises(DataError, match=r"(?s)has 2 revisions of the data set.*snapshots"):
        load_huggingface(str(tmp_path / "datasets--lab--tiles"), "a.path")


def test_csv_files_from_the_hub_are_read_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids such as 007 keep their leading zeros."""
    datasets = pytest.importorskip("datasets")
    (tmp_path / "reports.csv").write_text("id,text,size\n007,one,2\n07,two,3\n", encoding="utf-8")
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **options: load(str(tmp_path), **options))
    monkeypatch.setattr("clipit.input_files.data_files.cached_parquet", lambda *_: ())
    rows = load_huggingface("hf:lab/reports", "reports.path", texts=["id", "text", "organ"])["train"]
    assert rows["id"][:] == ["007", "07"] and rows["size"][:] == [2, 3]


def test_advice_for_missing_outputs_names_the_command_that_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("reports.jsonl", "prompts.yaml"):
        advice = similar_names(f"outputs/demo/world/{name}")
        assert "clipit demo writes this file; clipit world --output outputs/demo/world" in advice
    assert "first run the command at the top of the configuration" in similar_names("outputs/cases/0/tiles.csv")
    (tmp_path / "outputs" / "cases" / "0").mkdir(parents=True)
    assert similar_names("outputs/cases/0/tiles.csv") == "outputs/cases/0 is empty", (
        "the folder exists without this file"
    )
    assert "clipit" not in similar_names("data/outputs/tiles.csv"), "this is not the folder of outputs"


def test_advice_for_a_missing_file_lists_similar_names(tmp_path: Path) -> None:
    for name in ("Reports.CSV", "tiles.csv", "caf\u0065\u0301.txt"):
        _write_file(tmp_path / name)
    assert similar_names(str(tmp_path / "reports.csv")).endswith("contains Reports.CSV")
    assert similar_names(str(tmp_path / "tiles.parquet")).endswith("contains tiles.csv")
    assert similar_names(str(tmp_path / "caf\u00e9.txt")).endswith("contains caf\u0065\u0301.txt")
    assert similar_names(str(tmp_path / "gone" / "deep" / "x")).startswith(f"{tmp_path} contains Reports.CSV, ")
    for url in ("https://host/reports.csv", str(Path("https://host/reports.csv")), "s3://bucket/reports.csv"):
        assert similar_names(url) == "this is a URL: download the file first"
    assert similar_names(r"C:\data\reports.csv") == "this is a Windows path"
    (tmp_path / "empty").mkdir()
    assert similar_names(str(tmp_path / "empty" / "x")) == f"{tmp_path / 'empty'} is empty"
    _write_file(tmp_path / "some" / ".hidden")
    _write_file(tmp_path / "some" / "file")
    for path in (tmp_path / "some", tmp_path / "some" / "x"):
        assert similar_names(str(path)) == f"{tmp_path / 'some'} contains file"


def test_a_first_line_that_declares_the_delimiter_is_recognised() -> None:
    assert "remove this line" in layout_hint(["sep=;"])
    assert "remove this line" in layout_hint(["sep=", ""])
    assert layout_hint(["sep", "text"]) == ""


@pytest.mark.parametrize("saved", [True, False], ids=["saved", "folder"])
def test_a_truncated_arrow_stream_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: bool) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = datasets.Dataset.from_dict({"id": list(range(2500))})
    rows.save_to_disk(tmp_path / "set")
    (arrow,) = (tmp_path / "set").glob("*.arrow")
    if not saved:
        for file in (tmp_path / "set").glob("*.json"):
            file.unlink()
    loaded = load_huggingface(str(tmp_path / "set"), "tiles.path")
    assert len(loaded if saved else loaded["train"]) == 2500
    content = arrow.read_bytes()
    with pa.OSFile(str(arrow)) as stream:
        pa.ipc.open_stream(stream).read_next_batch()
        boundary = stream.tell()
    for size in (boundary, len(content) - 8, 4):
        arrow.write_bytes(content[:size])
        for streaming in (False, True):
            with pytest.raises(DataError, match=r"truncated Arrow file(.|\n)*where: \S*data-00000-of-00001\.arrow"):
                load_huggingface(str(tmp_path / "set"), "tiles.path", streaming=streaming)
    with pa.OSFile(str(arrow), "wb") as sink, pa.ipc.new_file(sink, rows.data.schema) as writer:
        writer.write_table(rows.data.table)
    if not saved:  # save_to_disk writes streams, not Arrow files
        assert len(load_huggingface(str(tmp_path / "set"), "tiles.path")["train"]) == 2500


@pytest.mark.parametrize("form", ["saved", "saved splits", "arrow", "parquet"])
def test_a_different_class_order_in_the_description_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names, folder = ["normal", "stroma", "tumour"], tmp_path / "set"
    features = datasets.Features({"label": datasets.ClassLabel(names=names)})
    rows = datasets.Dataset.from_dict({"label": [0, 1, 2]}, features=features)
    if form == "parquet":
        folder.mkdir()
        rows.to_parquet(folder / "train.parquet")
    else:
        (datasets.DatasetDict({"train": rows}) if form == "saved splits" else rows).save_to_disk(folder)
    if form == "arrow":
        for file in folder.glob("*.json"):
            file.unlink()

    def describe(listed: Sequence[str]) -> None:
        if "saved" in form:
            (info,) = folder.rglob("dataset_info.json")
            content = json.loads(info.read_text())
            content["features"]["label"]["names"] = listed
            info.write_text(json.dumps(content))
            return
        entries = "".join(f"          '{number}': {name}\n" for number, name in enumerate(listed))
        header = "dataset_info:\n  features:\n  - name: label\n    dtype:\n      class_label:\n        names:\n"
        (folder / "README.md").write_text(f"---\n{header}{entries}---\n")

    for listed in (["normal", "stroma", "cancer"], ["Gewebe", "Stroma", "Tumor"]):  # classes may be renamed
        describe(listed)
        loaded = load_huggingface(str(folder), "tiles.path")
        assert (loaded["train"] if isinstance(loaded, dict) else loaded).features["label"].names == listed
    for listed in (["tumour", "stroma", "normal"], ["stroma", "normal", "cancer"]):
        describe(listed)
        for streaming in (False, True):
            with pytest.raises(
                DataError, match=rf"normal, stroma, tumour in this file, but {', '.join(listed)} in the"
            ):
                load_huggingface(str(folder), "tiles.path", streaming=streaming)


def test_several_configurations_without_a_default_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    card = ["---", "configs:"]
    for name in ("one", "two"):
        (tmp_path / "set" / name).mkdir(parents=True)
        datasets.Dataset.from_dict({"id": [name]}).to_parquet(tmp_path / "set" / name / "train.parquet")
        card += [f"- config_name: {name}", f"  data_files: {name}/*.parquet"]
    readme = tmp_path / "set" / "README.md"
    readme.write_text("\n".join([*card, "---", ""]))
    words = (
        r"several configurations, and none of them is the default: 'one', 'two'\n.*\n  fix: add `default: true` to one"
    )
    with pytest.raises(DataError, match=words):
        load_huggingface(str(tmp_path / "set"), "tiles.path")
    readme.write_text("\n".join([*card, "  default: true", "---", ""]))
    assert load_huggingface(str(tmp_path / "set"), "tiles.path")["train"]["id"][:] == ["two"]


def test_links_to_folders_of_data_are_an_error(tmp_path: Path) -> None:
    _write_file(tmp_path / "data" / "train.csv")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train").symlink_to(tmp_path / "data")
    with pytest.raises(DataError, match="does not follow links to folders"):
        load_huggingface(str(tmp_path / "set"), "tiles.path")


def test_outputs_of_clipit_in_a_folder_for_the_datasets_package_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "reports.csv").write_text("text\nA report\n", encoding="utf-8")
    _write_file(tmp_path / "outputs" / "artefacts" / "snippets-0123456789abcdef" / "snippets.parquet")
    with pytest.raises(DataError, match=r"would read as data: .*outputs/artefacts") as caught:
        load_huggingface(str(tmp_path), "reports.path")
    assert caught.value.fix.startswith("move the output folder out of this folder")


def test_splits_in_different_formats_are_an_error(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"id": [1]}).to_parquet(tmp_path / "train.parquet")
    (tmp_path / "test.csv").write_text("id\n1\n")
    with pytest.raises(DataError, match="fix: convert the files of all splits to the same format"):
        load_huggingface(str(tmp_path), "tiles.path")


@pytest.mark.parametrize(
    ("message", "fix"),
    [
        (
            "Config name is missing.\nPlease pick one among the available configs: ['a', 'b']",
            "set a.path to the folder, ",
        ),
        ("Dataset scripts are no longer supported, but found tiles.py", "set a.path to the folder, and convert it to"),
        ("Dataset 'lab/tiles' is a gated dataset on the Hub.", "accept its terms on its page"),
        ("no route to host", "check the spelling of the id"),
    ],
)
def test_errors_of_the_hub_have_advice(monkeypatch: pytest.MonkeyPatch, message: str, fix: str) -> None:
    import datasets

    def fail(name: str, **options: object) -> None:
        raise ValueError(message)

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError) as raised:
        load_huggingface("hf:lab/tiles", "a.path")
    assert fix in str(raised.value)


@pytest.mark.parametrize("method", ["gzip", "bz2", "lzma", ""])
def test_text_that_starts_like_a_compressed_file_is_not_compressed(method: str) -> None:
    text = b"BZh is a clinic; its reports begin with its name"
    data = importlib.import_module(method).compress(text) if method else text
    assert compression(data) == {"gzip": "gzip", "bz2": "bzip2", "lzma": "xz", "": ""}[method]


def test_all_table_readers_name_compressed_files(tmp_path: Path) -> None:
    readers: dict[str, Callable[[Path], object]] = {
        "reports": lambda path: read_reports(ReportsConfig(path=str(path))),
        "tiles": open_table,
        "annotators": lambda path: read_annotations(AnnotationsConfig(path=str(path)), {}),
        "images": open_images,
        "slides": open_slide,
    }
    text = b"path,label,text,tile,annotator\na.png,a,A report.,a,b\n"
    for kind, read in readers.items():
        for name in ("t.csv.gz", "t.tsv.gz", "t.jsonl.gz", "t.csv", "t.parquet"):
            path = tmp_path / name
            path.write_bytes(gzip.compress(text))
            with pytest.raises(DataError, match=r"(?s)compressed with gzip.*t\..*decompress it.*gunzip"):
                pytest.fail(f"{kind} of {name}: {read(path)}")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt.gz").write_bytes(gzip.compress(text))
    with pytest.raises(DataError, match=r"(?s)1 compressed file such as a\.txt\.gz.*decompress"):
        read_reports(ReportsConfig(path=str(tmp_path / "folder")))
    (tmp_path / "t.csv").write_bytes(b"PK\3\4")
    with pytest.raises(DataError, match=r"(?s)is a workbook.*save the sheet as \.csv"):
        open_table(tmp_path / "t.csv")


@pytest.mark.parametrize("end", [b"\x1a", b"\n\x1a", b"\n\x1a\x1a\r\n", b"\r\n\x1a"])
def test_the_dos_end_of_file_mark_is_ignored(tmp_path: Path, end: bytes) -> None:
    table, lines, reports = tmp_path / "t.csv", tmp_path / "r.txt", tmp_path / "r.jsonl"
    table.write_bytes(b"path,label,text\na.png,b,First report.\nb.png,c,Second report." + end)
    lines.write_bytes(b"First report.\nSecond report." + end)
    reports.write_bytes(b'{"text": "First report."}\n{"text": "Second report."}' + end)
    texts = ["First report.", "Second report."]
    assert open_table(table).column("text") == texts
    for path in (table, lines, reports):
        assert [report.text for report in read_reports(ReportsConfig(path=str(path))).reports] == texts
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_bytes(b"First report." + end)
    assert read_reports(ReportsConfig(path=str(tmp_path / "one"))).reports[0].text.strip() == texts[0]


def test_repeated_column_names_in_parquet_are_an_error(tmp_path: Path) -> None:
    cells = [pa.array(["a.png"]), pa.array(["A report."]), pa.array(["b"])]
    pq.write_table(pa.table(cells, names=["path", "text", "text"]), tmp_path / "t.parquet")
    for read in (open_table, lambda path: read_reports(ReportsConfig(path=str(path)))):
        with pytest.raises(DataError, match=r"(?s)several columns have the same name: text\n.*fix: rename all but one"):
            read(tmp_path / "t.parquet")


@pytest.mark.parametrize("name", ["reports [1]", "a::b"])
def test_folder_names_that_the_datasets_package_reads_as_patterns_are_errors(name: str, tmp_path: Path) -> None:
    """A pattern may also match another folder, here `reports 1`, whose files would be read instead."""
    for folder in (tmp_path / name, tmp_path / "reports 1"):
        folder.mkdir()
        (folder / "r.csv").write_text("text\nA report\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)in a path as a pattern.*rename the folder"):
        load_huggingface(str(tmp_path / name), key="reports.path")
    assert load_huggingface(str(tmp_path / "reports 1"), key="reports.path")["train"].num_rows == 1


@pytest.mark.parametrize(
    "error",
    [
        NotADirectoryError(errno.ENOTDIR, "Not a directory", "/cache"),
        PermissionError(errno.EACCES, "Permission denied", "/cache/datasets/csv.lock"),
        OSError(errno.EROFS, "Read-only file system", "/cache/datasets/csv.lock"),
    ],
)
def test_cache_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("/cache/datasets"))
    advice = load_error(str(tmp_path), "reports.path", error, local=True, files=[]).fix
    assert advice == "set HF_HOME or HF_DATASETS_CACHE to a folder that you can write to; it is now /cache/datasets"


def test_other_errors_do_not_suggest_another_cache(tmp_path: Path) -> None:
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "r.csv"))
    assert "HF_HOME" not in load_error(str(tmp_path), "reports.path", error, local=True, files=[]).fix
