"""Results by name: compare, summarise, reproduce, promote, tune."""
