"""The DVC stages. Each reads its parameters and inputs, calls the library, and writes its outputs."""
