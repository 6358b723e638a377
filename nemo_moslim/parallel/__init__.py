"""Process groups, collectives and the CPU platform."""
