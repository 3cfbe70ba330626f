"""The page of all keys belongs to the configuration as it is."""

from pathlib import Path

from clipit.config.reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "run: python -m clipit.config.reference > docs/configuration.md"
    )


def test_page_describes_every_key() -> None:
    from clipit.config.load import all_keys

    page = PAGE.read_text(encoding="utf-8")
    assert not [
        key
        for key in all_keys()
        if not key.startswith(("comparison.shifted", "second_vlm."))
        and f"`{key}`" not in page
        and f"## {key}\n" not in page
    ]


def test_shifted_sets_are_named_by_the_user() -> None:
    row = next(line for line in reference().splitlines() if "`comparison.shifted" in line)
    assert row.startswith("| `comparison.shifted.<name>` | `TilesConfig` |") and "Keys as in `tiles`." in row
    assert "comparison.shifted.source" not in reference()
