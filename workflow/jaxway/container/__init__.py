"""The container: fetched from a registry, verified, extended, and entered."""
