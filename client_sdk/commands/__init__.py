"""The commands of `attested`, a module each: options in, words and exit codes out. The work is done below this package."""
