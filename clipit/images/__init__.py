"""Images: decoding, readers for folders and zips, and prefetching for a model."""
