"""The processes of a run and the group they form, with a twin of size one; repeatable kernels and seeds."""
