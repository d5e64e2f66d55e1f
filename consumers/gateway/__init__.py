"""HTTP: the gateway, which clients ask, and the service of the index, which the gateway asks."""
