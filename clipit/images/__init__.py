"""Images: decoding, readers of folders and zips, and reading ahead of a model."""
