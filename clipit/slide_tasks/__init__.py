"""Tasks on whole slides: tiles, scores and maps of slides."""
