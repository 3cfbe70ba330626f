"""Python API: one function per task, which returns a result object; the command of the same task only calls it."""
