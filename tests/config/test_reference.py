"""Tests of docs/configuration.md, the generated reference of all keys."""

from pathlib import Path

from clipit.config.load import RENAMED, all_keys
from clipit.config.reference import COMMON_KEYS, reference

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def entry(key: str, page: str) -> str:
    """Entry of a key, joined into a single line."""
    return " ".join(page.rpartition(f"- `{key}`: ")[2].partition("\n- ")[0].split())


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "run: python -m clipit.config.reference > docs/configuration.md"
    )


def test_page_describes_all_keys() -> None:
    page = reference()
    keys = [key for key in all_keys() if not key.startswith(("comparison.shifted", "second_vlm."))]
    assert not [key for key in keys if f"- `{key}`: " not in page and f"\n## {key}\n" not in page]
    assert all(f"`{old}`: now `{new}`" in page for old, new in RENAMED.items())


def test_common_keys_come_first() -> None:
    first = reference().split("\n## ")[1]
    assert len(COMMON_KEYS) == 20 == first.count("\n- `") and set(COMMON_KEYS) <= set(all_keys())
    assert all(f"- `{key}`: " in first for key in COMMON_KEYS)


def test_entries_have_type_default_effect_and_description() -> None:
    page = reference()
    assert entry("vlm.batch_size", page).startswith("(integer, default `64`, **speed**) ")
    assert entry("tracking.project", page).startswith("(string, default `clipit`, **reporting**) "), (
        "inherited from its section"
    )
    assert entry("training.patience", page).startswith("(integer or null, default `null`) ")
    assert "`<slide>.png`" in entry("mil.masks", page), "code must not be escaped"
    assert entry("comparison.seeds", page).startswith("(list of integers, default `[0, 1, 2]`) ")
    assert "one of `linear`, `late_fusion`" in entry("student.head", page)
    assert entry("training.accumulation", page).startswith("(integer or `auto`, default `1`) "), (
        "from an annotated type"
    )
    assert "default `[1, 2, 5, 10, null]`" in entry("segmentation.training.masks", page), "defaults are written in YAML"


def test_lines_are_wrapped() -> None:
    assert max(map(len, reference().splitlines())) <= 100


def test_shifted_sets_are_named_by_the_user() -> None:
    assert entry("comparison.shifted.<name>", reference()).endswith("Keys as in `tiles`.")
    assert "comparison.shifted.source" not in reference()
