"""Tables, plots and summaries for people."""
