"""Evaluation: cases, metrics, runs and reports."""
