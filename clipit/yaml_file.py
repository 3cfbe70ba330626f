"""Read YAML files and detect duplicate keys, of which YAML silently keeps the last."""

from pathlib import Path
from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"  # tag of the key `<<`


class _Loader(yaml.SafeLoader):
    """Safe loader that records duplicate mapping keys."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.repeated: list[tuple[str, int]] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping and record its duplicate keys; merged keys may be overridden."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            if (key.tag, key.value) in seen:
                self.repeated.append((key.value, key.start_mark.line + 1))
            seen.add((key.tag, key.value))
        return node


def load_yaml(path: Path) -> tuple[Any, list[tuple[str, int]]]:
    """Read a YAML file, and list its duplicate keys with their lines.

    Raises:
        OSError: The file cannot be read.
        UnicodeDecodeError: The file is not UTF-8.
        yaml.YAMLError: The file is not YAML.
    """
    loader = _Loader(path.read_text(encoding="utf-8"))
    try:
        return loader.get_single_data(), loader.repeated
    finally:
        loader.dispose()
