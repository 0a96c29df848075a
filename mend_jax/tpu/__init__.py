"""TPU pods without a TPU: how a model lies on a slice, and compiling its steps for one."""
