"""What the programs of this folder share. Needs only what the container holds."""
