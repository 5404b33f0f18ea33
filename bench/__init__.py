"""Benches: each writes one record per point into results/*.jsonl, and tables.py makes the pages' tables from those."""
