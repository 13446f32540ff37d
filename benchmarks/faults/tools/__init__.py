"""Handles on processes, system calls, clocks and file systems, for whichever part needs one."""
