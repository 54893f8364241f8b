"""Other libraries, as parts of this one."""
