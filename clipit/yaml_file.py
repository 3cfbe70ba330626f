"""Reading YAML; keys given twice are found, where YAML would keep the last one silently."""

from pathlib import Path
from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"  # of the key `<<`


class _Loader(yaml.SafeLoader):
    """A safe loader that remembers mapping keys which occur twice."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.repeated: list[tuple[str, int]] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As the safe loader does, and note the keys that occur twice; merged keys may be given again."""
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
    """The content of a YAML file, and each key that a mapping in it gives again, with its line.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8.
        yaml.YAMLError: It is not YAML.
    """
    loader = _Loader(path.read_text(encoding="utf-8"))
    try:
        return loader.get_single_data(), loader.repeated
    finally:
        loader.dispose()
