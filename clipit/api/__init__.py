"""Python API: one function per task that returns a result object; the commands parse options, call it and print."""
