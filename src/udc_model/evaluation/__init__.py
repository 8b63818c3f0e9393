"""Metrics, intervals, tests, tables, figures and the report of a classifier's decisions."""
