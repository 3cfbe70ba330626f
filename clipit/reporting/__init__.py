"""Pages, tables, plots, summaries and model cards."""
