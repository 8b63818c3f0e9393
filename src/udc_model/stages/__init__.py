"""The three DVC stages: each reads typed parameters and its inputs, calls the library, writes its outputs."""
