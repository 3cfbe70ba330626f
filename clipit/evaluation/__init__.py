"""From predictions to scores with intervals; zero-shot and reference rows."""
