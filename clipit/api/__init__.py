"""Python API: one function per task, which returns a result object; the commands parse options, call it and print."""
