"""Tasks on whole slides: tile, score and map slides, and compare arms on them."""
