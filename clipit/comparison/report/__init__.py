"""The files that a comparison writes: HTML page, tables, notes, JSON."""
