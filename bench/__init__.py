"""Benches: each writes one record per point into results/*.jsonl, and tables.py makes README's tables from those."""
