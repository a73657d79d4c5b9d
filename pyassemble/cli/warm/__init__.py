"""A warm start: one process with torch imported, in forks of which commands run as if started at the shell."""
