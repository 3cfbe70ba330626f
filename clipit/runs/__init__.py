"""Training, evaluation and prediction of one run, and its folder."""
