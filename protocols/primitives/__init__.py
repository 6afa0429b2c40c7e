"""Cryptographic building blocks, used by the sessions of `protocols` alone."""
