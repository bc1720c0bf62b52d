"""The package version, importable from every room."""

__version__ = "0.1.0"
