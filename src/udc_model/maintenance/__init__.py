"""Keeps a machine and a project in order: what it offers and lacks, and what takes disk space and can go."""
