"""Retrying dead letters: policies decide, the ledger remembers, the platform's own state gives the verdict."""
