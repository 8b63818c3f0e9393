"""Native code for the CPU, compiled when the package is installed, and its loader."""
