"""The configuration: YAML in, typed jobs out. Knows nothing of Snakemake.

Whatever a user can get wrong is a `ConfigurationError` whose sentence begins with the path of the
key.
"""
