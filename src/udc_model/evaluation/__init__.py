"""Metrics, tables and pictures of a classifier's decisions."""
