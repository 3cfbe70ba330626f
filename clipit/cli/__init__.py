"""The command `clipit`, one module per subcommand: each parses its options, calls the package and prints the result."""
