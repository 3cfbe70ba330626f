"""Python API: one function per task, which returns a result object; each command calls the function for its task."""
