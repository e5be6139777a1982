"""Reading files out of a file system in user space: one module each, all behind ``tree.Reader``."""
