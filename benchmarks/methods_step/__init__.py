"""One update of every method by Afzal and by TRL: ``python -m benchmarks.methods_step --help``."""
