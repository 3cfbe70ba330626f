"""Python API: one function per task, which returns a result object. Most commands only call such a function."""
