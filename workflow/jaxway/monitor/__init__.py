"""What the jobs of the run in this folder do: shown by `jaxway follow`, and printed by the run."""
