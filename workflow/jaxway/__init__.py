"""The login node's side of the workflow; what runs in the container is in workflow/scripts."""
