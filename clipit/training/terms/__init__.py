"""Loss terms, one file each; `table.py` lists them."""
