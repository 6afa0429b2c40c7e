"""Bridges to other libraries. Each module needs its own extra and is imported by its full name."""
