"""Many devices and many processes: the mesh, where arrays live on it, and how processes agree."""
