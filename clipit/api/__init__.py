"""Python API: one function per task with a result object; the commands parse their options, call it and print."""
