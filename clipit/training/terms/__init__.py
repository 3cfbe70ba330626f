"""Loss terms, one file each; `term_table.py` lists them."""
