"""Projects of their own: the files that ``udc init`` writes, recipes of parameters, and newer versions."""
