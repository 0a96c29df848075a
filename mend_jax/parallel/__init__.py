"""Many devices and processes: the mesh, the placement of arrays, agreement of processes."""
