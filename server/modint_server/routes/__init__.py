"""The routes, one file each; a path that is not here does not exist for clients."""
