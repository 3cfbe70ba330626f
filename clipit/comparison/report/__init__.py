"""Report of a comparison: HTML page, tables and notes."""
