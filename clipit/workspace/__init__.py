"""The cached inputs of a configuration: tiles, snippets, stores, index and pairs."""
