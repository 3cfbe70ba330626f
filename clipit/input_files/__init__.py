"""Read users' files (csv tables, Parquet, YAML, folders), and detect common faults in them."""
