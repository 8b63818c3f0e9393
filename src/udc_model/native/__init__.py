"""Native code for the CPU, compiled when the package is installed, and how it is found."""
